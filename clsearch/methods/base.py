"""The contract of a continual-learning method: pure functions, every hook with a default.

A method holds its options and the backbone, never a model: parameters and state come in and go
out. What a task leaves behind is a `ChainState`; what the next task starts from is a `Start`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from clsearch.models.base import (
    Backbone,
    Gates,
    Params,
    head_names,
    initial_head,
    initial_parameters,
)
from clsearch.options import Strict
from clsearch.records import LayerCapacity
from clsearch.regularizers.base import Hypers
from clsearch.scenarios.base import Incremental, Task
from clsearch.scenarios.unlabelled import TRAIN
from clsearch.space import Hyper

State = dict[str, Tensor]

Thresholds = Mapping[str, float]
"""By unit layer, the activity threshold θ: a neuron is active iff its activity is above it."""


@dataclass(frozen=True)
class ChainState:
    """A chain after a task: every parameter of the network, and what is remembered beside it.

    `state` is the method's own, `regularizer_state` that of the regularisers, as
    `<regulariser>.<name>`.
    """

    params: Params
    state: State = field(default_factory=dict)
    regularizer_state: State = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """Where the trials of a task start, shared by the members of a pack.

    `trainable` names what may change, each with a bool mask that broadcasts to the parameter;
    a parameter not named is frozen. `statistics` does the same for the running statistics of batch
    normalisation: where they may change, training normalises by the batch and they follow; where
    they are frozen, training normalises by them, as evaluation does. `gates` silence neurons while
    this task trains. For the first `warm_up` epochs only the parameters named in `alone` are
    trained.
    """

    params: Params
    state: State
    trainable: dict[str, Tensor]
    gates: dict[str, Tensor] = field(default_factory=dict)
    alone: tuple[str, ...] = ()
    warm_up: int = 0
    statistics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a method may know of the task at hand.

    `tasks` are the tasks this model answers for in training: the current one alone, or all so far
    for a method with `uses_all_tasks`. `shared_head`: all tasks of the sequence answer with one
    head. `generator(stream)` is the named randomness of the chain and task.
    """

    task: Task
    tasks: tuple[Task, ...]
    shared_head: bool
    generator: Callable[[str], torch.Generator]


