"""What several tests need: real data where it is there, tiny tasks, a search in this process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import LAYOUTS, OPTIONS
from torch import Tensor

from clsearch.config import Config, parse_config
from clsearch.consolidation import consolidate
from clsearch.data._idx import IdxSource
from clsearch.data._torchvision import torchvision
from clsearch.data.base import RawData, Samples, Source
from clsearch.folder import open_store, write_config
from clsearch.jobs import run_job
from clsearch.methods.base import ChainState, Context, Evidence, Start
from clsearch.models.base import Backbone, Params
from clsearch.plugins import discover
from clsearch.protocols import Committed, ConsolidateJob, Ended, Job, SearchInfo
from clsearch.pruning.activity import mean_activity
from clsearch.records import Chain, LayerCapacity, TaskResult, TrialRecord, digest
from clsearch.rng import generator
from clsearch.scenarios.base import InputTransform, Scenario, Task, TaskData
from clsearch.sequence import Search
from clsearch.store import Store, read_commit
from clsearch.system import System, build_system, resolve
from clsearch.training.batch import PackData, Readout, answer
from clsearch.training.evidence import TrainingEvidence
from clsearch.training.loop import Trained, train_pack
from clsearch.training.step import Objective
from clsearch.trial import context_of

SOURCES = discover("clsearch.data", Source)
_LOAD = {name: kind.load for name, kind in SOURCES.items()}  # as they are before a test patches


def same_theta(backbone: Backbone, threshold: float) -> dict[str, float]:
    """One threshold for all unit layers."""
    return {unit.name: threshold for unit in backbone.unit_layers}


def shared_data() -> Path:
    """The folder of real images: `$CLSEARCH_DATA`, else `../shared/data`; skips where absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CLSEARCH_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} is not there (set CLSEARCH_DATA)")
    return folder


def source_config(name: str) -> str | dict[str, Any]:
    """What a config says of a source: its name, and how to find its layout where it has to."""
    return {"name": name, **OPTIONS[name]} if name in OPTIONS else name


def make_source(name: str, **options: Any) -> Source:
    """A source with the options that its layout needs, and others."""
    return SOURCES[name](SOURCES[name].Options(**{**OPTIONS.get(name, {}), **options}))


@cache
def load_source(name: str) -> RawData:
    """A whole source, read once a session: the real one where its files are in the shared folder
    and quick to read, else a small one in its layout; skips where there is neither."""
    source, load = make_source(name), _LOAD[name]
    if source.embedded:
        return load(source, Path("unused"), download=False)
    if name in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            LAYOUTS[name](Path(folder))
            return load(source, Path(folder), download=False)
    assert isinstance(source, IdxSource), f"{name} needs a layout in tests/layouts.py"
    root = shared_data()
    raw = root / source.dataset / "raw"
    if not raw.is_dir():
        pytest.skip(f"no real images: {raw} is not there")
    if not any(raw.glob("*.gz")):
        return load(source, root, download=False)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        dataset = getattr(torchvision().datasets, source.dataset)
        patch.setattr(dataset, "mirrors", [Path(folder).as_uri() + "/"])  # no network, ever
        copy = Path(folder) / source.dataset / "raw"
        copy.mkdir(parents=True)
        for file in raw.glob("*.gz"):
            shutil.copyfile(file, copy / file.name)
        return load(source, Path(folder), download=True)


# --- methods, trained on tasks of a few pixels ---------------------------------------------------


