"""The seams of the sequence loop: what it needs from a searcher and from a tracker.

`clsearch.search.ray_backend` is the searcher, `clsearch.tracking` the tracker. Neither Ray nor
MLflow is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from clsearch.config import Config
from clsearch.data._stored import Images
from clsearch.data.base import Samples
from clsearch.records import Chain, TaskResult, TrialRecord
from clsearch.scenarios.base import Scenario, Task, TaskData
from clsearch.store import Store
from clsearch.system import System

T = TypeVar("T")


@dataclass(frozen=True)
class SearchInfo:
    """What the tracker says of a search as a whole.

    `digest` identifies the search: the same search replayed finds its runs again by it.
    `tasks` is one mapping a task: number, name, classes, data digest, and the counts of samples
    `train`, `validation` and `test`. `joint` are the methods that train on all tasks so far.
    """

    name: str
    digest: str
    config: Mapping[str, Any]
    tasks: Sequence[Mapping[str, Any]]
    joint: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Committed:
    """A selection that became the parent of the next task, as the tracker logs it.

    `write` puts the exported model into a folder (`model.pt2` and the sample batch it was exported
    with, `example.npy`), and figures (PNG); it is called only where they are wanted, which after a
    resume they are not. None where the chain ended without a model.
    `seeded_by` is the trial key of the selection at the task before that the trials started from,
    if there was one, and `parent` the key of its commit. `metrics` are more
    accuracies of the model, as fractions.
    """

    result: TaskResult
    write: Callable[[Path], None] | None = None
    seeded_by: str | None = None
    parent: str | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)


class Tracker(Protocol):
    """Audit trail of a search. No call may block on a server, raise for a dead one, or lose data.

    Every call only appends to a durable outbox in the output folder; delivery goes on beside the
    search. Repeating a call with the same content has no further effect.
    """

    def start(self, info: SearchInfo) -> None:
        """Names the search; before any other call."""

    def trial(self, record: TrialRecord) -> None:
        """A finished trial."""

    def committed(self, commit: Committed) -> None:
        """A selection and the model it chose."""

    def finish(self, figures: Sequence[Path], metrics: Mapping[str, float], status: str) -> None:
        """The end of the search: figures and files as artifacts of the parent run, summary
        metrics (fractions), and `status` (FINISHED, FAILED or KILLED)."""

    def close(self, timeout: float) -> int:
        """Delivers what it can within `timeout` seconds; returns how many entries still wait."""


@dataclass(frozen=True)
class Job:
    """A pack to train: some trials of one chain at one task.

    `method` is the index of the chain's method in the config, `parent` the commit its trials
    start from, `parts` the tasks whose data it trains on (the current one last).
    """

    chain: Chain
    method: int
    task: int
    parent: str | None
    parts: tuple[int, ...]
    shared_head: bool
    keys: tuple[str, ...]
    hypers: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class LayerScanJob(Job):
    """Finished trials, `keys`, to be pruned layer by layer; trains nothing.

    For each trial, `starts` has the threshold found for the whole network, and `places` the key
    that what is found is stored under; `floor` is the least validation accuracy (a fraction).
    """

    starts: tuple[float, ...]
    places: tuple[str, ...]
    floor: float


@dataclass(frozen=True)
class FineTuneJob(Job):
    """A finished trial, `trial`, to be pruned at `thresholds` (by unit layer) and fine-tuned.

    The new trial is the only one of `keys`; `round` counts from 1.
    """

    trial: str
    thresholds: Mapping[str, float]
    epochs: int
    round: int


@dataclass(frozen=True)
class Shown:
    """What methods ask for in `consolidate` beside the data of the task at hand, where they do:
    images without labels, uint8 `[N, C, H, W]`, by the name of their source, and the validation
    samples of earlier tasks, by number."""

    images: Mapping[str, Images] = field(default_factory=dict)
    validation: Mapping[int, Samples] = field(default_factory=dict)


@dataclass(frozen=True)
class ConsolidateJob(Job):
    """A selected trial, the only one of `keys`, to be made what its chain remembers; trains
    nothing.

    It is pruned at `thresholds` (by unit layer) where its method prunes. `tasks` are those the
    chain has seen, `commit` is the key that the outcome is stored under.
    """

    commit: str
    thresholds: Mapping[str, float] | None
    tasks: tuple[Task, ...]
    shown: Shown


@dataclass(frozen=True)
class Ended:
    """A job that is over. `lost`: the reason, where it was lost to its workers."""

    job: Job
    lost: str = ""


Steps = Generator[Sequence[Job], Mapping[str, str], T]
"""Work that asks for jobs, goes on when all of them are over, and is told which trials were lost to
their workers, by key, with the reason."""


class Searcher(Protocol):
    """Does jobs, in parallel, wherever that is, those of the earliest task first."""

    workers: int
    """Packs that can train at the same time."""
    device: str
    """Where packs train: cpu or cuda."""
    memory: int | None
    """Bytes of a GPU's memory that one pack can count on; None on a CPU."""

    def begin(self, config: Config, store: Store) -> None:
        """A search begins, whose trials go into `store`."""

    def submit(self, jobs: Sequence[Job], data: Mapping[int, TaskData]) -> None:
        """Takes jobs and returns at once. `data` are the tasks at work, by number."""

    def wait(self) -> TrialRecord | Ended:
        """The next thing to happen to the jobs that were submitted: a finished trial, which is in
        the journal, or the end of a job, after all its trials. Raises `StoreError` if records
        cannot be written."""

    def close(self) -> None:
        """Gives the workers back, whatever they do."""


class Progress(Protocol):
    """Who watches a search. Called from the driver's main thread."""

    def begin(self, scenario: Scenario, systems: Sequence[System], config: Config) -> None: ...

    def task(self, data: TaskData, chain: Chain, planned: Sequence[str]) -> None:
        """A chain begins a task: its data, and the keys of its trials."""

    def record(self, record: TrialRecord, known: bool) -> None:
        """A finished trial; `known`: it was in the journal already."""

    def selected(self, result: TaskResult) -> None:
        """A chain's selection at a task, evaluated on test data."""

    def note(self, text: str) -> None:
        """Something the user should read."""
