"""From a selection to the parent of the next task: consolidate, evaluate, store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clsearch.config import Config
from clsearch.errors import DamagedError
from clsearch.methods.base import ChainState, Evidence, ImportanceObjective
from clsearch.models.base import Backbone, Gates, Params, head_names
from clsearch.records import Selection
from clsearch.scenarios.base import Task, TaskData
from clsearch.search.plan import commit_key
from clsearch.store import Store, read_commit, read_trained, write_commit
from clsearch.system import System
from clsearch.training.batch import DeviceData, PackData, Readout, answer
from clsearch.training.importance import mean_moment
from clsearch.training.loop import EVALUATION_BATCH
from clsearch.trial import context_of

TestData = Callable[[Task], DeviceData]


@dataclass(frozen=True)
class Commit:
    """A chain after a task. `meta` is what was measured of the stored model: `test` accuracies by
    task number, `validation_accuracy` on the task just learned, `free` neurons by layer."""

    key: str
    state: ChainState
    meta: Mapping[str, Any]


@torch.no_grad()
def accuracy(
    backbone: Backbone, params: Params, data: DeviceData, head: int, gates: Gates | None
) -> float:
    """The fraction of samples answered right by one head."""
    readout = Readout((head,))
    right = 0
    for batch in data.batches(EVALUATION_BATCH):
        logits, _ = answer(backbone, params, batch.x, readout, gates)
        right += int((logits.argmax(-1) == batch.y).sum())
    return right / len(data)


def commit(
    config: Config,
    system: System,
    selection: Selection,
    parts: Sequence[TaskData],
    tasks: Sequence[Task],
    parent: ChainState | None,
    shared_head: bool,
    store: Store,
    test: TestData,
) -> Commit:
    """The stored state of a selection; made and evaluated on test data if it is not there yet.

    `parts` is what the chain trained on at this task, `tasks` are the tasks it has seen so far.
    A damaged commit is made again from its trial. Raises `DamagedError` when the selected trial
    itself is damaged.
    """
    threshold = selection.threshold if system.method.prunes else None
    key = commit_key(str(selection.trial_key), threshold)
    try:
        known = read_commit(store, key)
    except DamagedError:
        store.remove("commits", key)
        known = None
    if known is not None:
        return Commit(key, *known)
    state = _consolidate(config, system, selection, parts, parent, shared_head, store, threshold)
    own = tasks[-1:] if system.method.independent else tasks
    meta = {
        **_measure(system, state, own, test),
        "validation_accuracy": _validation(system, state, parts[-1]),
    }
    write_commit(store, key, state, meta)
    return Commit(key, state, meta)


def _consolidate(
    config: Config,
    system: System,
    selection: Selection,
    parts: Sequence[TaskData],
    parent: ChainState | None,
    shared_head: bool,
    store: Store,
    threshold: float | None,
) -> ChainState:
    """Runs the method's `consolidate` on the selected trial's parameters."""
    context = context_of(config, selection.seed, parts, shared_head)
    start = system.method.begin(parent, context)
    trained = read_trained(store, str(selection.trial_key))
    data = PackData.of(parts, torch.device("cpu"))

    def importance(objective: ImportanceObjective) -> Params:
        return mean_moment(
            system.backbone,
            trained.params,
            data.train,
            data.readout,
            start.gates,
            list(start.trainable),
            objective,
            EVALUATION_BATCH,
        )

    evidence = Evidence(lambda: trained.state, importance)
    return system.method.consolidate(start, trained.params, evidence, threshold, context)


def _validation(system: System, state: ChainState, part: TaskData) -> float:
    """The validation accuracy of the stored model on the task just learned."""
    data = PackData.of([part], torch.device("cpu")).validation
    gates = system.method.gates(state.state, part.task)
    return accuracy(system.backbone, state.params, data, part.task.head, gates)


def _measure(
    system: System, state: ChainState, tasks: Sequence[Task], test: TestData
) -> dict[str, Any]:
    """What the stored model reaches: test accuracy on every task it answers, free neurons."""
    tests = {}
    for task in tasks:
        gates = system.method.gates(state.state, task)
        if gates is not None and head_names(task.head)[0] in state.params:
            tests[str(task.number)] = accuracy(
                system.backbone, state.params, test(task), task.head, gates
            )
    return {"test": tests, "free": system.method.capacity(state.state)}
