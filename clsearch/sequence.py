"""The loop over tasks: trials, records, selection, commit, next task.

Knows neither Ray nor MLflow: a searcher, a store and a tracker come in through small Protocols.
Every stage is keyed by content and looked up before it is done, so that a resumed search replays
what is there and does what is missing, through the same code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from clsearch.commit import Commit, Learned, commit, result_of
from clsearch.config import Config
from clsearch.errors import DepletedError, StoreError
from clsearch.exports.files import write_model_files
from clsearch.exports.provenance import provenance
from clsearch.files import ABOUT, atomic_write, machine
from clsearch.held_out import HeldOut
from clsearch.identity import without_places
from clsearch.methods.base import ChainState, Context
from clsearch.protocols import Committed, Job, Progress, Searcher, SearchInfo, Tracker
from clsearch.records import Chain, Selection, TaskRecord, TaskResult, TrialRecord, digest
from clsearch.refinement import Entry, Refinement
from clsearch.report.run_files import RunFiles
from clsearch.report.selection_figures import write_selection_figures
from clsearch.scenarios.base import Task, TaskData
from clsearch.search.plan import hyperparameters_of, pack_size, packs, trial_key
from clsearch.selection import select
from clsearch.store import Store, known_record, read_record, write_record
from clsearch.system import System, build_scenario, build_system, check
from clsearch.trial import context_of

SEEN = ("number", "name", "classes", "digest", "train", "validation", "test")
"""What of a task makes a search another one in MLflow."""


@dataclass
class Found:
    """What a search found: every finished trial, every selection. `trained` counts new trials."""

    config: Config
    records: list[TrialRecord] = field(default_factory=list)
    results: list[TaskResult] = field(default_factory=list)
    trained: int = 0
    reused: int = 0


@dataclass
class _Chain:
    """A chain on its way: where its next task starts from.

    Of the task at work: `begun` is what it is learned with, `transfer` whether by last-layer
    transfer.
    """

    chain: Chain
    index: int
    system: System
    begun: System
    transfer: bool = False
    parent: Commit | None = None
    history: list[TaskResult] = field(default_factory=list)
    ended: bool = False

    @property
    def fresh_each_task(self) -> bool:
        return self.system.method.independent or self.system.method.uses_all_tasks

    @property
    def state(self) -> ChainState | None:
        return None if self.parent is None or self.fresh_each_task else self.parent.state

    @property
    def commit_key(self) -> str | None:
        return None if self.parent is None or self.fresh_each_task else self.parent.key


class Search:
    """A whole search in one output folder, checked: the constructor builds and checks everything
    of the sweep and reads the data, but trains and writes nothing. Raises `InputError`.
    """

    def __init__(self, config: Config, out: Path, store: Store) -> None:
        self.config, self.out, self.store = config, out, store
        self.scenario = build_scenario(config)
        self.tasks = self.scenario.tasks
        shape = self.tasks[0].shape
        self.systems = [build_system(config, i, shape) for i in range(len(config.methods))]
        sources = check(config, self.scenario, self.systems, self.tasks)
        self.held_out = HeldOut(self.scenario, sources)
        self.shared_head = self.scenario.incremental == "domain_incremental"
        self._data: dict[int, TaskData] = {}
        layers = [unit.name for unit in self.systems[0].backbone.unit_layers]
        self._files = RunFiles(out, layers)

    def info(self) -> SearchInfo:
        """What the tracker says of the search as a whole."""
        tasks = [record.to_json() for record in self.described]
        seen = [{name: task[name] for name in SEEN} for task in tasks]
        config = self.config.model_dump(mode="json", exclude={"resources", "tracking"})
        what = config | {"scenario": without_places(config["scenario"])}
        joint = frozenset(s.label for s in self.systems if s.method.uses_all_tasks)
        return SearchInfo(self.config.name, digest([what, seen]), config, tasks, joint)

    @cached_property
    def described(self) -> tuple[TaskRecord, ...]:
        """What every task is made from. Reads all data."""
        return tuple(self.scenario.record(task.number) for task in self.tasks)

    def run(self, searcher: Searcher, tracker: Tracker, progress: Progress) -> Found:
        """Searches every task in order and leaves the files of a run in the output folder."""
        self.found, self.searcher, self.tracker, self.progress = (
            Found(self.config),
            searcher,
            tracker,
            progress,
        )
        chains = [
            _Chain(Chain(system.label, seed), i, system, system)
            for i, system in enumerate(self.systems)
            for seed in self.config.seeds
        ]
        progress.begin(self.scenario, self.systems, self.config)
        for note in self.scenario.notes:
            progress.note(note)
        about = {"tasks": [record.to_json() for record in self.described], **machine()}
        atomic_write(self.out / ABOUT, json.dumps(about, indent=1) + "\n")
        for task in self.tasks:
            at_work = [c for c in chains if not c.ended]
            if not at_work:
                break
            self._task(task, at_work)
            self._write()
        return self.found

    def _task(
        self,
        task: Task,
        chains: Sequence[_Chain],
    ) -> None:
        """One task: the trials of all chains in one run of the searcher, then their selections."""
        whole = any(c.system.method.uses_all_tasks for c in chains)
        numbers = range(1 if whole else task.number, task.number + 1)
        self._data = {n: self._data.get(n) or self.scenario.data(n) for n in numbers}
        data = self._data
        trials: dict[Chain, dict[str, dict[str, float]]] = {}
        for c in list(chains):
            try:
                c.begun, start = c.system.begin(c.state, self._context(c, data, task))
            except DepletedError as error:
                margin = self.config.margin_of(c.system.config)
                self._end(
                    c,
                    Selection(
                        c.chain.method, c.chain.seed, task.number, "depleted", str(error), margin
                    ),
                )
                continue
            c.transfer = c.begun.method.transfers(start)
            trials[c.chain] = {
                self._key(c, data, task, hyper): hyper
                for hyper in hyperparameters_of(
                    self.config,
                    c.system,
                    task.number,
                    c.history[0].selection if c.history else None,
                )
            }
        self.progress.task(data[task.number], {c: list(keys) for c, keys in trials.items()})
        records = self._known(trials)
        for record in records.values():
            self.tracker.trial(record)
            self.progress.record(record, known=True)
        self.found.reused += len(records)
        self.found.trained += self._train(task, chains, data, trials, records)
        self._select([c for c in chains if c.chain in trials], task, data, trials, records)

    def _context(self, c: _Chain, data: Mapping[int, TaskData], task: Task) -> Context:
        parts = self._parts(c, data, task)
        return context_of(self.config, c.chain.seed, parts, self.shared_head)

    def _parts(self, c: _Chain, data: Mapping[int, TaskData], task: Task) -> list[TaskData]:
        """The data a chain trains on at a task: the task's own, or all so far."""
        if c.system.method.uses_all_tasks:
            return [data[number] for number in range(1, task.number + 1)]
        return [data[task.number]]

    def _key(
        self, c: _Chain, data: Mapping[int, TaskData], task: Task, hyper: Mapping[str, float]
    ) -> str:
        parts = self._parts(c, data, task)
        return trial_key(
            self.config,
            c.system,
            parts,
            c.commit_key,
            c.chain.seed,
            self.shared_head,
            hyper,
        )

    def _known(self, trials: Mapping[Chain, Mapping[str, Any]]) -> dict[str, TrialRecord]:
        """The finished trials in the journal; damaged and lost ones are dropped from it."""
        records = {}
        for keys in trials.values():
            for key in keys:
                record = known_record(self.store, key, self.progress.note)
                if record is not None:
                    records[key] = record
        return records

    def _jobs(
        self,
        task: Task,
        chains: Sequence[_Chain],
        data: Mapping[int, TaskData],
        trials: Mapping[Chain, Mapping[str, dict[str, float]]],
        records: Mapping[str, TrialRecord],
    ) -> list[Job]:
        """The packs of what is not in `records` yet, the longest first."""
        jobs: list[Job] = []
        for c in chains:
            if c.chain not in trials:
                continue
            hypers = trials[c.chain]
            missing = [key for key in hypers if key not in records]
            size = pack_size(
                c.begun.backbone,
                self.config.resources.pack,
                self.searcher.device,
                self.config.training.batch_size,
                self.searcher.memory,
            )
            base = self._job(c, data, task)
            for pack in packs(len(missing), size, self.searcher.workers / len(trials)):
                keys = tuple(missing[i] for i in pack)
                jobs.append(replace(base, keys=keys, hypers=tuple(hypers[key] for key in keys)))
        # So that no worker is left with a long one at the end.
        jobs.sort(key=lambda job: len(job.parts) * len(job.keys), reverse=True)
        return jobs

    def _job(self, c: _Chain, data: Mapping[int, TaskData], task: Task) -> Job:
        """A job of a chain at a task, without trials."""
        parts = tuple(p.task.number for p in self._parts(c, data, task))
        place = (c.chain, c.index, task.number, c.commit_key, parts, self.shared_head)
        return Job(*place, keys=(), hypers=())

    def _train(
        self,
        task: Task,
        chains: Sequence[_Chain],
        data: Mapping[int, TaskData],
        trials: Mapping[Chain, Mapping[str, dict[str, float]]],
        records: dict[str, TrialRecord],
    ) -> int:
        """Trains what is missing, adds it to `records`; returns how many trials that were."""
        jobs = self._jobs(task, chains, data, trials, records)
        if not jobs:
            return 0
        reported: set[str] = set()
        on_record = self._reporter(reported)
        lost = self.searcher.run(self.config, jobs, data, self.store, on_record)
        for job in jobs:
            for key, hyper in zip(job.keys, job.hypers, strict=True):
                record = read_record(self.store, key)
                if record is None and key in reported:
                    raise StoreError(
                        f"trial {key} has finished on a worker, but its record is not in "
                        f"{self.store.root}: every host must see the output folder at this path"
                    )
                if record is None:
                    record = TrialRecord(
                        key,
                        job.chain.method,
                        job.chain.seed,
                        job.task,
                        dict(hyper),
                        "FAILED",
                        lost.get(key, "its worker ended without a record"),
                        lost=True,
                    )
                    write_record(self.store, record, None)
                records[key] = record
                on_record(record)
        return len(reported)

    def _reporter(self, reported: set[str]) -> Callable[[TrialRecord], None]:
        """Tells tracker and screen of each trial once, and adds it to `reported`."""

        def on_record(record: TrialRecord) -> None:
            if record.trial_key not in reported:
                reported.add(record.trial_key)
                self.tracker.trial(record)
                self.progress.record(record, known=False)

        return on_record

    def _select(
        self,
        chains: Sequence[_Chain],
        task: Task,
        data: Mapping[int, TaskData],
        trials: Mapping[Chain, Mapping[str, Any]],
        records: Mapping[str, TrialRecord],
    ) -> None:
        """Selects at one task, refines what is selected, commits and evaluates it."""
        entries = []
        for c in chains:
            own = [records[key] for key in trials[c.chain]]
            self.found.records += own
            selection = select(own, self.config.margin_of(c.system.config))
            entries.append(Entry(c.system, self._job(c, data, task), own, selection))
        reported: set[str] = set()
        on_record = self._reporter(reported)

        def run(jobs: Sequence[Job]) -> Mapping[str, str]:
            return self.searcher.run(self.config, jobs, data, self.store, on_record)

        refine = Refinement(self.config, self.store, run, self.searcher.workers, self.progress.note)
        refine([e for e in entries if e.selection.outcome == "selected"])
        self.found.trained += len(reported)
        for c, entry in zip(chains, entries, strict=True):
            for record in entry.tuned:
                self.found.records.append(record)
                if record.trial_key not in reported:
                    self.found.reused += 1
                    self.tracker.trial(record)
                    self.progress.record(record, known=True)
            if entry.selection.outcome == "selected":
                self._commit(c, task, data, entry)
            else:
                self._end(c, entry.selection)

    def _commit(self, c: _Chain, task: Task, data: Mapping[int, TaskData], entry: Entry) -> None:
        """Commits and evaluates the selection of one chain at one task."""
        selection = entry.selection
        parent = c.commit_key
        seeded_by = c.history[-1].selection.trial_key if parent else None
        learned = Learned(
            self.config,
            c.system,
            self._parts(c, data, task),
            self.tasks[: task.number],
            c.state,
            self.shared_head,
            self.held_out,
        )
        made = commit(learned, selection, self.store)
        result = result_of(learned, made, selection, c.transfer, c.history)
        c.parent = made
        c.history.append(result)
        self.found.results.append(result)

        def write(folder: Path) -> None:
            metadata = provenance(self.config, c.system.method, self.described, result)
            write_model_files(folder, c.system, made.state, task, metadata)
            write_selection_figures(folder, result, entry.records)

        stored = {"stored/validation_accuracy": made.validation_accuracy}
        self.tracker.committed(Committed(result, write, seeded_by, parent, stored))
        self.progress.selected(result)

    def _end(self, c: _Chain, selection: Selection) -> None:
        """Ends a chain with a selection that chose nothing."""
        c.ended = True
        result = TaskResult(selection, None)
        c.history.append(result)
        self.found.results.append(result)
        self.tracker.committed(Committed(result))
        self.progress.selected(result)

    def _write(self) -> None:
        self._files.write(self.found.records, self.found.results)
