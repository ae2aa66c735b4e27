"""What the figures share: a page's width, panels laid out in inches, the look of each method.

matplotlib through its objects alone: no pyplot, no state of its own. Every text is measured before
it is placed, so that none overlaps another or is cut, whatever the labels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from clsearch.report.tables import ChainView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.2
"""Inches of every figure: what a printed page holds, so that text keeps its size in print."""
SMALL, TEXT, TITLE = 7, 8, 9.5
GREY = "#666666"
GRID: dict[str, Any] = {"color": "#dddddd", "linewidth": 0.6}
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

Methods = Mapping[str, Sequence[ChainView]]
"""The chains behind each line of a figure, by the label of the line."""


@lru_cache(maxsize=4096)
def inches(text: str, size: float, weight: str = "normal") -> float:
    """The width of a line of text in a figure."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / 72


def fit(text: str, size: float, room: float) -> str:
    """The text, or its beginning and its end where it is wider than so many inches."""
    if inches(text, size) <= room:
        return text
    for kept in range(len(text) - 1, 1, -1):
        cut = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
        if inches(cut, size) <= room:
            return cut
    return "…"


def _lines(text: str, room: float) -> list[str]:
    """The words of a title in lines of so many inches."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and inches(longer, TITLE, "bold") <= room:
            lines[-1] = longer
        else:
            lines.append(word if inches(word, TITLE, "bold") <= room else fit(word, TITLE, 4))
    return lines


def grid_of(count: int) -> int:
    """Panels side by side, of so many."""
    return count if count < 4 else 2 if count == 4 else 3 if count < 7 else 4 if count < 13 else 5


def panels(
    count: int,
    across: int,
    height: float,
    title: str,
    *,
    below: float = 0.5,
    left: float = 0.6,
    right: float = 0.12,
    gap: tuple[float, float] = (0.2, 0.32),
    widest: float = 4.0,
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` equal panels as wide as a page; sizes in inches."""
    from matplotlib.figure import Figure

    columns = min(count, across)
    rows = math.ceil(count / columns)
    wide = min(widest, (WIDTH - left - right - (columns - 1) * gap[0]) / columns)
    said = _lines(title, WIDTH - 0.24)
    top = 0.36 + 0.17 * len(said)
    total = top + rows * height + (rows - 1) * gap[1] + below
    figure = Figure(figsize=(WIDTH, total))
    place = (0.1 / WIDTH, 1 - 0.08 / total)
    figure.text(*place, "\n".join(said), va="top", fontsize=TITLE, weight="bold")
    axes = []
    for i in range(count):
        row, column = divmod(i, columns)
        x = left + column * (wide + gap[0])
        y = total - top - height - row * (height + gap[1])
        axis = figure.add_axes((x / WIDTH, y / total, wide / WIDTH, height / total))
        axis.tick_params(labelsize=SMALL, length=2.5, pad=2)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axes.append(axis)
    return figure, axes


def width_of(axis: Axes) -> float:
    """Inches of a panel from left to right."""
    return float(axis.get_position().width) * WIDTH


def head(axis: Axes, text: str, size: float = SMALL) -> None:
    """The heading of a panel, as much of it as fits."""
    axis.set_title(fit(text, size, width_of(axis) + 0.1), fontsize=size, pad=3, y=1.0)


def edges(axes: Sequence[Axes], across: int, x: str, y: str) -> None:
    """Names the axes once for each row and column; the panels share their ranges."""
    columns = min(len(axes), across)
    for i, axis in enumerate(axes):
        lowest = i + columns >= len(axes)
        axis.tick_params(labelbottom=lowest, labelleft=i % columns == 0)
        if lowest:
            axis.set_xlabel(x, fontsize=SMALL, labelpad=2)
        if i % columns == 0:
            axis.set_ylabel(y, fontsize=SMALL, labelpad=2)


def style(i: int) -> dict[str, Any]:
    """Colour, marker and line style of the i-th method; 24 pairs of the last two, for grey."""
    return {
        "color": _COLOURS[i % len(_COLOURS)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "linestyle": _LINES[i % len(_LINES)],
        "linewidth": 1.4,
        "markersize": 5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def width(units: Collection[int]) -> str:
    """The neurons of a layer as a title says them; several where it has grown."""
    if not units:
        return ""
    said = "-".join(map(str, dict.fromkeys((min(units), max(units)))))
    return f", {said} neurons"


def task_ticks(tasks: int, room: float = 2.0) -> list[int]:
    """Tasks to number on an axis of so many inches: all, or 1 and every second, fifth, …."""
    need = inches(f"{tasks}", SMALL) + 0.05
    steps = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    step = next((s for s in steps if tasks * need <= room * s), tasks)
    if step <= 2:
        return list(range(1, tasks + 1, step))
    return [*([1] if (step - 1) * room >= tasks * need else []), *range(step, tasks + 1, step)]


def number_tasks(axis: Axes, tasks: int) -> None:
    """Ticks of an x-axis of tasks."""
    axis.set_xlim(0.4, tasks + 0.6)
    axis.set_xticks(task_ticks(tasks, width_of(axis)))


def marks(chains: Iterable[ChainView]) -> dict[str, dict[str, Any]]:
    """The marks that these chains get, by what they say."""
    chains = list(chains)
    found = {}
    if any(chain.end for chain in chains):
        found["chain ended early"] = END
    if any(chain.transfers for chain in chains):
        found["last-layer transfer"] = TRANSFER
    return found


def method_handles(methods: Methods) -> list[Any]:
    """The methods and the marks of their chains, for a legend."""
    from matplotlib.lines import Line2D

    every = marks(chain for chains in methods.values() for chain in chains)
    lines = [Line2D([], [], label=m, **style(i)) for i, m in enumerate(methods)]
    return lines + [Line2D([], [], label=label, **mark) for label, mark in every.items()]


_HANDLE = 0.55
"""Inches of a legend's sample with the space around it."""


def _labels(handles: Sequence[Any]) -> tuple[list[str], int]:
    """The labels of a legend as they fit, and how many stand side by side."""
    labels = [fit(str(h.get_label()), TEXT, WIDTH / 2 - _HANDLE - 0.2) for h in handles]
    widest = max((inches(label, TEXT) for label in labels), default=1)
    return labels, max(1, min(len(labels), int((WIDTH - 0.2) / (widest + _HANDLE))))


def legend_height(handles: Sequence[Any]) -> float:
    """Inches that `legend` takes below a figure."""
    labels, columns = _labels(handles)
    return 0.18 * math.ceil(len(labels) / columns) + 0.1


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend below a figure."""
    labels, columns = _labels(handles)
    figure.legend(
        handles=list(handles), labels=labels, loc="lower left", ncols=columns, fontsize=TEXT,
        frameon=False, handlelength=2.8, handletextpad=0.5, columnspacing=1.0, borderaxespad=0.2,
        labelspacing=0.35,
    )  # fmt: skip


def decades(positive: Sequence[float]) -> list[float]:
    """0 and up to four powers of ten from the smallest of the values to the largest."""
    if not positive:
        return [0.0, 1.0]
    first, last = (math.floor(math.log10(v)) for v in (min(positive), max(positive)))
    step = max(1, math.ceil((last - first) / 3))
    return [0.0, *(10.0**e for e in range(first, last + 1, step))]
