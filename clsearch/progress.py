"""What a running search shows: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from clsearch.config import Config
from clsearch.messages import printable
from clsearch.protocols import Progress
from clsearch.records import Chain, Selection, TaskResult, TrialRecord
from clsearch.scenarios.base import Scenario, TaskData
from clsearch.search.plan import planned, rounds
from clsearch.system import System

EVERY = 10.0
"""Seconds between two lines of progress where the output is no terminal."""


ENOUGH = 20
"""Trained trials that the time left is told from: the first ones wait for workers to start."""


@dataclass
class _Count:
    """A chain at a task."""

    task: int
    total: int = 0
    over: bool = False
    done: int = 0
    failed: int = 0
    best: float | None = None


class ConsoleProgress(Progress):
    """Shows each task's trials by chain: done, failed, left, best so far, time left; selections
    as lines that stay.

    Use as a context manager, so that the live table is put away whatever ends the run.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, refresh_per_second=4, transient=True)
        self.counts: dict[Chain, _Count] = {}
        self.names: dict[int, str] = {}
        self.chains: list[Chain] = []
        self.rounds: dict[str, int] = {}
        self.expected = self.finished = self.known = 0
        self.started = self.last_line = time.monotonic()

    def __enter__(self) -> ConsoleProgress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live.is_started:
            self.live.stop()

    def begin(self, scenario: Scenario, systems: Sequence[System], config: Config) -> None:
        tasks = len(scenario.tasks)
        self.rounds = {s.label: rounds(s) for s in systems}
        # Trials a chain has at each task after the first, by its method's label.
        self.later = {s.label: planned(config, s, 2) + rounds(s) for s in systems}
        first = sum(planned(config, s, 1) + rounds(s) for s in systems)
        trials = first + (tasks - 1) * sum(self.later.values())
        self.expected = trials * len(config.seeds)
        self.tasks = tasks
        self.grids = {s.label: [planned(config, s, t) for t in (1, 2)] for s in systems}
        self.chains = [Chain(s.label, seed) for s in systems for seed in config.seeds]
        self._say(
            f"{config.name}: {tasks} tasks ({scenario.name}, {scenario.incremental}), "
            f"{len(systems)} methods × {len(config.seeds)} seeds = {len(self.chains)} chains, "
            f"{self.expected} trials at most"
        )

    def task(self, data: TaskData, chain: Chain, planned: Sequence[str]) -> None:
        task = data.task
        self.counts[chain] = _Count(task.number, len(planned))
        first = task.number not in self.names
        self.names[task.number] = task.name
        if first:
            self._say(
                f"{self._header(task.number)}: {len(data.train)} training, "
                f"{len(data.validation)} validation, {data.test_size} test samples, "
                f"{len(task.classes)} classes; {self._trials(task.number)} trials"
            )
        self._draw()

    def _trials(self, task: int) -> int:
        """Trials of the grids of all chains that have not ended."""
        return sum(self.grids[chain.method][min(task, 2) - 1] for chain in self.chains)

    def _header(self, task: int) -> str:
        return f"Task {task}/{self.tasks} {self.names[task]}"

    @property
    def header(self) -> str:
        """The earliest task that is not over; where none is, the last one so far."""
        at_work = [c.task for c in self.counts.values() if not c.over]
        task = min(at_work) if at_work else max(self.names, default=None)
        return "" if task is None else self._header(task)

    def record(self, record: TrialRecord, known: bool) -> None:
        count = self.counts[record.chain]
        count.total += bool(record.fine_tuned)
        count.done += 1
        self.finished += 1
        self.known += known
        if record.status == "FAILED":
            count.failed += 1
        elif record.validation_accuracy is not None:
            count.best = max(count.best or 0.0, record.validation_accuracy)
        self._draw()

    def selected(self, result: TaskResult) -> None:
        selection = result.selection
        if selection.outcome != "selected":  # a depleted chain has not begun this task either
            tasks = self.tasks - selection.task + (selection.outcome == "depleted")
            self.expected -= tasks * self.later[selection.method]
            self.chains.remove(selection.chain)
        if selection.outcome != "depleted":
            self.expected -= self.rounds.get(selection.method, 0) - len(selection.rounds)
        if selection.chain in self.counts:
            self.counts[selection.chain].over = True
        self._say(f"  task {selection.task} {selection.chain}: {_in_words(result)}")
        self._draw()

    def note(self, text: str) -> None:
        self._say(text)

    def _say(self, text: str) -> None:
        wrap = not self.console.is_terminal  # words wrap on a screen, lines stay whole in a file
        self.console.print(escape(text), soft_wrap=wrap, highlight=False)

    def _draw(self) -> None:
        if self.live.is_started:
            self.live.update(self._table())
        elif time.monotonic() - self.last_line > EVERY:
            self.last_line = time.monotonic()
            self._say(f"  {self.header}: {self.finished}/{self.expected} trials, {self._left()}")

    def _left(self) -> str:
        """The time the remaining trials take at the pace so far."""
        trained = self.finished - self.known
        left = max(self.expected - self.finished, 0)
        if trained < min(ENOUGH, self.expected):
            return "time left not known yet"
        seconds = (time.monotonic() - self.started) / trained * left
        return f"about {int(seconds // 60)} min {int(seconds % 60):02d} s left"

    def _table(self) -> Table:
        table = Table(
            title=f"{self.header} · {self.finished}/{self.expected} trials · {self._left()}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("chain", overflow="fold")
        for column in ("task", "done", "failed", "left", "best validation %"):
            table.add_column(column, justify="right", no_wrap=True)
        for chain, count in self.counts.items():
            table.add_row(
                str(chain),
                str(count.task),
                str(count.done),
                str(count.failed),
                str(max(count.total - count.done, 0)),
                "" if count.best is None else f"{100 * count.best:.2f}",
            )
        return table


def _in_words(result: TaskResult) -> str:
    """A selection in one line."""
    selection: Selection = result.selection
    if selection.outcome != "selected":
        return f"{selection.outcome}: {printable(selection.reason)}"
    hypers = " ".join(f"{n}={v:g}" for n, v in selection.hyperparameters.items())
    tests = [a for a in result.test if a is not None]
    test = f", test {100 * sum(tests) / len(tests):.2f} % over {len(tests)} tasks" if tests else ""
    tuned = "".join(
        f", fine-tuned {100 * r.pruned:.2f} to {100 * r.recovered:.2f} %"
        for r in selection.rounds
        if r.kept and r.recovered is not None
    )
    transfer = " · last-layer transfer: no free neurons" if result.transfer else ""
    return (
        f"{hypers} · validation {100 * (selection.validation_accuracy or 0):.2f} %, "
        f"sparsity {100 * (selection.sparsity or 0):.0f} %{tuned}{test}{transfer}"
    )
