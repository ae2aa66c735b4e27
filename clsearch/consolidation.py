"""What a worker makes of a selected trial: the state its chain goes on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from clsearch.config import Config
from clsearch.methods.base import ChainState, Context, Start, State, Thresholds
from clsearch.models.base import Params
from clsearch.protocols import ConsolidateJob
from clsearch.scenarios.base import Task, TaskData
from clsearch.store import Store, read_trained, write_commit
from clsearch.system import System, TaskModel, build_system
from clsearch.training.batch import DeviceData, Readout, answer
from clsearch.training.evidence import TrainingEvidence
from clsearch.training.step import state_of
from clsearch.trial import Bench


@torch.no_grad()
def accuracy(model: TaskModel, task: Task, data: DeviceData) -> float:
    """How good a model is at a task: see `Answers.measure`."""
    readout, judged = Readout.of([task]), []
    for batch in data.batches(model.backbone.evaluation_batch):
        outputs, _ = answer(model.backbone, model.params, batch.x, readout, model.gates)
        judged.append(readout.answers.judged(outputs, batch.y))
    (found,) = readout.answers.measure(torch.cat(judged)[None], data.labels, data.image)
    return found


def accuracies(
    system: System, state: ChainState, tasks: Sequence[Task], samples: Callable[[Task], DeviceData]
) -> dict[str, float]:
    """By task number, the accuracy of a model on every task it answers."""
    models = [(task, system.model(state, task)) for task in tasks]
    return {
        str(task.number): accuracy(model, task, samples(task))
        for task, model in models
        if model is not None
    }


def consolidate_trial(
    config: Config,
    job: ConsolidateJob,
    parts: Sequence[TaskData],
    parent: ChainState | None,
    store: Store,
) -> None:
    """Stores what a chain remembers with a selected trial, and that model's accuracy on the
    validation samples of the task it has learned. Always on the processor.

    Raises `DamagedError` for a trial that is not what was stored, `InputError` for options that
    turn out not to fit the data, and `StoreError`.
    """
    (key,), current = job.keys, parts[-1]
    bench = Bench.set_up(config, job, parts, parent, torch.device("cpu"))
    system = build_system(config, job.method, current.task.shape)
    trained = read_trained(store, key)
    validation = {**job.shown.validation, current.task.number: current.validation}

    def samples(task: Task) -> DeviceData:
        if task.number not in validation:
            raise ValueError(f"{job.chain.method} asks for Evidence.validation without `validates`")
        return DeviceData.of(validation[task.number], task)

    def validated(params: Params, state: State) -> list[float]:
        return list(accuracies(system, ChainState(params, state), job.tasks, samples).values())

    evidence = TrainingEvidence(
        bench.system.backbone,
        bench.start,
        trained.params,
        bench.data,
        current.task,
        bench.system.backbone.evaluation_batch,
        trained.activity,
        trained.running,
        lambda source: job.shown.images[source],
        validated,
    )
    args = bench.start, evidence, job.thresholds, bench.context, parent
    state = consolidate(bench.system, *args)
    (found,) = accuracies(system, state, [current.task], samples).values()
    write_commit(store, job.commit, state, {"validation_accuracy": found})


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