@dataclass(frozen=True)
class ImportanceObjective:
    """What is differentiated, sample by sample, to measure the importance of parameters.

    `value` maps logits `[B, classes]` and labels `[B]` to `[B]`, or to `[B, P]` for P scalars
    whose moments add up; `moment` says what is averaged over samples: the gradient's magnitude or
    its square. With `local` each layer is differentiated by itself, its input held fixed, and the
    scalar is the squared norm of its output: `value` then sees the logits as the last layer's.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    moment: Literal["magnitude", "square"]
    local: bool = False


class Evidence(ABC):
    """What the data of a finished task shows of its model, for `consolidate`.

    `running` holds what the selected trial kept by `Method.after_step`, by name.
    """

    running: Mapping[str, Tensor]

    @abstractmethod
    def activity(self) -> Mapping[str, Tensor]:
        """By unit layer, `[units]`: each neuron's mean activity over the training set (CLNP
        §2.2)."""

    @abstractmethod
    def importance(
        self,
        objective: ImportanceObjective,
        sources: Sequence[str] = (TRAIN,),
        classes: Sequence[str] = (),
    ) -> Params:
        """The mean over samples of the per-sample gradients' moment, by trainable parameter.

        `sources` name the images, taken together: `TRAIN`, `TEST_INPUTS`, or unlabelled ones that
        `Method.unlabelled` names. `classes` restricts them to the training samples of some
        classes. Raises `InputError` where there is no image.
        """

    @abstractmethod
    def neuron_importance(self) -> dict[str, Tensor]:
        """α by unit layer, `[units]`: the mean magnitude of the loss's gradient at each neuron
        (SLNI eq. 5)."""

    @abstractmethod
    def features(self) -> tuple[Tensor, Tensor]:
        """What the output layer reads, `[N, features]`, and the labels `[N]`, of the training
        set."""

    @abstractmethod
    def validation(self, params: Params, state: State) -> list[float]:
        """The accuracy on the kept validation samples of every task so far, by other parameters.

        A method that asks for it keeps old data, and says so by `Method.validates`.
        """


class MethodOptions(Strict):
    """Options of a method; each declares its own."""


class Method(ABC):
    """A continual-learning method. One file a method; the defaults here are plain fine-tuning.

    `space` declares hyperparameters beyond `lr`; `regularizers` names those that belong to the
    method. `analytic` says that `add_gradient` is written; otherwise autograd differentiates
    `penalty`. `prunes`: the selected model is pruned at the selected thresholds, and
    `pruned` is written. `independent`: every task has a model of its own, and no parent.
    `uses_all_tasks`: trains on the data of all tasks so far, a reference and not a continual
    learner. `needs_classes`: it takes outputs for logits of classes, and tasks with other answers
    are refused. `version` is part of every trial's key: raise it when the method's arithmetic
    changes.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    space: ClassVar[dict[str, Hyper]] = {}
    regularizers: ClassVar[tuple[str, ...]] = ()
    scenarios: ClassVar[tuple[Incremental, ...]] = ("task_incremental", "domain_incremental")
    analytic: ClassVar[bool] = False
    prunes: ClassVar[bool] = False
    independent: ClassVar[bool] = False
    uses_all_tasks: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False

    def __init__(self, options: Any, backbone: Backbone) -> None:
        self.options, self.backbone = options, backbone

    @property
    def distils(self) -> bool:
        """Whether `distillation` says anything, and `targets` have to be made."""
        return type(self).distillation is not Method.distillation

    @property
    def tracks(self) -> bool:
        """Whether `after_step` does anything, and has to be called."""
        return type(self).after_step is not Method.after_step

    @property
    def validates(self) -> bool:
        """Whether `consolidate` asks for `Evidence.validation`."""
        return False

    @property
    def unlabelled(self) -> dict[str, str]:
        """The unlabelled sources that `consolidate` asks for, by name or path; for each the option
        that names it."""
        return {}

    def check(self, tasks: Sequence[Task], epochs: int) -> None:
        """Raises `InputError` for options that do not fit the tasks of the sequence, or the epochs
        that each is trained for at most."""

    def grow(self, parent: ChainState) -> ChainState:
        """The parent of a task with more neurons, where the method adds any before it starts.

        Added neurons are free, and all that leads into and out of them is zero: `begin`, called
        with the grown parent and on the grown backbone, initialises them. The default adds none.
        """
        return parent

    def units(self, state: State, task: Task | None = None) -> dict[str, int]:
        """By unit layer, the neurons of the network that a state belongs to, or of the one that
        learned `task`; a layer that is not named has as many as in the backbone."""
        return {}

    def begin(self, parent: ChainState | None, context: Context) -> Start:
        """Parameters, state and trainable masks to start a task from.

        The default goes on from the parent (fresh without one), places a new head where the task
        has none yet, and trains the backbone and the heads of `context.tasks`. Raises
        `DepletedError` when nothing is left to learn with.
        """
        params = dict(parent.params) if parent else self.fresh_parameters(context)
        params |= self.new_heads(params, context)
        heads = [name for task in context.tasks for name in head_names(task.head)]
        return Start(
            params,
            dict(parent.state) if parent else {},
            self.everything([*self.body(), *heads]),
            statistics=self.everything(self.backbone.statistics),
        )

    def transfers(self, start: Start) -> bool:
        """Whether the task has its output layer alone to learn with, because no neurons are free
        (last-layer transfer, CLNP §3.2)."""
        return False

    def penalty(self, params: Mapping[str, Tensor], state: State, hyper: Hypers) -> Tensor:
        """The 0-d term that protects earlier tasks, for one member's trained parameters."""
        return hyper["lr"].new_zeros(())

    def add_gradient(
        self, grads: dict[str, Tensor], params: Mapping[str, Tensor], state: State, hyper: Hypers
    ) -> None:
        """Adds the gradient of `penalty` to `grads` in place: stacked `[K, …]`, hyper `[K]`."""
        raise TypeError(f"{self.name} gives no analytic gradient")

    def targets(self, start: Start, features: Tensor) -> dict[str, Tensor]:
        """What the network before training says of samples, `[B, …]` by name, to be kept to.

        `features` `[B, features]` are what its output layers read.
        """
        return {}

    def distillation(
        self,
        params: Mapping[str, Tensor],
        features: Tensor,
        targets: Mapping[str, Tensor],
        start: Start,
        hyper: Hypers,
    ) -> Tensor:
        """The 0-d term that keeps one member's answers on a batch to `targets`; autograd
        differentiates it. `features` `[B, features]` are the member's own."""
        return hyper["lr"].new_zeros(())

    def running(self, stack: Mapping[str, Tensor]) -> State:
        """The running quantities of a pack at its start, `[K, …]`, for `after_step`."""
        return {}

    def after_step(
        self,
        running: State,
        gradient: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
    ) -> None:
        """Updates `running` in place after a step. All are stacked `[K, …]`; `gradient` is that
        of the cross-entropy alone, `before` and `after` the parameters around the step."""

    def drift(self, params: Params, state: State) -> float:
        """Importance-weighted distance from the anchor `Σ Ω (θ − θ*)²`; 0 without importance."""
        return 0.0

    def prunable(self, state: State) -> dict[str, Tensor]:
        """By unit layer, bool `[units]`: the neurons that no earlier task needs."""
        return {u.name: torch.ones(u.units, dtype=torch.bool) for u in self.backbone.unit_layers}

    def consolidate(
        self,
        start: Start,
        params: Params,
        evidence: Evidence,
        thresholds: Thresholds | None,
        context: Context,
    ) -> ChainState:
        """The selected trial's parameters to what the chain remembers of the task.

        `thresholds` are the selected ones, None where nothing is pruned; only a method that prunes
        heeds them.
        """
        return ChainState(params, start.state)

    def pruned(
        self,
        start: Start,
        params: Params,
        activity: Mapping[str, Tensor],
        thresholds: Thresholds,
        context: Context,
    ) -> Start:
        """Where fine-tuning a selected trial starts from, once it is pruned; for a method that
        prunes.

        `params` are the trial's, trained from `start`; `activity` `[units]` by unit layer.
        """
        raise TypeError(f"{self.name} does not prune")

    def gates(self, state: State, task: Task) -> Gates | None:
        """The gates to answer `task` with, after consolidation; None if it cannot answer."""
        return {}

    def capacity(
        self, before: State, chain: ChainState, task: Task
    ) -> tuple[LayerCapacity, ...] | None:
        """The account of each unit layer after `task`, from the state before it and the chain
        after it; None if the method keeps none."""
        return None

    def body(self) -> list[str]:
        """The names of the backbone's parameters."""
        return [name for name, _ in self.backbone.named_parameters()]

    def fresh_parameters(self, context: Context) -> Params:
        """The backbone's initial parameters, common to all methods of a seed and task."""
        return initial_parameters(self.backbone, context.generator("initial"))

    def new_heads(self, params: Params, context: Context) -> Params:
        """Fresh output layers for those of `context.tasks` whose head is not in `params`."""
        features = self.backbone.features
        heads: Params = {}
        for task in context.tasks:
            if head_names(task.head)[0] not in params | heads:
                generator = context.generator(f"head-{task.head}")
                heads |= initial_head(task.head, task.outputs, features, generator)
        return heads

    @staticmethod
    def everything(names: Iterable[str]) -> dict[str, Tensor]:
        """Masks that train all of the named parameters."""
        return {name: torch.ones((), dtype=torch.bool) for name in names}
