"""The tables of a run: for the terminal, for Markdown, and as Parquet files."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from clsearch.messages import printable
from clsearch.metrics import Matrix, accuracy_matrix, average_accuracy, average_forgetting
from clsearch.records import Selection, Tally, TaskResult

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 80
_TASKS_ACROSS = 8
"""So many tasks stand side by side in 80 columns; more stand one below the other."""
_LAYERS_ACROSS = 3
ENDED, TRANSFER = "†", "‡"
TRANSFERRED = (
    "Last-layer transfer: no free neurons were left in the last hidden layer, and the output layer "
    "alone was learned."
)


@dataclass(frozen=True)
class ChainView:
    """A chain's results in the order of its tasks."""

    seed: int
    results: tuple[TaskResult, ...]

    @cached_property
    def matrix(self) -> Matrix:
        """R[i][j] over the tasks it learned."""
        return accuracy_matrix(self.results)

    @property
    def end(self) -> Selection | None:
        """The selection that ended the chain early; None if it goes on."""
        last = self.results[-1].selection
        return None if last.outcome == "selected" else last

    @property
    def last(self) -> Selection | None:
        """The selection of the last task it learned."""
        learned = len(self.matrix)
        return self.results[learned - 1].selection if learned else None

    @property
    def transfers(self) -> list[int]:
        """The tasks that it learned by last-layer transfer."""
        return [r.selection.task for r in self.results if r.transfer]

    @property
    def memory_bytes(self) -> int | None:
        """Bytes it remembers beside its parameters after the last task it learned."""
        learned = len(self.matrix)
        return self.results[learned - 1].memory_bytes if learned else None

    def curve(self, metric: Callable[[Matrix], float | None]) -> list[float | None]:
        """A metric after each learned task."""
        return [metric(self.matrix[: i + 1]) for i in range(len(self.matrix))]


def by_method(results: Sequence[TaskResult]) -> dict[str, list[ChainView]]:
    """The chains of each method label by seed; labels in the order they first appear."""
    found: dict[str, dict[int, list[TaskResult]]] = {}
    for result in results:
        chain = result.selection
        found.setdefault(chain.method, {}).setdefault(chain.seed, []).append(result)
    return {
        method: [
            ChainView(seed, tuple(sorted(seeds[seed], key=lambda r: r.selection.task)))
            for seed in sorted(seeds)
        ]
        for method, seeds in found.items()
    }


@dataclass(frozen=True)
class Sheet:
    """A table as text: a header, rows of cells, and a note. Columns in `text` read as words."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: frozenset[int] = frozenset({0})
    note: str = ""

    def print(self, console: Console) -> None:
        """For the terminal: fits 80 columns, wraps words, cuts nothing off."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
        for i, name in enumerate(self.header):
            words = i in self.text
            justify: Literal["left", "right"] = "left" if words else "right"
            table.add_column(Text(name), justify=justify, overflow="fold", no_wrap=not words)
        for row in self.rows:
            table.add_row(*map(Text, row))
        console.print(Text(self.title, style="bold"), table, sep="\n")
        console.print(Text(self.note + "\n" if self.note else ""))

    def markdown(self) -> str:
        """A heading, the table and its note."""
        lines = [f"### {escaped(self.title)}", "", _piped(self.header)]
        lines.append(
            "|" + "|".join("---" if i in self.text else "--:" for i in self._columns) + "|"
        )
        lines += [_piped(row) for row in self.rows]
        return "\n".join([*lines, "", *([escaped(self.note), ""] if self.note else [])])

    @property
    def _columns(self) -> range:
        return range(len(self.header))


def sheets(trials: Tally, results: Sequence[TaskResult]) -> list[Sheet]:
    """What a run came to: result, accuracy by task, selected hyperparameters, ended chains."""
    methods = by_method(results)
    if not methods:
        return [Sheet("Result", ("method",), (), note="No task has been finished yet.")]
    tasks = max(r.selection.task for r in results)
    ended = ended_sheet(methods)
    return [
        _result_sheet(methods, tasks, trials),
        *_free_sheets(methods),
        *_accuracy_sheets(methods, tasks),
        hyperparameter_sheet(methods),
        *([ended] if ended.rows else []),
    ]


