"""The figure of the hyperparameters selected along the sequence.

Values stand in their order, evenly spaced: a grid may be logarithmic, and may hold 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from clsearch.records import Candidate, Selection
from clsearch.report.canvas import (
    GRID,
    edges,
    grid_of,
    head,
    legend,
    legend_height,
    number_tasks,
    panels,
    style,
)
from clsearch.report.tables import ChainView, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def trials_of(chains: Sequence[ChainView]) -> Iterator[tuple[Selection, Candidate]]:
    for chain in chains:
        for result in chain.results:
            for candidate in result.selection.candidates:
                yield result.selection, candidate


def tried(chains: Sequence[ChainView]) -> dict[str, list[float]]:
    """The values of each hyperparameter that had more than one among the trials, in order."""
    found: dict[str, set[float]] = {}
    for _, candidate in trials_of(chains):
        for name, value in candidate.hyperparameters.items():
            found.setdefault(name, set()).add(value)
    return {name: sorted(found[name]) for name in sorted(found) if len(found[name]) > 1}


def selected(chains: Sequence[ChainView], title: str) -> Figure:
    """A panel for each hyperparameter, a line for each seed: what was selected at each task."""
    from matplotlib.lines import Line2D

    axes_of = tried(chains)
    tasks = max(r.selection.task for chain in chains for r in chain.results)
    across = min(grid_of(len(axes_of)), 3)
    several, apart = len(chains) > 1, min(0.16, 0.5 / len(chains))
    handles = [
        Line2D([], [], label=f"seed {chain.seed}", **style(i)) for i, chain in enumerate(chains)
    ]
    below = 0.42 + (legend_height(handles) if several else 0)
    figure, axes = panels(
        len(axes_of), across, 1.5, f"{title}: hyperparameters selected", below=below,
        gap=(0.62, 0.36),
    )  # fmt: skip
    for axis, (name, values) in zip(axes, axes_of.items(), strict=True):
        for i, chain in enumerate(chains):
            learned = [r.selection for r in chain.results[: len(chain.matrix)]]
            points = [
                (s.task + apart * (i - (len(chains) - 1) / 2), values.index(value))
                for s in learned
                if (value := s.hyperparameters.get(name)) in values
            ]
            if points:
                axis.plot(*zip(*points, strict=True), clip_on=False, zorder=3, **style(i))
        axis.set_ylim(-0.5, len(values) - 0.5)
        ticks = thinned(len(values), 1.5)
        axis.set_yticks(ticks, [number(values[k]) for k in ticks])
        axis.grid(axis="y", **GRID)
        number_tasks(axis, tasks)
        head(axis, name)
    edges(axes, across, "task", "")
    for axis in axes:
        axis.tick_params(labelleft=True)
    if several:
        legend(figure, handles)
    return figure


def thinned(count: int, height: float) -> list[int]:
    """Values to name on an axis of so many inches: the first, the last and as many between as
    there is room for."""
    most = max(2, int(height / 0.16))
    if count <= most:
        return list(range(count))
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})
