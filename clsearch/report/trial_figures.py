"""The figures of a method's trials: a panel for each task, accuracies relative to the best.

Relative, because then the margin is one band for all seeds of a task.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clsearch.records import Selection, TrialRecord
from clsearch.report.canvas import GREY, SMALL, edges, panels
from clsearch.report.tables import ChainView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACROSS = 5
_CHOSEN, _BAND = "#D55E00", "#56B4E9"
_SELECTED, _WITHIN, _BELOW = "selected", "within the margin", "below the floor"
_POINTS: dict[str, dict[str, Any]] = {
    _SELECTED: {"marker": "*", "markersize": 12, "color": _CHOSEN, "markeredgecolor": "black",
                "markeredgewidth": 0.7, "zorder": 4, "linestyle": "none"},
    _WITHIN: {"marker": "o", "markersize": 4.5, "color": "#0072B2", "markeredgecolor": "white",
              "markeredgewidth": 0.4, "zorder": 3, "linestyle": "none"},
    _BELOW: {"marker": "v", "markersize": 4.5, "color": "white", "markeredgecolor": GREY,
             "markeredgewidth": 0.8, "zorder": 2.5, "linestyle": "none"},
}  # fmt: skip

_FLOOR: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": "--"}

Records = Mapping[tuple[str, int, int, str], TrialRecord]


def _by_task(chains: Sequence[ChainView]) -> dict[int, list[Selection]]:
    found: dict[int, list[Selection]] = {}
    for chain in chains:
        for result in chain.results:
            found.setdefault(result.selection.task, []).append(result.selection)
    return dict(sorted(found.items()))


def _trial_panels(
    chains: Sequence[ChainView], title: str, draw: Callable[[Axes, Selection, float], None]
) -> tuple[Figure, list[Axes]]:
    """A panel for each task, with the band of the margin, its best and its lost trials."""
    tasks = _by_task(chains)
    figure, axes = panels(
        len(tasks), _ACROSS, (2.0, 1.75), title, below=0.75, gap=(0.3, 0.35), least=7
    )
    margin = max((s.margin for ss in tasks.values() for s in ss), default=0)
    low = -4 * max(margin, 0.5)
    for axis, (task, selections) in zip(axes, tasks.items(), strict=True):
        axis.axhspan(-margin, 0, color=_BAND, alpha=0.25, linewidth=0)
        axis.axhline(-margin, **_FLOOR)
        best = [100 * s.best for s in selections if s.best is not None]
        said = f"task {task}: best {statistics.fmean(best):.1f} %" if best else f"task {task}"
        lost = sum(c.status == "FAILED" for s in selections for c in s.candidates)
        axis.set_title(said + (f", {lost} failed" if lost else ""), fontsize=SMALL, pad=3)
        for selection in selections:
            if selection.best is not None:
                draw(axis, selection, low)
            else:
                axis.text(0.5, 0.1, "chain ended", transform=axis.transAxes, ha="center",
                          fontsize=SMALL)  # fmt: skip
        axis.set_ylim(low, max(margin, 0.5))
    return figure, axes


def tradeoff(chains: Sequence[ChainView], title: str) -> Figure:
    """Accuracy and sparsity of every trial, pruned as far as the margin allows."""

    def draw(axis: Axes, selection: Selection, low: float) -> None:
        for candidate in selection.candidates:
            kept = candidate.accuracy is not None
            accuracy = candidate.accuracy if kept else candidate.validation_accuracy
            if accuracy is None or not math.isfinite(accuracy):
                continue
            y = 100 * (accuracy - (selection.best or 0))
            kind = _SELECTED if candidate.chosen else _WITHIN if kept else _BELOW
            axis.plot(100 * candidate.sparsity, max(y, low), clip_on=False, **_POINTS[kind])

    figure, axes = _trial_panels(chains, f"{title}: what trials give up for sparsity", draw)
    for axis in axes:
        axis.set_xlim(0, 100)
    edges(axes, _ACROSS, "sparsity (%)", "accuracy − best (pp)")
    lowest = f"{_BELOW} (on the edge: lower still)"
    _key(
        figure, {_SELECTED: _POINTS[_SELECTED], _WITHIN: _POINTS[_WITHIN], lowest: _POINTS[_BELOW]}
    )
    return figure


def scan(chains: Sequence[ChainView], records: Records, title: str) -> Figure:
    """Accuracy of the candidates of each task over the pruning threshold θ."""
    from matplotlib.collections import LineCollection

    positive: list[float] = []

    def draw(axis: Axes, selection: Selection, low: float) -> None:
        lines = []
        for candidate in selection.candidates:
            place = (selection.method, selection.seed, selection.task, candidate.trial_key)
            record = records.get(place)
            if candidate.accuracy is None or record is None:
                continue
            best = selection.best or 0
            line = [(p.threshold, 100 * (p.accuracy - best)) for p in record.scan]
            positive.extend(x for x, _ in line if x > 0)
            if candidate.chosen:
                axis.plot(*zip(*line, strict=True), color=_CHOSEN, linewidth=1.5, zorder=3)
                if candidate.threshold is not None:
                    y = 100 * (candidate.accuracy - best)
                    axis.plot(candidate.threshold, max(y, low), clip_on=False, **_POINTS[_SELECTED])
            else:
                lines.append(line)
        axis.add_collection(LineCollection(lines, colors="#555555", linewidths=0.6, alpha=0.6))

    figure, axes = _trial_panels(chains, f"{title}: accuracy over the threshold θ", draw)
    ticks = _decades(positive)
    for axis in axes:
        axis.set_xscale("symlog", linthresh=ticks[1])
        axis.set_xlim(0, 1.1 * max(positive, default=1.0))
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
    edges(axes, _ACROSS, "threshold θ (mean activation)", "accuracy − best (pp)")
    line = {"color": "#555555", "linewidth": 0.8}
    _key(figure, {_SELECTED: {**_POINTS[_SELECTED], "linestyle": "-"}, _WITHIN: line})
    return figure


def _decades(positive: Sequence[float]) -> list[float]:
    """0 and up to four powers of ten from the smallest of the values to the largest."""
    if not positive:
        return [0.0, 1.0]
    first, last = (math.floor(math.log10(v)) for v in (min(positive), max(positive)))
    step = max(1, math.ceil((last - first) / 3))
    return [0.0, *(10.0**e for e in range(first, last + 1, step))]


def _key(figure: Figure, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """The legend of the panels of trials."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Line2D([], [], label=name, **dict(s)) for name, s in styles.items()]
    handles.append(Line2D([], [], label="floor", **_FLOOR))
    handles.append(Patch(color=_BAND, alpha=0.25, linewidth=0, label="the margin"))
    figure.legend(
        handles=handles, loc="lower left", ncols=len(handles), fontsize=SMALL, frameon=False,
        borderaxespad=0.2, handletextpad=0.5, columnspacing=1.2,
    )  # fmt: skip
