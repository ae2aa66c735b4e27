"""The figure of a method's neurons: how much of each layer its tasks use, task by task.

CLNP's figures 3, 4b and 5b in one, with what is new and what is read again told apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clsearch.records import LayerCapacity
from clsearch.report.canvas import (
    END,
    SMALL,
    TRANSFER,
    edges,
    marks,
    panels,
    task_ticks,
    width,
)
from clsearch.report.tables import ChainView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACROSS = 5
_LEAST = 6.8
"""Inches that the legend takes."""
_PARTS: dict[str, dict[str, Any]] = {
    "reused by this task": {"facecolor": "#0072B2"},
    "of earlier tasks, not read": {"facecolor": "#d5dde3"},
    "new": {"facecolor": "#E69F00", "hatch": "////", "edgecolor": "#6b4a00"},
}
"""The stack of a bar, from below."""


def account(chains: Sequence[ChainView], title: str) -> Figure:
    """A panel for each unit layer, a bar for each task: the share of the layer's neurons that all
    tasks so far use, of the width it has at that task. Mean over seeds."""
    results = [r for chain in chains for r in chain.results]
    tasks = max(r.selection.task for r in results)
    layers = [layer.layer for layer in next(r.capacity for r in results if r.capacity)]
    wide = max(1.5, min(0.19 * tasks, 3.2))
    across = _ACROSS if wide < 2 else 3
    columns = min(len(layers), across)
    wide = max(wide, min(3.2, (_LEAST - 0.9) / columns - 0.2))
    figure, axes = panels(
        len(layers), across, (wide, 1.75), f"{title}: used neurons by task", below=0.8, least=_LEAST
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
            axis.bar(learned, heights, 0.78, bottom, linewidth=0, zorder=2, **look)
            bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
        for chain in chains:
            for task in chain.transfers:
                axis.plot(task, 106, clip_on=False, zorder=3, **{**TRANSFER, "markersize": 7})
            if chain.end:
                axis.plot(chain.end.task, 106, clip_on=False, zorder=3, **{**END, "markersize": 5})
        axis.set_ylim(0, 112)
        axis.set_yticks(range(0, 101, 20))
        axis.set_xlim(0.4, tasks + 0.6)
        axis.set_xticks(task_ticks(tasks))
        axis.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=0)
        axis.set_axisbelow(True)
        said = label + width({layer.units for _, layer in of_layer})
        axis.set_title(said, fontsize=SMALL, pad=3)
    edges(axes, across, "after task", "used neurons (%)")
    _key(figure, chains)
    return figure


def _share(layer: LayerCapacity, part: str) -> float:
    """A part of the stack in percent of the layer."""
    counts = (layer.reused, layer.used - layer.new - layer.reused, layer.new)
    return 100 * dict(zip(_PARTS, counts, strict=True))[part] / layer.units


def _key(figure: Figure, chains: Sequence[ChainView]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(label=part, linewidth=0, **look) for part, look in reversed(_PARTS.items())
    ]
    handles += [
        Line2D([], [], label=label, **{**mark, "markersize": 6})
        for label, mark in marks(chains).items()
    ]
    figure.legend(
        handles=handles, loc="lower left", ncols=len(handles), fontsize=SMALL, frameon=False,
        borderaxespad=0.2, handletextpad=0.5, columnspacing=1.2,
    )  # fmt: skip
