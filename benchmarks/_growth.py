"""Samples of a long search, and what of it grows from task to task."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Sample = Mapping[str, float]
"""What one look at a search saw, by column of the samples' file."""

WARM_UP = 0.2
"""The share of tasks that are not fitted: imports, caches and pools fill at first."""

FEWEST = 3
"""Tasks after the warm-up, through which a line can be laid."""

BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Quantity:
    """Something that must not grow: its column, its unit, and by how much a task it may.

    `limit` None: shown, not judged.
    """

    column: str
    name: str
    unit: str
    limit: float | None
    digits: int = 0
    per_trial: float = 0.0
    """What every trial may add beside."""


RECORD = 0.8 / 1024
"""MiB of the driver a trial, an allowance: for its name, by which nothing is sent to MLflow twice
(two while it waits), and its rows of the tables and of the selection, compressed. How much of
it each takes is not measured here."""

WHOLE = 0.02
"""Processes, threads or descriptors a task: one more in all over fifty tasks. A leak in every task
is fifty times that; the fit itself is good for a few thousandths."""

QUANTITIES = (
    Quantity("processes", "processes", "", WHOLE),
    Quantity("threads", "threads of all processes", "", 3 * WHOLE),  # Ray's own pools breathe
    Quantity("descriptors", "file descriptors of all processes", "", 10 * WHOLE),  # idem: sockets
    Quantity("driver_threads", "threads of the driver", "", WHOLE),
    Quantity("driver_descriptors", "file descriptors of the driver", "", WHOLE),
    # What a thousand tasks add is then no more than what the driver takes to start.
    Quantity("driver_memory", "memory of the driver", "MiB", 0.2, 1, RECORD),
    Quantity("delivery_memory", "memory of what delivers to MLflow", "MiB", 0.2, 1),
    Quantity("workers_memory", "memory of a worker, on the mean", "MiB", 0.5, 1),
    Quantity("ray_memory", "memory of Ray's own processes", "MiB", 0.2, 1),
    Quantity("store", "Ray's shared memory in use", "MiB", 0.1, 1),
    Quantity("folders", "Ray's and Tune's folders in /tmp", "MiB", 0.1, 2),
    Quantity("outbox", "entries that wait for MLflow", "", None),
    # Of it, testing the models of a task on one task more is a few milliseconds.
    Quantity("driver_cpu", "the driver's processor time a task", "s", 0.05, 1),
    Quantity("lasted", "seconds a task", "s", None, 1),
)

COLUMNS = (
    *("seconds", "tasks", "trials", "kills"),
    *(q.column for q in QUANTITIES if q.column != "lasted"),
)
"""Of the samples' file. `tasks` are those finished, in parts; memory and sizes are in MiB, without
files that are mapped; `driver_cpu` in seconds since the start."""


@dataclass(frozen=True)
class Growth:
    """How a quantity went on: its median in every task, and what is added a task (None: too few
    tasks came after the warm-up)."""

    quantity: Quantity
    tasks: tuple[int, ...]
    medians: tuple[float, ...]
    slope: float | None
    limit: float | None
    warm: int

    @property
    def grows(self) -> bool:
        """Never of what was not fitted."""
        return self.limit is not None and self.slope is not None and self.slope > self.limit


def read_samples(path: Path) -> list[dict[str, float]]:
    """The samples of a file, oldest first; a line cut short by a kill is left out. A column that an
    earlier soak did not have is missing in all of them."""
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows, columns = list(reader), [c for c in COLUMNS if c in (reader.fieldnames or ())]
    return [
        {name: float(row[name]) for name in columns}
        for row in rows
        if all(row.get(name) for name in columns)
    ]


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """What is added a task, of each quantity, after the warm-up."""
    by_task: dict[int, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(int(sample["tasks"]) + 1, []).append(sample)
    begins = {task: own[0] for task, own in by_task.items()}
    # Not the last: it has not ended in the samples, or is the report.
    tasks = [t for t in sorted(by_task)[:-1] if t + 1 in begins]
    warm = max(2, round(WARM_UP * len(tasks)))
    found = []
    for quantity in QUANTITIES:
        if quantity.column not in {*(samples[0] if samples else ()), "lasted"}:
            continue
        if quantity.column in ("driver_cpu", "lasted"):
            column = "seconds" if quantity.column == "lasted" else quantity.column
            values = [begins[t + 1][column] - begins[t][column] for t in tasks]
        else:
            values = [statistics.median(s[quantity.column] for s in by_task[t]) for t in tasks]
        enough = len(tasks) - warm >= FEWEST
        slope = theil_sen(tasks[warm:], values[warm:]) if enough else None
        limit = quantity.limit
        if limit is not None and tasks:
            limit += quantity.per_trial * begins[tasks[-1] + 1]["trials"] / tasks[-1]
        found.append(Growth(quantity, tuple(tasks), tuple(values), slope, limit, warm))
    return found


def theil_sen(x: Sequence[float], y: Sequence[float]) -> float:
    """The median of the slopes between all pairs of points: single outliers do not move it."""
    points = list(zip(x, y, strict=True))
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(points) for b in points[i + 1 :]]
    return statistics.median(slopes)


