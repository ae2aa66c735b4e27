"""The figures of test accuracy: curves along the sequence, task by task, and the matrix."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from clsearch.metrics import average_accuracy, average_forgetting, forgetting
from clsearch.report.canvas import (
    END,
    GREY,
    GRID,
    SMALL,
    TEXT,
    TRANSFER,
    WIDTH,
    Methods,
    edges,
    head,
    inches,
    legend,
    legend_height,
    method_handles,
    number_tasks,
    panels,
    style,
    task_ticks,
    width_of,
)
from clsearch.report.tables import ChainView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Callable[[ChainView], Sequence[float | None]]
"""A value, as a fraction, for each task of a chain."""


def lines(axis: Axes, methods: Methods, tasks: int, curve: Curve, marked: bool = True) -> None:
    """Mean over seeds of each method's curve, ± standard deviation; `marked`: ends of chains
    crossed, tasks of last-layer transfer circled."""
    step = math.ceil(tasks / 8)
    for i, chains in enumerate(methods.values()):
        curves = [curve(chain) for chain in chains]
        columns = [[c[t] for c in curves if t < len(c)] for t in range(tasks)]
        points = [
            (t + 1, statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else 0.0)
            for t, column in enumerate(columns)
            if (known := [100 * v for v in column if v is not None])
        ]
        if not points:
            continue
        x, mean, spread = (list(values) for values in zip(*points, strict=True))
        axis.plot(x, mean, markevery=(i % step, step), zorder=3, **style(i))
        if any(spread):
            low = [m - s for m, s in zip(mean, spread, strict=True)]
            high = [m + s for m, s in zip(mean, spread, strict=True)]
            colour = style(i)["color"]
            axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
        for chain, values in zip(chains, curves, strict=True) if marked else ():
            if chain.end and values and values[-1] is not None:
                axis.plot(len(values), 100 * values[-1], zorder=5, **END)
            for task in chain.transfers:
                if (value := values[task - 1]) is not None:
                    axis.plot(task, 100 * value, zorder=4, **TRANSFER)
    axis.grid(axis="y", **GRID)
    number_tasks(axis, tasks)


def _at_least(axis: Axes, span: float) -> None:
    """Widens the y-range to `span`, so that noise does not fill the panel."""
    low, high = axis.get_ylim()
    room = (span - (high - low)) / 2
    if room > 0:
        axis.set_ylim(low - room, high + room)


def _pair(
    methods: Methods, tasks: int, title: str, curves: Sequence[tuple[Curve, str]], x: str
) -> Figure:
    """Accuracy and forgetting side by side, a line for each method."""
    handles = method_handles(methods)
    figure, axes = panels(2, 2, 2.3, title, below=0.45 + legend_height(handles), gap=(0.6, 0.4))
    for axis, (curve, label) in zip(axes, curves, strict=True):
        lines(axis, methods, tasks, curve, marked=x == "after task")
        axis.set_ylabel(label, fontsize=TEXT)
        axis.set_xlabel(x, fontsize=TEXT, labelpad=2)
        _at_least(axis, 2)
    if tasks == 1:
        axes[1].text(1, 0.5, "needs two tasks", ha="center", fontsize=TEXT, color=GREY)
    legend(figure, handles)
    return figure


def _spread_of(methods: Methods) -> str:
    counts = sorted({len(chains) for chains in methods.values()})
    seeds = "-".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return f" (mean ± standard deviation, {seeds} seeds)" if counts[-1] > 1 else ""


def along(methods: Methods, tasks: int, name: str) -> Figure:
    """Average accuracy and average forgetting after each task."""
    title = f"{name}: accuracy and forgetting on test data{_spread_of(methods)}"
    curves = [
        (partial(ChainView.curve, metric=average_accuracy), "average accuracy so far (%)"),
        (partial(ChainView.curve, metric=average_forgetting), "average forgetting (pp)"),
    ]
    return _pair(methods, tasks, title, curves, "after task")


def by_task(methods: Methods, tasks: int, name: str) -> Figure:
    """What is left of each task in the end: its accuracy, and how much of it was forgotten."""
    title = f"{name}: each task in the end, on test data{_spread_of(methods)}"

    def final(chain: ChainView) -> Sequence[float | None]:
        return chain.matrix[-1][: len(chain.matrix)] if chain.matrix else ()

    curves: list[tuple[Curve, str]] = [
        (final, "accuracy in the end (%)"),
        (lambda chain: forgetting(chain.matrix), "forgetting (pp)"),
    ]
    return _pair(methods, tasks, title, curves, "task")


def matrices(methods: Methods, tasks: int, name: str) -> Figure:
    """R[i][j] of each method, mean over seeds, as a heat map; numbers in it up to 10 tasks."""
    import numpy as np

    across = 4 if len(methods) == 4 or len(methods) > 6 else 3
    title = f"{name}: test accuracy on each task after each task"
    figure, axes = panels(
        len(methods),
        across,
        1.8 if across == 3 else 1.35,
        title,
        left=0.55,
        right=0.75,
        gap=(0.2, 0.35),
        widest=2.1,
    )
    grids = []
    for chains in methods.values():
        grid = np.full((tasks, tasks), np.nan)
        for i, j in itertools.product(range(tasks), repeat=2):
            rows = [c.matrix[i] for c in chains if i < len(c.matrix)]
            known = [v for row in rows if j < len(row) and (v := row[j]) is not None]
            if known:
                grid[i, j] = 100 * statistics.fmean(known)
        grids.append(grid)
    measured = [float(np.nanmin(g)) for g in grids if not np.isnan(g).all()]
    low = min(90.0, 10 * math.floor(min(measured, default=0) / 10))
    image: Any = None
    for axis, method, grid in zip(axes, methods, grids, strict=True):
        extent = (0.5, tasks + 0.5, tasks + 0.5, 0.5)
        image = axis.imshow(grid, cmap="cividis", vmin=low, vmax=100, extent=extent, aspect="auto")
        head(axis, method, TEXT)
        axis.set_xticks(task_ticks(tasks, width_of(axis)))
        axis.set_yticks(task_ticks(tasks, 1.5))
        if np.isnan(grid).all():
            middle = (tasks + 1) / 2
            axis.text(middle, middle, "no task learned", ha="center", fontsize=TEXT, color=GREY)
        elif tasks <= 10:
            _numbers(axis, grid, low)
    edges(axes, across, "tested on task", "after task")
    place = axes[min(len(axes), across) - 1].get_position()
    bar = figure.add_axes((place.x1 + 0.1 / WIDTH, place.y0, 0.1 / WIDTH, place.height))
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=SMALL)
    bar.set_ylabel("accuracy (%)", fontsize=SMALL)
    return figure


def _numbers(axis: Axes, grid: Any, low: float) -> None:
    """Writes the accuracies into the cells of a heat map."""
    import numpy as np

    cell = 0.94 * width_of(axis) / len(grid)
    exact = inches("100.0", SMALL) < cell
    size = SMALL if inches("100", SMALL) < cell else SMALL * cell / inches("100", SMALL)
    for (i, j), value in np.ndenumerate(grid):
        if not np.isnan(value):
            shade = "black" if value > (low + 100) / 2 else "white"
            text = f"{value:.1f}" if exact else f"{value:.0f}"
            axis.text(j + 1, i + 1, text, ha="center", va="center", fontsize=size, color=shade)
