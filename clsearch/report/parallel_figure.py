"""The figure of every trial's hyperparameters with what came of them: parallel coordinates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clsearch.records import Candidate
from clsearch.report.canvas import (
    GREY,
    SMALL,
    WIDTH,
    fit,
    legend,
    legend_height,
    panels,
    task_ticks,
)
from clsearch.report.hyper_figures import thinned, trials_of, tried
from clsearch.report.tables import ChainView, number
from clsearch.report.trial_figures import CHOSEN, Point, lowest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS: dict[str, dict[str, Any]] = {
    "failed": {"color": "black", "linestyle": ":", "linewidth": 0.8},
    "below the floor": {"color": "#a8a8a8", "linestyle": "-", "linewidth": 0.7},
    "within the margin": {"color": "#0072B2", "linestyle": "-", "linewidth": 0.9},
    "selected": {"color": CHOSEN, "linestyle": "-", "linewidth": 1.6},
}
"""Lines of trials, from below."""
_HEIGHT = 2.4
"""Inches of the vertical axes."""
_STAR: dict[str, Any] = {
    "marker": "*", "markersize": 9, "markeredgecolor": "black", "markeredgewidth": 0.5,
}  # fmt: skip


class _Axis:
    """One vertical axis: where a trial crosses it (0 to 1, None: not at all), and its labels."""

    def __init__(self, name: str, ticks: Mapping[float, str]) -> None:
        self.name, self.ticks = name, ticks

    @classmethod
    def ordinal(
        cls, name: str, values: Sequence[float], shown: Sequence[int] | None = None
    ) -> tuple[_Axis, dict[float, float]]:
        """An axis of values in their order, evenly spaced; `shown` are those with a label."""
        last = max(len(values) - 1, 1)
        place = {v: k / last for k, v in enumerate(values)}
        shown = thinned(len(values), _HEIGHT) if shown is None else shown
        return cls(name, {k / last: number(values[k]) for k in shown}), place


Lines = dict[str, list[list[Point]]]
"""The lines of trials, by their kind."""


def parallel(chains: Sequence[ChainView], title: str) -> Figure:
    """A line for each trial, from its task over its hyperparameters to its accuracy (of the
    unpruned trial, relative to the best of its task) and its sparsity."""
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    axes, lines = _crossed(chains)
    handles = [
        Line2D([], [], label=kind, **look, **(_STAR if kind == "selected" else {}))
        for kind, look in _KINDS.items()
        if lines[kind]
    ]
    figure, (axis,) = panels(
        1, 1, _HEIGHT, f"{title}: hyperparameters, accuracy and sparsity of every trial",
        below=0.2 + legend_height(handles), left=0.42, right=0.5, widest=WIDTH,
    )  # fmt: skip
    most = max(0.12, min(0.75, 60 / max(sum(map(len, lines.values())), 1)))
    for z, (kind, look) in enumerate(_KINDS.items(), 2):
        drawn = LineCollection(
            _segments(lines[kind]), colors=look["color"], linestyles=look["linestyle"],
            linewidths=look["linewidth"], alpha=1.0 if kind == "selected" else most, zorder=z,
            rasterized=True,
        )  # fmt: skip
        axis.add_collection(drawn)
    stars = [point for line in lines["selected"] for point in line[1:]]
    if stars:
        axis.plot(*zip(*stars, strict=True), linestyle="none", zorder=6, color=CHOSEN,
                  clip_on=False, **_STAR)  # fmt: skip
    _frame(axis, axes)
    legend(figure, handles)
    return figure


def _segments(lines: list[list[Point]]) -> list[tuple[Point, Point]]:
    """The pieces of lines between two axes, those that lines have in common once."""
    pieces = {piece for line in lines for piece in itertools.pairwise(line)}
    return sorted(piece for piece in pieces if not any(math.isnan(y) for _, y in piece))


def _crossed(chains: Sequence[ChainView]) -> tuple[list[_Axis], Lines]:
    """The axes, and where each trial crosses them."""
    values = tried(chains)
    tasks = sorted({s.task for s, _ in trials_of(chains)})
    numbers = [tasks.index(t) for t in task_ticks(tasks[-1], _HEIGHT) if t in tasks]
    (task_axis, at_task), *ordinal = [
        _Axis.ordinal("task", tasks, numbers),
        *(_Axis.ordinal(name, found) for name, found in values.items()),
    ]
    low = lowest(max((s.margin for s, _ in trials_of(chains)), default=0))
    steps = {k / 4: low * (1 - k / 4) for k in range(5)}
    axes = [
        task_axis,
        *(axis for axis, _ in ordinal),
        _Axis(
            "accuracy − best (pp)", {y: f"{v or 0:.3g}".replace("-", "−") for y, v in steps.items()}
        ),
        _Axis("sparsity (%)", {k / 5: f"{20 * k}" for k in range(6)}),
    ]
    lines: Lines = {kind: [] for kind in _KINDS}
    for selection, candidate in trials_of(chains):
        line = [at_task[selection.task]]
        for name, (_, place) in zip(values, ordinal, strict=True):
            line.append(place.get(candidate.hyperparameters.get(name, math.nan), math.nan))
        kind, accuracy = _kind(candidate), candidate.validation_accuracy
        if kind != "failed" and accuracy is not None:
            line.append(1 - max(100 * (accuracy - (selection.best or 0)), low) / low)
            line.append(candidate.sparsity)
        lines[kind].append(list(enumerate(line)))
    return axes, lines


def _kind(candidate: Candidate) -> str:
    if candidate.chosen:
        return "selected"
    if candidate.validation_accuracy is None or not math.isfinite(candidate.validation_accuracy):
        return "failed"
    return "below the floor" if candidate.accuracy is None else "within the margin"


def _frame(axis: Axes, every: Sequence[_Axis]) -> None:
    """The vertical axes with their names and the labels of their values."""
    apart = (WIDTH - 0.92) / (len(every) - 1)
    for x, one in enumerate(every):
        axis.axvline(x, color=GREY, linewidth=0.8, zorder=1.5)
        aligned = {0: "left", len(every) - 1: "right"}.get(x, "center")
        room = apart - 0.08 if aligned == "center" else apart / 2 + 0.3
        outer = {"left": -0.36 / apart, "right": 0.44 / apart}.get(aligned, 0.0)
        axis.text(x + outer, 1.045, fit(one.name, SMALL, room), fontsize=SMALL, ha=aligned,
                  weight="bold")  # fmt: skip
        for y, label in one.ticks.items():
            said = fit(label, SMALL, min(apart - 0.16, 0.6))
            beside = 0.1 if x else -0.08
            axis.text(
                x + beside / apart, y, said, fontsize=SMALL, va="center", zorder=7,
                ha="left" if x else "right",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8},
            )  # fmt: skip
    axis.set_xlim(0, len(every) - 1)
    axis.set_ylim(-0.03, 1.03)
    axis.set_axis_off()
