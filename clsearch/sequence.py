"""The way of each chain: trials, records, selection, commit, next task.

A chain waits for nobody: when the last of its trials is over it goes on to its next task, while
others train.

Knows neither Ray nor MLflow: a searcher, a store and a tracker come in through small Protocols.
Every stage is keyed by content and looked up before it is done, so that a resumed search replays
what is there and does what is missing, through the same code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from clsearch.commit import Commit, Learned, commit, result_of
from clsearch.config import Config
from clsearch.errors import DepletedError, StoreError
from clsearch.exports.files import write_model_files
from clsearch.exports.provenance import provenance
from clsearch.files import ABOUT, atomic_write, machine
from clsearch.held_out import HeldOut
from clsearch.identity import without_places
from clsearch.memory import give_back
from clsearch.methods.base import ChainState
from clsearch.protocols import (
    Committed,
    Job,
    Progress,
    Searcher,
    SearchInfo,
    Steps,
    Tracker,
)
from clsearch.records import Chain, Selection, Tally, TaskRecord, TaskResult, TrialRecord, digest
from clsearch.refinement import Entry, Refinement
from clsearch.report.run_files import RunFiles
from clsearch.report.selection_figures import write_selection_figures
from clsearch.scenarios.base import Task, TaskData
from clsearch.search.plan import hyperparameters_of, pack_size, packs, share, trial_key
from clsearch.selection import select
from clsearch.store import Store, known_record, read_record, write_record
from clsearch.system import System, build_scenario, build_system, check
from clsearch.trial import context_of

SEEN = ("number", "name", "classes", "digest", "train", "validation", "test")
"""What of a task makes a search another one in MLflow."""


@dataclass
class Found:
    """What a search found: every selection, without its candidates, and a count of the trials.
    `trained` counts new ones."""

    config: Config
    trials: Tally = field(default_factory=Tally)
    results: list[TaskResult] = field(default_factory=list)
    trained: int = 0
    reused: int = 0


@dataclass
class _Chain:
    """A chain on its way: where its next task starts from.

    Of the task at work, `task`: `begun` is what it is learned with, `transfer` whether by
    last-layer transfer. `steps` is what the chain does next, once the jobs it asked for are over:
    it waits for so many `left`, and `lost` are the trials they lost.
    """

    chain: Chain
    index: int
    system: System
    begun: System
    task: int = 1
    transfer: bool = False
    parent: Commit | None = None
    history: list[TaskResult] = field(default_factory=list)
    ended: bool = False
    steps: Steps[None] = field(init=False, repr=False)
    left: int = 0
    lost: dict[str, str] = field(default_factory=dict)

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
        self._at_work: dict[Chain, _Chain] = {}
        self._reported: set[str] = set()
        self._unwritten: dict[tuple[int, int], tuple[TaskResult, Entry | None]] = {}

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
        """Searches every task and leaves the files of a run in the output folder."""
        self.searcher, self.tracker, self.progress = searcher, tracker, progress
        self.found = Found(self.config)
        chains = [
            _Chain(Chain(system.label, seed), i, system, system)
            for i, system in enumerate(self.systems)
            for seed in self.config.seeds
        ]
        progress.begin(self.scenario, self.systems, self.config)
        for note in self.scenario.notes:
            progress.note(note)
        scenario = without_places(self.config.scenario.model_dump(mode="json", exclude_none=True))
        tasks = [record.to_json() for record in self.described]
        about = {"scenario": scenario, "tasks": tasks, **machine()}
        atomic_write(self.out / ABOUT, json.dumps(about, indent=1) + "\n")
        searcher.begin(self.config, self.store)
        self._unwritten, self._reported = {}, set()
        for number, c in enumerate(chains):
            c.steps = self._learn(c, number)
            next(c.steps)
        self._at_work = {c.chain: c for c in chains}
        written = 0
        while self._at_work:
            ready = [c for c in self._at_work.values() if not c.left]
            if not ready:
                self._wait()
                continue
            self._go_on(min(ready, key=lambda c: c.task))
            over = min((c.task for c in self._at_work.values()), default=len(self.tasks) + 1) - 1
            if over > written:
                written = over
                self._forget(over)
                self._write(over)
                give_back()
        return self.found

    def _go_on(self, c: _Chain) -> None:
        """Takes a chain to the next jobs it has to wait for."""
        lost, c.lost = c.lost, {}
        try:
            jobs = c.steps.send(lost)
        except StopIteration:
            del self._at_work[c.chain]
            return
        c.left = len(jobs)
        if jobs:
            self.searcher.submit(jobs, self._data)

    def _wait(self) -> None:
        """Waits for the next thing to happen on a worker."""
        event = self.searcher.wait()
        if isinstance(event, TrialRecord):
            self._report(event)
            return
        c = self._at_work[event.job.chain]
        c.left -= 1
        if event.lost:
            c.lost |= dict.fromkeys(event.job.keys, event.lost)

    def _report(self, record: TrialRecord) -> None:
        """Tells tracker and screen of each trained trial once."""
        if record.trial_key not in self._reported:
            self._reported.add(record.trial_key)
            self.found.trained += 1
            self.tracker.trial(record)
            self.progress.record(record, known=False)

    def _reuse(self, record: TrialRecord) -> None:
        """Tells them of a trial that was in the journal."""
        self.found.reused += 1
        self.tracker.trial(record)
        self.progress.record(record, known=True)

    def _forget(self, over: int) -> None:
        """Lets go of the data that no chain at work learns any more."""
        if not any(c.system.method.uses_all_tasks for c in self._at_work.values()):
            self._data = {n: part for n, part in self._data.items() if n > over}

    def _learn(self, c: _Chain, number: int) -> Steps[None]:
        """A chain's whole way; `number` is its place among the chains."""
        for task in self.tasks:
            c.task = task.number
            yield []  # those at an earlier task go first
            self._keep(c, (task.number, number), (yield from self._task(c, task)))
            if c.ended:
                return

    def _keep(self, c: _Chain, place: tuple[int, int], entry: Entry | None) -> None:
        """Keeps a task of a chain until it is written; nothing else holds its trials then."""
        result = c.history.pop()
        self._unwritten[place] = result, entry
        c.history.append(_bare(result))

    def _task(self, c: _Chain, task: Task) -> Steps[Entry | None]:
        """One task of a chain: its trials, then its selection."""
        parts = self._parts(c, task)
        try:
            context = context_of(self.config, c.chain.seed, parts, self.shared_head)
            c.begun, start = c.system.begin(c.state, context)
        except DepletedError as error:
            place = (c.chain.method, c.chain.seed, task.number)
            margin = self.config.margin_of(c.system.config)
            self._end(c, Selection(*place, "depleted", str(error), margin))
            return None
        c.transfer = c.begun.method.transfers(start)
        first = c.history[0].selection if c.history else None
        trials = {
            self._key(c, parts, hyper): hyper
            for hyper in hyperparameters_of(self.config, c.system, task.number, first)
        }
        self.progress.task(parts[-1], c.chain, list(trials))
        records = yield from self._train(c, task, trials)
        return (yield from self._select(c, task, list(records.values())))

    def _parts(self, c: _Chain, task: Task) -> list[TaskData]:
        """The data a chain trains on at a task: the task's own, or all so far."""
        first = 1 if c.system.method.uses_all_tasks else task.number
        for number in range(first, task.number + 1):
            if number not in self._data:
                self._data[number] = self.scenario.data(number)
        return [self._data[number] for number in range(first, task.number + 1)]

    def _key(self, c: _Chain, parts: Sequence[TaskData], hyper: Mapping[str, float]) -> str:
        return trial_key(
            self.config, c.system, parts, c.commit_key, c.chain.seed, self.shared_head, hyper
        )

    def _train(
        self, c: _Chain, task: Task, trials: Mapping[str, dict[str, float]]
    ) -> Steps[dict[str, TrialRecord]]:
        """The records of a chain's trials: those in the journal, and those that are missing there
        once they are trained. Damaged and lost ones are dropped from the journal."""
        records = {}
        for key in trials:
            known = known_record(self.store, key, self.progress.note)
            if known is not None:
                records[key] = known
                self._reuse(known)
        jobs = self._jobs(c, task, {k: h for k, h in trials.items() if k not in records})
        lost = (yield jobs) if jobs else {}
        for job in jobs:
            for key in job.keys:
                records[key] = self._trained(job, key, trials[key], lost.get(key))
        return {key: records[key] for key in trials}

    def _jobs(self, c: _Chain, task: Task, hypers: Mapping[str, dict[str, float]]) -> list[Job]:
        """The packs of a chain's missing trials, the longest first."""
        wanted, batch = self.config.resources.pack, self.config.training.batch_size
        device, memory = self.searcher.device, self.searcher.memory
        size = pack_size(c.begun.backbone, wanted, device, batch, memory)
        missing, base, jobs = list(hypers), self._job(c, task), []
        last = task.number == len(self.tasks)
        for pack in packs(len(missing), size, self._share(), last):
            keys = tuple(missing[i] for i in pack)
            jobs.append(replace(base, keys=keys, hypers=tuple(hypers[key] for key in keys)))
        return sorted(jobs, key=lambda job: len(job.keys), reverse=True)

    def _share(self) -> float:
        """The workers that a chain can count on."""
        return share(self.searcher.workers, len(self._at_work))

    def _job(self, c: _Chain, task: Task) -> Job:
        """A job of a chain at a task, without trials."""
        parts = tuple(p.task.number for p in self._parts(c, task))
        place = (c.chain, c.index, task.number, c.commit_key, parts, self.shared_head)
        return Job(*place, keys=(), hypers=())

    def _trained(
        self, job: Job, key: str, hyper: Mapping[str, float], lost: str | None
    ) -> TrialRecord:
        """The record of a trial whose job is over: its own, or that of its loss."""
        record = read_record(self.store, key)
        if record is None and key in self._reported:
            self.store.look_again("trials")
            record = read_record(self.store, key)
        if record is None and key in self._reported:
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
                lost or "its worker ended without a record",
                lost=True,
            )
            write_record(self.store, record, None)
        self._report(record)
        return record

    def _select(self, c: _Chain, task: Task, records: Sequence[TrialRecord]) -> Steps[Entry]:
        """Selects at one task, refines what is selected, commits and evaluates it."""
        selection = select(records, self.config.margin_of(c.system.config))
        entry = Entry(c.system, self._job(c, task), records, selection)
        if selection.outcome == "selected":
            refine = Refinement(self.config, self.store, self._share(), self.progress.note)
            yield from refine(entry)
        for record in entry.tuned:
            if record.trial_key not in self._reported:
                self._reuse(record)
        if entry.selection.outcome == "selected":
            yield from self._commit(c, task, entry)
        else:
            self._end(c, entry.selection)
        return entry

    def _commit(self, c: _Chain, task: Task, entry: Entry) -> Steps[None]:
        """Commits and evaluates the selection of one chain at one task."""
        selection = entry.selection
        parent = c.commit_key
        seeded_by = c.history[-1].selection.trial_key if parent else None
        learned = Learned(c.system, self.tasks[: task.number], c.state, self.held_out)
        made = yield from commit(learned, selection, entry.job, self.store)
        result = result_of(learned, made, selection, c.transfer, c.history)
        c.parent = made
        c.history.append(result)

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
        self.tracker.committed(Committed(result))
        self.progress.selected(result)

    def _write(self, over: int) -> None:
        """Writes what is known of the tasks that are over, in the order of tasks and chains."""
        places = sorted(place for place in self._unwritten if place[0] <= over)
        ended = [self._unwritten.pop(place) for place in places]
        records = [r for _, e in ended if e is not None for r in (*e.records, *e.tuned)]
        for record in records:
            self.found.trials.add(record)
        self._files.write(records, [result for result, _ in ended])
        self.found.results += [_bare(result) for result, _ in ended]
        self._reported.difference_update(r.trial_key for r in records)


def _bare(result: TaskResult) -> TaskResult:
    """A result without its candidates, which the files have, and which are many."""
    return replace(result, selection=replace(result.selection, candidates=()))