def print_tables(console: Console, trials: Tally, results: Sequence[TaskResult]) -> None:
    """Prints the tables of a run; legible without a terminal too."""
    for sheet in sheets(trials, results):
        sheet.print(console)


def _result_sheet(methods: Mapping[str, list[ChainView]], tasks: int, trials: Tally) -> Sheet:
    few = all(len(free) <= _LAYERS_ACROSS for free in map(free_neurons, methods.values()))
    rows = []
    for method, chains in methods.items():
        learned = sorted({len(c.matrix) for c in chains})
        reached = "-".join(map(str, dict.fromkeys((learned[0], learned[-1]))))
        layers = " ".join(f"{name} {text}" for name, text in free_neurons(chains).items())
        rows.append(
            (
                method,
                f"{reached}/{tasks}"
                + ENDED * any(c.end for c in chains)
                + TRANSFER * any(c.transfers for c in chains),
                spread(average_accuracy(c.matrix) for c in chains),
                spread(average_forgetting(c.matrix) for c in chains),
                percent(c.last.sparsity for c in chains if c.last),
                kib(c.memory_bytes for c in chains),
                *([layers or "-"] if few else []),
            )
        )
    about = [
        "ACC: mean test accuracy over the tasks learned. Forgetting in percentage points, sparsity "
        "in percent: neurons that can be pruned within the margin; for a method that prunes, those "
        "no task so far needs, for the others, those the last task alone could spare."
    ]
    seeds = max(len(chains) for chains in methods.values())
    if seeds > 1:
        about.append(f"Mean ± standard deviation over {seeds} seeds.")
    if any(c.end for chains in methods.values() for c in chains):
        about.append(f"{ENDED} A chain ended early: fewer tasks or seeds than the others.")
    if any(c.transfers for chains in methods.values() for c in chains):
        about.append(f"{TRANSFER} {TRANSFERRED}")
    about.append("KiB: what the method remembers beside the network.")
    header = ("method", "tasks", "ACC %", "forgetting", "sparsity", "KiB", "free neurons")
    note = " ".join([*about, *([f"{trials}."] if trials.statuses else [])])
    return Sheet("Result", header if few else header[:-1], tuple(rows), frozenset({0, 6}), note)


def free_neurons(chains: Sequence[ChainView]) -> dict[str, str]:
    """By layer "free/units" after the last task, mean over seeds; empty without any."""
    counted = [c.last for c in chains if c.last and c.last.free]
    if not counted:
        return {}
    means = (statistics.fmean(column) for column in zip(*(s.free for s in counted), strict=True))
    widths = (statistics.fmean(column) for column in zip(*(s.units for s in counted), strict=True))
    cells = zip(counted[0].layers, means, widths, strict=True)
    return {layer: f"{free:.0f}/{units:.0f}" for layer, free, units in cells}


def _free_sheets(methods: Mapping[str, list[ChainView]]) -> list[Sheet]:
    """Free neurons by layer, layers downwards, where they are too many for the result's rows."""
    cells = {method: free_neurons(chains) for method, chains in methods.items()}
    layers = max(cells.values(), key=len)
    if len(layers) <= _LAYERS_ACROSS:
        return []
    title = "Free neurons after the last task"
    return [
        Sheet(
            title,
            ("layer", *group),
            tuple((layer, *(cells[m].get(layer, "-") for m in group)) for layer in layers),
        )
        for group in _groups(list(cells), 10)
    ]


def _accuracy_sheets(methods: Mapping[str, list[ChainView]], tasks: int) -> list[Sheet]:
    """Mean over seeds of ACC after each task; tasks across while they fit, else downwards."""
    curves = {
        method: [c.curve(average_accuracy) for c in chains] for method, chains in methods.items()
    }
    late = {m: {t for c in chains for t in c.transfers} for m, chains in methods.items()}
    cells = {
        m: [_after(found, t) + TRANSFER * (t + 1 in late[m]) for t in range(tasks)]
        for m, found in curves.items()
    }
    title = "Average test accuracy % after each task"
    if tasks <= _TASKS_ACROSS:
        header = ("method", *map(str, range(1, tasks + 1)))
        return [Sheet(title, header, tuple((m, *cells[m]) for m in cells))]
    found = []
    for group in _groups(list(cells)):
        rows = tuple((str(t + 1), *(cells[m][t] for m in group)) for t in range(tasks))
        found.append(Sheet(title, ("task", *group), rows, frozenset()))
    return found


