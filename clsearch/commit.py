"""From a selection to the parent of the next task: consolidate, evaluate, store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from clsearch.config import Config
from clsearch.errors import DamagedError
from clsearch.held_out import HeldOut
from clsearch.methods.base import ChainState, Context, Start, State, Thresholds
from clsearch.models.base import Params
from clsearch.records import Selection, TaskResult
from clsearch.scenarios.base import Task, TaskData
from clsearch.search.plan import commit_key, measurement_key
from clsearch.store import (
    Store,
    TrainedModel,
    read_commit,
    read_measured,
    read_trained,
    write_commit,
    write_measured,
)
from clsearch.system import System, TaskModel
from clsearch.training.batch import DeviceData, PackData, Readout, answer
from clsearch.training.evidence import TrainingEvidence
from clsearch.training.step import state_of
from clsearch.trial import context_of


@dataclass(frozen=True)
class Learned:
    """A chain at a task it has just learned.

    `parts` is what it trained on, `tasks` are the tasks it has seen so far, `parent` is the state
    it started from.
    """

    config: Config
    system: System
    parts: Sequence[TaskData]
    tasks: Sequence[Task]
    parent: ChainState | None
    shared_head: bool
    images: HeldOut


@dataclass(frozen=True)
class Commit:
    """A chain after a task: its stored state, its accuracy on the validation samples of the task
    just learned, and on the test samples of every task it answers, by task number."""

    key: str
    state: ChainState
    validation_accuracy: float
    test: Mapping[str, float]


@torch.no_grad()
def accuracy(model: TaskModel, task: Task, data: DeviceData) -> float:
    """How good a model is at a task: see `Answers.measure`."""
    readout, judged = Readout.of([task]), []
    for batch in data.batches(model.backbone.evaluation_batch):
        outputs, _ = answer(model.backbone, model.params, batch.x, readout, model.gates)
        judged.append(readout.answers.judged(outputs, batch.y))
    (found,) = readout.answers.measure(torch.cat(judged)[None], data.labels, data.image)
    return found


def commit(learned: Learned, selection: Selection, store: Store) -> Commit:
    """The stored state of a selection and its test accuracies; each made if it is not there yet.

    What is damaged is made again: a commit from its trial, a measurement from its commit. Raises
    `DamagedError` when the selected trial itself is damaged.
    """
    method = learned.system.method
    thresholds = selection.by_layer if method.prunes else None
    seen = {s: learned.images.digest(s, learned.tasks[-1]) for s in method.unlabelled}
    pruned_at = (selection.thresholds or selection.threshold) if method.prunes else None
    key = commit_key(str(selection.trial_key), pruned_at, seen)
    try:
        known = read_commit(store, key)
    except DamagedError:
        store.remove("commits", key)
        known = None
    if known is None:
        trained = read_trained(store, str(selection.trial_key))
        state = _consolidate(learned, selection.seed, trained, thresholds)
        current = learned.tasks[-1]
        found = _accuracies(learned, state, [current], learned.images.validation)
        known = state, {"validation_accuracy": found[str(current.number)]}
        write_commit(store, key, *known)
    state, meta = known
    return Commit(key, state, meta["validation_accuracy"], _measured(learned, key, state, store))


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
        known = _accuracies(learned, state, tasks, learned.images.test)
        write_measured(store, key, known)
    return known


def _consolidate(
    learned: Learned, seed: int, trained: TrainedModel, thresholds: Thresholds | None
) -> ChainState:
    """Runs the `consolidate` of the method and of the regularisers on a trial's parameters."""
    parent, images = learned.parent, learned.images
    context = context_of(learned.config, seed, learned.parts, learned.shared_head)
    system, start = learned.system.begin(parent, context)

    def accuracies(params: Params, state: State) -> list[float]:
        shown = ChainState(params, state)
        return list(_accuracies(learned, shown, learned.tasks, images.validation).values())

    evidence = TrainingEvidence(
        system.backbone,
        start,
        trained.params,
        PackData.of(learned.parts, torch.device("cpu")),
        context.task,
        system.backbone.evaluation_batch,
        trained.activity,
        trained.running,
        lambda source: images.unlabelled(source, context.task),
        accuracies,
    )
    return consolidate(system, start, evidence, thresholds, context, parent)


def consolidate(
    system: System,
    start: Start,
    evidence: TrainingEvidence,
    thresholds: Thresholds | None,
    context: Context,
    parent: ChainState | None,
) -> ChainState:
    """What a chain remembers of a task, its method's part and its regularisers'."""
    state = system.method.consolidate(start, evidence.params, evidence, thresholds, context)
    before = parent.regularizer_state if parent else {}
    after = {
        f"{regularizer.name}.{name}": value
        for regularizer in system.regularizers
        for name, value in regularizer.consolidate(
            state_of(regularizer, before), evidence.neuron_importance
        ).items()
    }
    return replace(state, regularizer_state=after)


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


def _accuracies(
    learned: Learned,
    state: ChainState,
    tasks: Sequence[Task],
    samples: Callable[[Task], DeviceData],
) -> dict[str, float]:
    """By task number, the accuracy of a model on every task it answers."""
    models = [(task, learned.system.model(state, task)) for task in tasks]
    return {
        str(task.number): accuracy(model, task, samples(task))
        for task, model in models
        if model is not None
    }
