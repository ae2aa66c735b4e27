"""From a selection to the parent of the next task: consolidated by a worker, then evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clsearch.consolidation import accuracies
from clsearch.errors import ClsearchError, DamagedError, StoreError
from clsearch.held_out import HeldOut
from clsearch.methods.base import ChainState
from clsearch.protocols import ConsolidateJob, Job, Shown, Steps
from clsearch.records import Selection, TaskResult
from clsearch.scenarios.base import Task
from clsearch.search.plan import commit_key, measurement_key
from clsearch.store import Store, read_commit, read_measured, write_measured
from clsearch.system import System

TRIES = 2
"""How often a selection is consolidated whose commit is then damaged: two workers, of which the
driver has given one up, may have written it."""


@dataclass(frozen=True)
class Learned:
    """A chain at a task it has just learned.

    `tasks` are the tasks it has seen so far, `parent` is the state it started from.
    """

    system: System
    tasks: Sequence[Task]
    parent: ChainState | None
    images: HeldOut


@dataclass(frozen=True)
class Commit:
    """A chain after a task: its stored state, its accuracy on the validation samples of the task
    just learned, and on the test samples of every task it answers, by task number."""

    key: str
    state: ChainState
    validation_accuracy: float
    test: Mapping[str, float]


def commit(learned: Learned, selection: Selection, job: Job, store: Store) -> Steps[Commit]:
    """The stored state of a selection and its test accuracies; each made if it is not there yet.

    `job` is a job of the chain at this task, without keys. What is damaged is made again: a commit
    from its trial, a measurement from its commit. Raises `ClsearchError` where that is lost to the
    workers: no chain goes on without it.
    """
    method, trial = learned.system.method, str(selection.trial_key)
    thresholds = selection.by_layer if method.prunes else None
    current = learned.tasks[-1]
    seen = {s: learned.images.digest(s, current) for s in method.unlabelled}
    pruned_at = (selection.thresholds or selection.threshold) if method.prunes else None
    key = commit_key(trial, pruned_at, seen)
    known = _known(store, key)
    for _ in range(TRIES):
        if known is not None:
            break
        base: dict[str, Any] = {**vars(job), "keys": (trial,), "hypers": ({},)}
        base |= {"commit": key, "thresholds": thresholds, "tasks": tuple(learned.tasks)}
        lost = yield [ConsolidateJob(**base, shown=_shown(learned))]
        if lost:
            raise ClsearchError(f"trial {trial} was not consolidated: {lost[trial]}")
        store.look_again("commits")
        known = _known(store, key)
    if known is None:
        raise StoreError(
            f"trial {trial} was consolidated on a worker, but its checkpoint is not in "
            f"{store.root}: every host must see the output folder at this path"
        )
    state, meta = known
    return Commit(key, state, meta["validation_accuracy"], _measured(learned, key, state, store))


def _known(store: Store, key: str) -> tuple[ChainState, dict[str, float]] | None:
    """What is stored of a commit; what is damaged is dropped."""
    try:
        return read_commit(store, key)
    except DamagedError:
        store.remove("commits", key)
        return None


def _shown(learned: Learned) -> Shown:
    """What the method of a chain asks for beside the data it trains on."""
    method, current = learned.system.method, learned.tasks[-1]
    earlier = learned.tasks[:-1] if method.validates else ()
    return Shown(
        {source: learned.images.unlabelled(source, current) for source in method.unlabelled},
        {task.number: learned.images.validation(task) for task in earlier},
    )


def _measured(learned: Learned, commit: str, state: ChainState, store: Store) -> dict[str, float]:
    """The test accuracies of a commit. They are stored apart from it: test data is no part of what
    a commit is, and other test data makes other accuracies of the same one."""
    tasks = learned.tasks[-1:] if learned.system.method.independent else learned.tasks
    key = measurement_key(commit, {t.number: learned.images.test_digest(t) for t in tasks})
    try:
        known = read_measured(store, key)
    except DamagedError:
        store.remove("measurements", key)
        known = None
    if known is None:
        known = accuracies(learned.system, state, tasks, learned.images.test)
        write_measured(store, key, known)
    return known


def result_of(
    learned: Learned,
    made: Commit,
    selection: Selection,
    transfer: bool,
    earlier: Sequence[TaskResult],
) -> TaskResult:
    """What a chain has come to after a task; `earlier` are its results before.

    A method with a model for each task keeps the entries of the others in the accuracy matrix.
    """
    row: list[float | None] = [made.test.get(str(task.number)) for task in learned.tasks]
    if learned.system.method.independent and earlier:
        row[:-1] = earlier[-1].test
    before = learned.parent.state if learned.parent else {}
    method = learned.system.of(made.state.state).method
    capacity = method.capacity(before, made.state, learned.tasks[-1])
    return TaskResult(
        selection,
        made.key,
        tuple(row),
        selection.free if capacity is None else tuple(layer.free for layer in capacity),
        stored_bytes(made.state),
        capacity or (),
        transfer,
    )


def stored_bytes(state: ChainState) -> int:
    """Bytes of what a chain remembers beside its parameters."""
    parts = (state.state, state.regularizer_state)
    return sum(v.numel() * v.element_size() for part in parts for v in part.values())