def _after(curves: Sequence[Sequence[float | None]], task: int) -> str:
    """Mean at one task over the chains that learned it, marked where some did not."""
    values = [c[task] for c in curves if task < len(c)]
    return percent(values) + ENDED * (0 < len(values) < len(curves))


def _groups(labels: Sequence[str], least: int = 6) -> list[list[str]]:
    """Labels in groups whose columns, `least` wide, fit the width beside a narrow first one."""
    groups: list[list[str]] = []
    room = 0
    for label in labels:
        need = max(len(label), least) + 3
        if not groups or need > room:
            groups.append([])
            room = WIDTH - 10
        groups[-1].append(label)
        room -= need
    return groups


def hyperparameter_sheet(methods: Mapping[str, list[ChainView]]) -> Sheet:
    """One row for each distinct choice of a method, with the tasks that made it."""
    several = any(len(chains) > 1 for chains in methods.values())
    rows = []
    for method, chains in methods.items():
        chosen: defaultdict[str, defaultdict[int, list[int]]]
        chosen = defaultdict(lambda: defaultdict(list))
        for chain in chains:
            for result in chain.results[: len(chain.matrix)]:
                text = _hypers(result.selection.hyperparameters)
                chosen[text][chain.seed].append(result.selection.task)
        for text, seeds in chosen.items():
            where = (f"seed {s}: " * several + _ranges(t) for s, t in seeds.items())
            rows.append((method, text, "; ".join(where)))
    header = ("method", "hyperparameters", "selected at tasks")
    return Sheet("Selected hyperparameters", header, tuple(rows), frozenset({0, 1, 2}))


def ended_sheet(methods: Mapping[str, list[ChainView]]) -> Sheet:
    rows = tuple(
        (method, str(chain.seed), str(end.task), end.outcome, printable(end.reason))
        for method, chains in methods.items()
        for chain in chains
        if (end := chain.end)
    )
    header = ("method", "seed", "task", "ended", "reason")
    return Sheet("Chains that ended early", header, rows, frozenset({0, 3, 4}))


def spread(values: Iterable[float | None]) -> str:
    """Mean ± sample standard deviation of fractions, in percent; without ± for one value."""
    known = [100 * v for v in values if v is not None]
    if not known:
        return "-"
    mean = _fixed(statistics.fmean(known), 2)
    return f"{mean} ± {statistics.stdev(known):.2f}" if len(known) > 1 else mean


def percent(values: Iterable[float | None]) -> str:
    """Mean of fractions in percent with one decimal; "-" for none."""
    known = [100 * v for v in values if v is not None]
    return _fixed(statistics.fmean(known), 1) if known else "-"


def kib(values: Iterable[int | None]) -> str:
    """Mean of bytes in KiB, below 10 with a decimal; "-" for none."""
    known = [v / 1024 for v in values if v is not None]
    if not known:
        return "-"
    mean = statistics.fmean(known)
    return f"{mean:,.{int(0 < mean < 10)}f}"


def _fixed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def number(value: float) -> str:
    """A hyperparameter in three digits, without an exponent where that is as short."""
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e6 else text


def _hypers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={values[name]:g}" for name in sorted(values)) or "-"


def _ranges(tasks: Sequence[int]) -> str:
    """[1, 3, 4, 5] to "1, 3-5"."""
    parts = []
    for _, run in itertools.groupby(enumerate(tasks), key=lambda pair: pair[1] - pair[0]):
        numbers = [task for _, task in run]
        parts.append("-".join(map(str, dict.fromkeys((numbers[0], numbers[-1])))))
    return ", ".join(parts)


_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>#|&~"})


def escaped(text: str) -> str:
    """Text in one line that Markdown shows as it is, HTML in it too."""
    return " ".join(text.split()).translate(_SPECIAL)


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"