def tiny_tasks(
    count: int, shared: bool, samples: int = 24, classes: int = 3, seed: int = 0
) -> list[TaskData]:
    """Tasks of images 1x2x3 whose classes differ in brightness; a head each, or one for all."""
    tasks = []
    for number in range(1, count + 1):
        rng = generator("tiny", seed, number)
        head = 0 if shared else number - 1
        names = tuple(f"class-{c}" for c in range(classes))
        transform = InputTransform(255.0, (0.4,), (0.3,))
        task = Task(number, f"tiny-{number}", names, head, (1, 2, 3), transform)
        means = torch.randint(40, 200, (classes, 1, 2, 3), generator=rng)
        parts = []
        for n in (samples, max(samples // 2, classes)):
            labels = torch.arange(n) % classes
            noise = torch.randint(-40, 40, (n, 1, 2, 3), generator=rng)
            parts.append(Samples((means[labels] + noise).to(torch.uint8), labels))
        sums = digest([p.digest() for p in parts])
        tasks.append(TaskData(task, parts[0], parts[1], sums))
    return tasks


def tiny_config(method: str | dict[str, Any] = "finetune", **sections: Any) -> Config:
    """A config for one method and a tiny backbone; sections go over the defaults."""
    entry = {"name": method} if isinstance(method, str) else method
    return parse_config(
        {
            "name": "tiny",
            "scenario": {"name": "permuted"},
            "model": {"name": "mlp", "hidden": [5, 4]},
            "methods": [entry],
            "training": {"epochs": 2, "batch_size": 8},
            **sections,
        }
    )


@dataclass
class Learner:
    """One chain driven by hand: trains and consolidates task by task, as trials and commits do."""

    config: Config
    tasks: Sequence[TaskData]
    shared: bool

    def __post_init__(self) -> None:
        self.system = build_system(self.config, 0, self.tasks[0].task.shape)
        self.method = self.system.method
        space = self.system.space
        self.defaults = {n: h.default for n, h in space.items() if h.default is not None}

    def parts(self, number: int) -> list[TaskData]:
        first = 1 if self.method.uses_all_tasks else number
        return list(self.tasks[first - 1 : number])

    def data(self, number: int) -> PackData:
        return PackData.of(self.parts(number), torch.device("cpu"))

    def context(self, number: int) -> Context:
        return context_of(self.config, 0, self.parts(number), self.shared)

    def begin(self, parent: ChainState | None, number: int) -> Start:
        alone = self.method.independent or self.method.uses_all_tasks
        return self.system.begin(None if alone else parent, self.context(number))[1]

    def train(
        self,
        start: Start,
        number: int,
        hypers: Sequence[dict[str, float]] | None = None,
        regularizer_state: Mapping[str, Tensor] | None = None,
    ) -> list[Trained]:
        """The members of one pack, by number."""
        data = self.data(number)
        system = self.system.of(start.state)
        objective = Objective(
            system.backbone, system.method, system.regularizers, start, data.readout,
            regularizer_state or {},
        )  # fmt: skip
        generators = self.context(number).generator
        hypers = hypers or [self.defaults]
        members = train_pack(objective, hypers, data, self.config.training, generators)
        return sorted(members, key=lambda trained: trained.member)

    def evidence(
        self, start: Start, params: Params, number: int, running: Mapping[str, Tensor] | None = None
    ) -> TrainingEvidence:
        data, backbone = self.data(number), self.system.of(start.state).backbone

        def unlabelled(source: str) -> Tensor:
            return data.validation.inputs

        def accuracies(params: Params, state: dict[str, Tensor]) -> list[float]:
            chain = ChainState(params, state)
            return [self.accuracy(chain, n) for n in range(1, number + 1)]

        activity = mean_activity(backbone, params, data.train, start.gates, 8)
        return TrainingEvidence(
            backbone, start, params, data, self.tasks[number - 1].task, 8, activity,
            running or {}, unlabelled, accuracies,
        )  # fmt: skip

    def accuracy(self, state: ChainState, number: int) -> float:
        """On a task's validation samples."""
        right = self.logits(state, number).argmax(1) == self.tasks[number - 1].validation.labels
        return float(right.float().mean())

    def learn(
        self,
        parent: ChainState | None,
        number: int,
        threshold: float | None = None,
        hypers: Sequence[dict[str, float]] | None = None,
        member: int = 0,
    ) -> ChainState:
        """A task begun, trained and consolidated."""
        start = self.begin(parent, number)
        before = parent.regularizer_state if parent else {}
        trained = self.train(start, number, hypers, before)[member]
        assert trained.params is not None, trained.reason
        params = {**start.params, **trained.params}
        evidence = self.evidence(start, params, number, trained.running)
        thresholds = None if threshold is None else same_theta(self.system.backbone, threshold)
        system = self.system.of(start.state)
        return consolidate(system, start, evidence, thresholds, self.context(number), parent)

    def consolidate(
        self, start: Start, params: Params, evidence: Evidence, threshold: float, number: int
    ) -> ChainState:
        """The method's part alone, pruned at one threshold."""
        thresholds = same_theta(self.system.backbone, threshold)
        context, method = self.context(number), self.system.of(start.state).method
        return method.consolidate(start, params, evidence, thresholds, context)

    def logits(self, state: ChainState, number: int) -> Tensor:
        """The answers of a chain to a task's validation samples, `[N, classes]`."""
        task = self.tasks[number - 1].task
        model = self.system.model(state, task)
        assert model is not None
        data = PackData.of([self.tasks[number - 1]], torch.device("cpu")).validation
        (batch,) = data.batches(len(data))
        readout = Readout((model.head,))
        logits, _ = answer(model.backbone, model.params, batch.x, readout, model.gates)
        return logits

    def capacity(
        self, before: ChainState | None, after: ChainState, number: int
    ) -> tuple[LayerCapacity, ...] | None:
        """The account of a task."""
        method = self.system.of(after.state).method
        return method.capacity(before.state if before else {}, after, self.tasks[number - 1].task)


# --- a search in this process --------------------------------------------------------------------


class SerialSearcher:
    """A real searcher without workers: packs one after the other, in this process.

    `stop_after`: raises `KeyboardInterrupt` when so many records are in the journal.
    """

    device = "cpu"
    memory = None

    def __init__(self, workers: int = 1, stop_after: int | None = None) -> None:
        self.workers, self.stop_after = workers, stop_after
        self.keys: list[str] = []
        self.pack_sizes: list[int] = []

    def begin(self, config: Config, store: Store) -> None:
        self.config, self.store = config, store
        self.queue: list[tuple[Job, list[TaskData]]] = []
        self.under_way: Iterator[TrialRecord | Ended] = iter(())

    def submit(self, jobs: Sequence[Job], data: Mapping[int, TaskData]) -> None:
        self.queue += [(job, [data[number] for number in job.parts]) for job in jobs]
        self.queue.sort(key=lambda entry: entry[0].task)

    def wait(self) -> TrialRecord | Ended:
        while True:
            for event in self.under_way:
                return event
            self.under_way = self.run(*self.queue.pop(0))

    def run(self, job: Job, parts: Sequence[TaskData]) -> Iterator[TrialRecord | Ended]:
        """Everything that happens to a job."""
        if not isinstance(job, ConsolidateJob):
            self.pack_sizes.append(len(job.keys))
        parent = None
        if job.parent is not None:
            commit = read_commit(self.store, job.parent)
            assert commit is not None
            parent, _ = commit
        for record in run_job(self.config, job, parts, parent, self.store, torch.device("cpu")):
            self.keys.append(record.trial_key)
            if self.stop_after is not None and len(self.keys) >= self.stop_after:
                raise KeyboardInterrupt
            yield record
        yield Ended(job)

    def close(self) -> None:
        pass


class SilentTracker:
    """Takes everything, keeps the commits."""

    def __init__(self) -> None:
        self.trials: list[TrialRecord] = []
        self.commits: list[Committed] = []

    def start(self, info: SearchInfo) -> None:
        pass

    def trial(self, record: TrialRecord) -> None:
        self.trials.append(record)

    def committed(self, commit: Committed) -> None:
        self.commits.append(commit)

    def finish(self, figures: Sequence[Path], metrics: Mapping[str, float], status: str) -> None:
        pass

    def close(self, timeout: float) -> int:
        return 0


class SilentProgress:
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def begin(self, scenario: Scenario, systems: Sequence[System], config: Config) -> None:
        pass

    def task(self, data: TaskData, chain: Chain, planned: Sequence[str]) -> None:
        pass

    def record(self, record: TrialRecord, known: bool) -> None:
        pass

    def selected(self, result: TaskResult) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


def searched(out: Path, stop_after: int | None = None, **sections: Any) -> Path:
    """A real search over two tasks of digits in this process, small; its output folder.

    Without models for MLflow, which take longer than all else. `stop_after`: it is interrupted when
    so many trials have been trained.
    """
    config = resolve(
        parse_config(
            {
                "name": "small",
                "scenario": {"name": "permuted", "tasks": 2},
                "model": {"name": "mlp", "hidden": [20, 16]},
                "methods": [{"name": "finetune"}, {"name": "clnp", "grid": {"l1": [1e-5, 1e-4]}}],
                "training": {"epochs": 2, "batch_size": 128},
                "search": {"grid": {"lr": [0.01, 0.02]}},
                "selection": {"margin": 2, "thresholds": 10},
                **sections,
            }
        )
    )
    search = Search(config, out, open_store(out))
    write_config(out, config)
    try:
        search.run(SerialSearcher(1, stop_after), SilentTracker(), SilentProgress())
    except KeyboardInterrupt:
        assert stop_after is not None
    return out
