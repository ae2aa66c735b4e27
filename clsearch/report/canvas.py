"""What the figures share: panels laid out in inches, the look of each method, legends.

matplotlib through its objects alone: no pyplot, no state of its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clsearch.report.tables import ChainView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALL, TEXT, TITLE = 7.5, 9, 10.5
GREY = "#777777"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
END: dict[str, Any] = {
    "color": "black", "marker": "x", "linestyle": "none", "markersize": 8, "markeredgewidth": 1.8,
}  # fmt: skip
"""A chain's early end."""
TRANSFER: dict[str, Any] = {
    "color": "black", "marker": "o", "linestyle": "none", "markersize": 9, "markeredgewidth": 1.2,
    "markerfacecolor": "none",
}  # fmt: skip
"""A task learned by last-layer transfer."""

Methods = Mapping[str, list[ChainView]]


def panels(
    count: int,
    across: int,
    cell: tuple[float, float],
    title: str,
    *,
    below: float = 0.55,
    right: float = 0.15,
    gap: tuple[float, float] = (0.2, 0.35),
    least: float = 0,
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` equal panels; sizes in inches, `least` the figure's width."""
    from matplotlib.figure import Figure

    columns = min(count, across)
    rows = math.ceil(count / columns)
    left, top = 0.75, 0.65
    width = left + columns * cell[0] + (columns - 1) * gap[0] + right
    height = top + rows * cell[1] + (rows - 1) * gap[1] + below
    total = max(width, 0.095 * len(title), least)
    figure = Figure(figsize=(total, height))
    figure.text(0.12 / total, 1 - 0.08 / height, title, va="top", fontsize=TITLE, weight="bold")
    axes = []
    for i in range(count):
        row, column = divmod(i, columns)
        x = left + column * (cell[0] + gap[0])
        y = height - top - cell[1] - row * (cell[1] + gap[1])
        place = (x / total, y / height, cell[0] / total, cell[1] / height)
        axis = figure.add_axes(place)
        axis.tick_params(labelsize=SMALL, length=2.5, pad=2)
        axis.spines[["top", "right"]].set_visible(False)
        axes.append(axis)
    return figure, axes


def edges(axes: Sequence[Axes], across: int, x: str, y: str) -> None:
    """Names the axes once for each row and column; the panels share their ranges."""
    columns = min(len(axes), across)
    for i, axis in enumerate(axes):
        lowest = i + columns >= len(axes)
        axis.tick_params(labelbottom=lowest, labelleft=i % columns == 0)
        if lowest:
            axis.set_xlabel(x, fontsize=TEXT, labelpad=2)
        if i % columns == 0:
            axis.set_ylabel(y, fontsize=TEXT, labelpad=2)


def style(i: int) -> dict[str, Any]:
    """Colour, marker and line style of the i-th method."""
    return {
        "color": _COLOURS[i % len(_COLOURS)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "linestyle": _LINES[i % len(_LINES)],
        "linewidth": 1.6,
        "markersize": 5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def short(label: str) -> str:
    return label if len(label) <= 28 else label[:27] + "…"


def width(units: Collection[int]) -> str:
    """The neurons of a layer as a title says them; several where it has grown."""
    if not units:
        return ""
    said = "-".join(map(str, dict.fromkeys((min(units), max(units)))))
    return f", {said} neurons"


def task_ticks(tasks: int) -> list[int]:
    """Every task up to 10, then 1 and every fifth."""
    return list(range(1, tasks + 1)) if tasks <= 10 else [1, *range(5, tasks + 1, 5)]


def marks(chains: Iterable[ChainView]) -> dict[str, dict[str, Any]]:
    """The marks that these chains get, by what they say."""
    chains = list(chains)
    found = {}
    if any(chain.end for chain in chains):
        found["chain ended early"] = END
    if any(chain.transfers for chain in chains):
        found["last-layer transfer"] = TRANSFER
    return found


def _marks(methods: Methods) -> dict[str, dict[str, Any]]:
    return marks(chain for chains in methods.values() for chain in chains)


def _legend_columns(methods: Methods, width: float) -> int:
    labels = [*map(short, methods), *_marks(methods)]
    return max(1, min(len(labels), int(width / (0.065 * max(map(len, labels)) + 0.75))))


def legend_height(methods: Methods, width: float) -> float:
    """Inches that `legend` takes below a figure so wide."""
    count = len(methods) + len(_marks(methods))
    return 0.2 * math.ceil(count / _legend_columns(methods, width)) + 0.1


def legend(figure: Figure, methods: Methods) -> None:
    """The methods and the marks of their chains, below a figure."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], label=short(m), **style(i)) for i, m in enumerate(methods)]
    lines += [Line2D([], [], label=label, **mark) for label, mark in _marks(methods).items()]
    figure.legend(
        handles=lines, loc="lower center", ncols=_legend_columns(methods, figure.get_figwidth()),
        fontsize=TEXT, frameon=False, handlelength=3.2, borderaxespad=0.2,
    )  # fmt: skip