def table(found: Sequence[Growth]) -> list[str]:
    """The lines of the table of growth: first and last fitted task, slope, limit, verdict."""
    wide = max(len(_label(g.quantity)) for g in found)
    lines = [f"{'':<{wide}}  {'first':>9} {'last':>9} {'a task':>9} {'limit':>7}  verdict"]
    for g in found:
        q, fitted = g.quantity, g.medians[g.warm :] or g.medians
        if not fitted:
            return ["too few tasks have ended"]
        n = max(3, q.digits)
        limit = "-" if g.limit is None else f"{g.limit:.3g}"
        verdict = "shown" if g.limit is None else "GROWS" if g.grows else "steady"
        slope = f"{g.slope:>+9.{n}f}" if g.slope is not None else f"{'-':>9}"
        if g.slope is None:
            verdict = "too few tasks"
        lines.append(
            f"{_label(q):<{wide}}  {fitted[0]:>9.{q.digits}f} {fitted[-1]:>9.{q.digits}f} "
            f"{slope} {limit:>7}  {verdict}"
        )
    return lines


def curves(found: Sequence[Growth]) -> list[str]:
    """A line for each quantity: its lowest and highest median, and a bar for each task."""
    wide = max(len(_label(g.quantity)) for g in found)
    lines = []
    for g in found:
        if not g.medians:
            continue
        low, high = min(g.medians), max(g.medians)
        span = (high - low) or 1.0
        bars = "".join(BARS[round((v - low) / span * (len(BARS) - 1))] for v in g.medians)
        n = g.quantity.digits
        lines.append(f"{_label(g.quantity):<{wide}}  {low:>8.{n}f} … {high:<8.{n}f} {bars}")
    return lines


def _label(quantity: Quantity) -> str:
    unit = f", {quantity.unit}" if quantity.unit not in ("", "s") else ""
    return quantity.name + unit


DRAWN = (
    *("processes", "threads", "descriptors", "driver_memory"),
    *("delivery_memory", "workers_memory", "ray_memory", "folders", "driver_cpu", "lasted"),
)


def draw(samples: Sequence[Sample], found: Sequence[Growth], path: Path) -> None:
    """Draws every look at the search, and the median of every task over it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 11), layout="constrained")
    axes = figure.subplots(5, 2, sharex=True).flat
    by_column = {g.quantity.column: g for g in found}
    for axis, column in zip(axes, DRAWN, strict=True):
        g = by_column.get(column)
        if g is None:
            axis.set_axis_off()
            continue
        if column not in ("driver_cpu", "lasted"):
            x, y = zip(*((s["tasks"] + 1, s[column]) for s in samples), strict=True)
            axis.plot(x, y, ".", color="#b8c4d6", markersize=2, label="every look")
        middle = [t + 0.5 for t in g.tasks]
        axis.plot(middle, g.medians, color="#1f4e8c", linewidth=1.6, label="median of a task")
        axis.set_title(g.quantity.name, fontsize=10)
        axis.set_ylabel(g.quantity.unit or "number")
        axis.set_ylim(0, 1.25 * max([*g.medians, 1e-9]))
        axis.grid(alpha=0.3)
    for axis in list(figure.axes)[-2:]:
        axis.set_xlabel("task")
    figure.axes[0].legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
