"""The figures of a run, as PNG files. Legible in grey and without colour vision.

Every method keeps one colour, marker and line style (Okabe & Ito 2008) in all of them.
"""

from __future__ import annotations

import io
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsearch.files import atomic_write
from clsearch.metrics import average_accuracy, average_forgetting
from clsearch.records import TaskResult, TrialRecord
from clsearch.report.canvas import (
    END,
    GREY,
    SMALL,
    TEXT,
    TRANSFER,
    Methods,
    edges,
    legend,
    legend_height,
    panels,
    short,
    style,
    task_ticks,
    width,
)
from clsearch.report.capacity_figure import account
from clsearch.report.tables import ChainView, by_method
from clsearch.report.trial_figures import scan, tradeoff

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 130


def write_figures(
    folder: Path,
    records: Sequence[TrialRecord],
    results: Sequence[TaskResult],
    config_name: str,
) -> list[Path]:
    """Writes every figure there is data for; returns their paths in reading order."""
    paths = []
    for name, figure in _drawn(records, results, config_name):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        paths.append(folder / f"{name}.png")
        atomic_write(paths[-1], buffer.getvalue())
    return paths


def _drawn(
    records: Sequence[TrialRecord], results: Sequence[TaskResult], name: str
) -> Iterator[tuple[str, Figure]]:
    methods = by_method(results)
    if not methods:
        return
    known = {(r.method, r.seed, r.task, r.trial_key): r for r in records}
    tasks = max(r.selection.task for r in results)
    yield "accuracy", _curves(methods, tasks, name)
    yield "accuracy_matrix", _matrices(methods, tasks, name)
    yield "capacity", _capacity(methods, tasks, name)
    for method, chains in methods.items():
        seeds = f", mean of {len(chains)} seeds" if len(chains) > 1 else ""
        if any(r.capacity for chain in chains for r in chain.results):
            yield f"capacity_{method}", account(chains, f"{name}, {method}{seeds}")
    for method, chains in methods.items():
        about = f"{name}, {method}" + (f", {len(chains)} seeds" if len(chains) > 1 else "")
        yield f"tradeoff_{method}", tradeoff(chains, about)
        yield f"scan_{method}", scan(chains, known, about)


def _lines(axis: Axes, methods: Methods, tasks: int, curve: Callable[[ChainView], Any]) -> None:
    """Mean over seeds of each method's curve, ± standard deviation; ends of chains crossed, tasks
    of last-layer transfer circled."""
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
        for chain, values in zip(chains, curves, strict=True):
            if chain.end and values and values[-1] is not None:
                axis.plot(len(values), 100 * values[-1], zorder=5, **END)
            for task in chain.transfers:
                if (value := values[task - 1]) is not None:
                    axis.plot(task, 100 * value, zorder=4, **TRANSFER)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_xlim(0.7, tasks + 0.3)
    axis.set_xticks(task_ticks(tasks))


def _at_least(axis: Axes, span: float) -> None:
    """Widens the y-range to `span`, so that noise does not fill the panel."""
    low, high = axis.get_ylim()
    room = (span - (high - low)) / 2
    if room > 0:
        axis.set_ylim(low - room, high + room)


def _curves(methods: Methods, tasks: int, name: str) -> Figure:
    """Average accuracy and forgetting after each task, a line for each method."""
    seeds = max(len(chains) for chains in methods.values())
    about = f" (mean ± standard deviation, {seeds} seeds)" if seeds > 1 else ""
    below = 0.5 + legend_height(methods, 9.5)
    title = f"{name}: accuracy and forgetting on test data{about}"
    figure, axes = panels(2, 2, (3.9, 2.9), title, below=below, gap=(0.8, 0.4))
    for axis, metric, label in zip(
        axes,
        (average_accuracy, average_forgetting),
        ("average accuracy over tasks so far (%)", "average forgetting (percentage points)"),
        strict=True,
    ):
        _lines(axis, methods, tasks, partial(ChainView.curve, metric=metric))
        axis.set_ylabel(label, fontsize=TEXT)
        axis.set_xlabel("after task", fontsize=TEXT, labelpad=2)
        _at_least(axis, 2)
    if tasks == 1:
        axes[1].text(1, 0.5, "needs two tasks", ha="center", fontsize=TEXT, color=GREY)
    legend(figure, methods)
    return figure


def _matrices(methods: Methods, tasks: int, name: str) -> Figure:
    """R[i][j] of each method, mean over seeds, as a heat map; numbers in it up to 10 tasks."""
    import numpy as np

    title = f"{name}: test accuracy on each task after each task"
    figure, axes = panels(len(methods), 4, (2.3, 2.3), title, right=0.85, gap=(0.25, 0.45))
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
        axis.set_title(short(method), fontsize=TEXT, pad=3)
        if np.isnan(grid).all():
            middle = (tasks + 1) / 2
            axis.text(middle, middle, "no task learned", ha="center", fontsize=TEXT, color=GREY)
        axis.set_xticks(task_ticks(tasks))
        axis.set_yticks(task_ticks(tasks))
        for i, j in itertools.product(range(tasks), repeat=2) if tasks <= 10 else ():
            if not np.isnan(value := grid[i, j]):
                shade = "black" if value > (low + 100) / 2 else "white"
                size = 8 if tasks <= 5 else 5.5
                text = f"{value:.1f}" if tasks <= 5 else f"{value:.0f}"
                axis.text(j + 1, i + 1, text, ha="center", va="center", fontsize=size, color=shade)
    edges(axes, 4, "tested on task", "after task")
    place = axes[min(len(axes), 4) - 1].get_position()
    width = figure.get_figwidth()
    bar = figure.add_axes((place.x1 + 0.12 / width, place.y0, 0.12 / width, place.height))
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=SMALL)
    bar.set_ylabel("accuracy (%)", fontsize=TEXT)
    return figure


def _capacity(methods: Methods, tasks: int, name: str) -> Figure:
    """Neurons needed in each layer after each task: what pruning within the margin leaves."""
    selections = [r.selection for chains in methods.values() for c in chains for r in c.results]
    layers = next((s.layers for s in selections if s.free), ())
    count = max(len(layers), 1)
    across = min(count, 4)
    below = 0.5 + legend_height(methods, 0.7 + across * 2.9)
    title = f"{name}: neurons needed within the margin"
    figure, axes = panels(count, 4, (2.7, 2.2), title, below=below)
    for layer, (axis, label) in enumerate(zip(axes, layers or ("no layer",), strict=True)):

        def used(chain: ChainView, layer: int = layer) -> list[float | None]:
            learned = [r.selection for r in chain.results[: len(chain.matrix)]]
            return [1 - s.free[layer] / s.units[layer] if s.free else None for s in learned]

        _lines(axis, methods, tasks, used)
        axis.set_ylim(-3, 103)
        said = width({s.units[layer] for s in selections if s.free})
        axis.set_title(label + said, fontsize=TEXT, pad=3)
    edges(axes, 4, "after task", "neurons needed (%)")
    legend(figure, methods)
    return figure
