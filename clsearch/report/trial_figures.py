"""The figures of a method's trials: a panel for each task, accuracies relative to the best.

Relative, because then the margin is one band for all seeds of a task. Points and lines of trials
are pixels inside an SVG: ten thousand of them would make it slow to open.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clsearch.records import Candidate, Selection, TrialRecord
from clsearch.report.canvas import (
    GREY,
    SMALL,
    decades,
    edges,
    grid_of,
    head,
    legend,
    legend_height,
    panels,
    width_of,
)
from clsearch.report.tables import ChainView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHOSEN = "#D55E00"
_BAND = "#56B4E9"
_SELECTED, _WITHIN, _BELOW = "selected", "within the margin", "below the floor"
_PRUNED = "selected, before fine-tuning"
_POINTS: dict[str, dict[str, Any]] = {
    _SELECTED: {"marker": "*", "markersize": 11, "color": CHOSEN, "markeredgecolor": "black",
                "markeredgewidth": 0.7, "zorder": 4, "linestyle": "none"},
    _PRUNED: {"marker": "*", "markersize": 11, "color": "white", "markeredgecolor": "black",
              "markeredgewidth": 0.7, "zorder": 3.6, "linestyle": "none"},
    _WITHIN: {"marker": "o", "markersize": 4, "color": "#0072B2", "markeredgecolor": "white",
              "markeredgewidth": 0.4, "zorder": 3, "linestyle": "none"},
    _BELOW: {"marker": "v", "markersize": 4, "color": "white", "markeredgecolor": GREY,
             "markeredgewidth": 0.8, "zorder": 2.5, "linestyle": "none"},
}  # fmt: skip

_BEHIND: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
"""Behind a text that lines may cross."""
_FLOOR: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": "--"}

Records = Mapping[tuple[str, int, int, str], TrialRecord]
Point = tuple[float, float]


def by_place(records: Iterable[TrialRecord]) -> Records:
    """Trials by method, seed, task and key."""
    return {(r.method, r.seed, r.task, r.trial_key): r for r in records}


def lowest(margin: float) -> float:
    """Where the axis of accuracies relative to the best ends, in percentage points."""
    return -4 * max(margin, 0.5)


def _by_task(chains: Sequence[ChainView]) -> dict[int, list[Selection]]:
    found: dict[int, list[Selection]] = {}
    for chain in chains:
        for result in chain.results:
            found.setdefault(result.selection.task, []).append(result.selection)
    return dict(sorted(found.items()))


def _trial_panels(
    chains: Sequence[ChainView],
    title: str,
    handles: Sequence[Any],
    draw: Callable[[Axes, Sequence[Selection], float], None],
) -> tuple[Figure, list[Axes], int]:
    """A panel for each task, with the band of the margin, its best and its lost trials."""
    tasks = _by_task(chains)
    across = grid_of(len(tasks))
    below = 0.42 + legend_height(handles)
    figure, axes = panels(
        len(tasks), across, 1.5 if across < 4 else 1.1, title, below=below, gap=(0.24, 0.3)
    )
    margin = max((s.margin for ss in tasks.values() for s in ss), default=0)
    low = lowest(margin)
    gain = max((_gain(s) for ss in tasks.values() for s in ss), default=0.0)
    top = max(margin, 0.5, gain + 0.1 * (gain - low) if gain > 0 else 0.0)
    for axis, (task, selections) in zip(axes, tasks.items(), strict=True):
        axis.axhspan(-margin, 0, color=_BAND, alpha=0.25, linewidth=0)
        axis.axhline(-margin, **_FLOOR)
        best = [100 * s.best for s in selections if s.best is not None]
        reached = f": best {_span(best)} %" if best else ""
        head(axis, f"task {task}{reached}")
        draw(axis, [s for s in selections if s.best is not None], low)
        lost = sum(c.status == "FAILED" for s in selections for c in s.candidates)
        ended = any(s.outcome != "selected" for s in selections)
        said = [f"{lost} failed"] * bool(lost) + ["chain ended"] * ended
        if said:
            axis.text(0.98, 0.03, "\n".join(said), transform=axis.transAxes, fontsize=SMALL,
                      ha="right", zorder=5, linespacing=1.0, bbox=_BEHIND)  # fmt: skip
        axis.set_ylim(low, top)
        axis.set_rasterization_zorder(3.5)
    legend(figure, handles)
    return figure, axes, across


def _span(percents: Sequence[float]) -> str:
    """The values of all seeds, by the lowest and the highest."""
    return "-".join(dict.fromkeys(f"{x:.1f}" for x in (min(percents), max(percents))))


def _gain(s: Selection) -> float:
    """How far above the best a trial of a task came by being pruned, in percentage points."""
    reached = [s.accuracy, *(c.accuracy for c in s.candidates)]
    return max((100 * (a - s.best) for a in reached if a is not None and s.best is not None),
               default=0.0)  # fmt: skip


def _plot(axis: Axes, points: Sequence[Point], kind: str) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axis.plot(x, y, clip_on=False, **_POINTS[kind])


def tradeoff(chains: Sequence[ChainView], title: str) -> Figure:
    """Accuracy and sparsity of every trial, pruned as far as the margin allows."""

    def draw(axis: Axes, selections: Sequence[Selection], low: float) -> None:
        points: dict[str, list[Point]] = {kind: [] for kind in _POINTS}

        def add(kind: str, sparsity: float, accuracy: float | None, best: float | None) -> None:
            if accuracy is not None and math.isfinite(accuracy):
                points[kind].append((100 * sparsity, max(100 * (accuracy - (best or 0)), low)))

        for s in selections:
            for c in s.candidates:
                accuracy = c.validation_accuracy if c.accuracy is None else c.accuracy
                add(_PRUNED if c.chosen and _tuned(s) else _kind(c), c.sparsity, accuracy, s.best)
            if _tuned(s):
                add(_SELECTED, s.sparsity or 0, s.accuracy, s.best)
        for kind, found in points.items():
            _plot(axis, found, kind)

    tuned = any(_tuned(r.selection) for chain in chains for r in chain.results)
    handles = _handles({k: v for k, v in _POINTS.items() if tuned or k != _PRUNED})
    figure, axes, across = _trial_panels(
        chains, f"{title}: what trials give up for sparsity", handles, draw
    )
    for axis in axes:
        axis.set_xlim(0, 100)
        axis.set_xticks((0, 50, 100) if width_of(axis) < 1.5 else range(0, 101, 20))
    edges(axes, across, "sparsity (%)", "accuracy − best (pp)")
    return figure


def _tuned(selection: Selection) -> bool:
    """Whether a fine-tuned model took the place of the pruned one that was selected."""
    return any(done.kept for done in selection.rounds)


def _kind(candidate: Candidate) -> str:
    if candidate.chosen:
        return _SELECTED
    return _BELOW if candidate.accuracy is None else _WITHIN


def scan(chains: Sequence[ChainView], records: Records, title: str) -> Figure:
    """Accuracy of the candidates of each task over the pruning threshold θ."""
    from matplotlib.collections import LineCollection

    positive: list[float] = []

    def draw(axis: Axes, selections: Sequence[Selection], low: float) -> None:
        lines, chosen = [], []
        for s, candidate in [(own, c) for own in selections for c in own.candidates]:
            record = records.get((s.method, s.seed, s.task, candidate.trial_key))
            if candidate.accuracy is None or record is None or not record.scan:
                continue
            best = s.best or 0
            line = _steps([(p.threshold, 100 * (p.accuracy - best)) for p in record.scan])
            pruning = [x for x, _ in line if x > 0]
            positive.extend((min(pruning), max(pruning)) if pruning else ())
            if not candidate.chosen:
                lines += [_visible(line, low)] if max(y for _, y in line) >= low else []
                continue
            axis.plot(*zip(*line, strict=True), color=CHOSEN, linewidth=1.4, zorder=3.6)
            if candidate.threshold is not None:
                y = 100 * (candidate.accuracy - best)
                chosen.append((candidate.threshold, max(y, low)))
        axis.add_collection(
            LineCollection(lines, colors="#555555", linewidths=0.6, alpha=0.6, zorder=2)
        )
        _plot(axis, chosen, _SELECTED)

    line = {"color": "#555555", "linewidth": 0.8}
    handles = _handles({_SELECTED: {**_POINTS[_SELECTED], "linestyle": "-"}, _WITHIN: line})
    figure, axes, across = _trial_panels(
        chains, f"{title}: accuracy over the threshold θ", handles, draw
    )
    ticks = decades(positive)
    for axis in axes:
        axis.set_xscale("symlog", linthresh=ticks[1])
        axis.set_xlim(0, 1.1 * max(positive, default=1.0))
        shown = ticks if width_of(axis) >= 1.5 else [ticks[0], ticks[-1]]
        axis.set_xticks(shown, [f"{t:g}" for t in shown])
        axis.minorticks_off()
    said = "threshold θ (mean activation)" if across < 4 else "θ (mean activation)"
    edges(axes, across, said, "accuracy − best (pp)")
    return figure


def _steps(points: Sequence[Point]) -> list[Point]:
    """A scan as it is: up to the next threshold nothing more is pruned."""
    corners = [(x, y) for (_, y), (x, _) in itertools.pairwise(points)]
    return [*points[:1], *(p for pair in zip(corners, points[1:], strict=True) for p in pair)]


def _visible(line: Sequence[Point], low: float) -> list[Point]:
    """A line without the points that, with their neighbours, lie below the panel."""
    seen = [y >= low for _, y in line]
    kept = zip(line, seen, [False, *seen[:-1]], [*seen[1:], False], strict=True)
    return [point for point, *near in kept if any(near)]


def _handles(styles: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """The legend of the panels of trials."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Line2D([], [], label=name, **dict(s)) for name, s in styles.items()]
    handles.append(Line2D([], [], label="floor", **_FLOOR))
    handles.append(Patch(color=_BAND, alpha=0.25, linewidth=0, label="the margin"))
    return handles
