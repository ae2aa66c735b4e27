"""The figures of capacity: what pruning within the margin leaves of each layer, and the account of
a method that keeps its neurons, CLNP's figures 3, 4b and 5b in one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clsearch.records import LayerCapacity
from clsearch.report.accuracy_figures import lines
from clsearch.report.canvas import (
    END,
    GRID,
    TRANSFER,
    Methods,
    edges,
    grid_of,
    head,
    legend,
    legend_height,
    marks,
    method_handles,
    number_tasks,
    panels,
    width,
)
from clsearch.report.tables import ChainView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARTS: dict[str, dict[str, Any]] = {
    "reused by this task": {"facecolor": "#0072B2"},
    "of earlier tasks, not read": {"facecolor": "#c3ced6"},
    "new": {"facecolor": "#E69F00", "hatch": "////", "edgecolor": "#6b4a00"},
    "free": {"facecolor": "white", "edgecolor": "#999999", "linewidth": 0.5},
}
"""The stack of a bar, from below."""


def needed(methods: Methods, tasks: int, name: str) -> Figure:
    """Neurons needed in each layer after each task: what pruning within the margin leaves."""
    selections = [r.selection for chains in methods.values() for c in chains for r in c.results]
    layers = next((s.layers for s in selections if s.free), ()) or ("no layer",)
    across = grid_of(len(layers))
    handles = method_handles(methods)
    title = f"{name}: neurons needed within the margin"
    figure, axes = panels(len(layers), across, 1.6, title, below=0.45 + legend_height(handles))
    for layer, (axis, label) in enumerate(zip(axes, layers, strict=True)):

        def used(chain: ChainView, layer: int = layer) -> list[float | None]:
            learned = [r.selection for r in chain.results[: len(chain.matrix)]]
            known = [layer < len(s.free) for s in learned]
            return [
                1 - s.free[layer] / s.units[layer] if k else None
                for s, k in zip(learned, known, strict=True)
            ]

        lines(axis, methods, tasks, used)
        axis.set_ylim(-3, 103)
        axis.set_yticks(range(0, 101, 20))
        units = {s.units[layer] for s in selections if layer < len(s.free)}
        head(axis, label + width(units))
    edges(axes, across, "after task", "neurons needed (%)")
    legend(figure, handles)
    return figure


def account(chains: Sequence[ChainView], title: str) -> Figure:
    """A panel for each unit layer, a bar for each task: the share of the layer's neurons that all
    tasks so far use, and what is free, of the width it has at that task. Mean over seeds."""
    results = [r for chain in chains for r in chain.results]
    tasks = max(r.selection.task for r in results)
    layers = [layer.layer for layer in next(r.capacity for r in results if r.capacity)]
    handles, across = _key(chains), grid_of(len(layers))
    figure, axes = panels(
        len(layers),
        across,
        1.5,
        f"{title}: neurons by task",
        below=0.42 + legend_height(handles),
        gap=(0.22, 0.36),
    )
    for i, (axis, label) in enumerate(zip(axes, layers, strict=True)):
        of_layer = [(r.selection.task, r.capacity[i]) for r in results if r.capacity]
        learned = sorted({task for task, _ in of_layer})
        bottom = [0.0] * len(learned)
        for part, look in _PARTS.items():
            heights = [
                statistics.fmean(_share(layer, part) for at, layer in of_layer if at == task)
                for task in learned
            ]
            axis.bar(learned, heights, 0.78, bottom, zorder=2, **{"linewidth": 0, **look})
            bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
        for chain in chains:
            for task in chain.transfers:
                axis.plot(task, 106, clip_on=False, zorder=3, **{**TRANSFER, "markersize": 6})
            if chain.end:
                axis.plot(chain.end.task, 106, clip_on=False, zorder=3, **{**END, "markersize": 5})
        axis.set_ylim(0, 112)
        axis.set_yticks(range(0, 101, 20))
        number_tasks(axis, tasks)
        axis.grid(axis="y", zorder=0, **GRID)
        axis.set_axisbelow(True)
        head(axis, label + width({layer.units for _, layer in of_layer}))
    edges(axes, across, "after task", "neurons (%)")
    legend(figure, handles)
    return figure


def _share(layer: LayerCapacity, part: str) -> float:
    """A part of the stack in percent of the layer."""
    counts = (layer.reused, layer.used - layer.new - layer.reused, layer.new, layer.free)
    return 100 * dict(zip(_PARTS, counts, strict=True))[part] / layer.units


def _key(chains: Sequence[ChainView]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(label=part, **{"linewidth": 0, **look}) for part, look in reversed(_PARTS.items())
    ]
    return handles + [
        Line2D([], [], label=label, **{**mark, "markersize": 6})
        for label, mark in marks(chains).items()
    ]
