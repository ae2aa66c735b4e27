"""What scenarios over one source share: the split, the tasks, the choice of samples."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from pydantic import Field
from torch import Tensor

from clsearch.data.base import RawData, Samples, Source, data_root
from clsearch.errors import InputError
from clsearch.plugins import find
from clsearch.records import digest
from clsearch.rng import generator
from clsearch.scenarios.base import (
    Incremental,
    InputTransform,
    Scenario,
    ScenarioOptions,
    Task,
    TaskData,
)


class SourceOptions(ScenarioOptions):
    """Options of a scenario over one source."""

    source: str = Field("digits", description="Name of the data set the tasks are made from.")
    incremental: Incremental = Field(
        "task_incremental",
        description="`task_incremental` gives every task an output layer of its own,"
        " `domain_incremental` one to all.",
    )


@dataclass(frozen=True)
class Plan:
    """How a task is made from the source: which of its classes, in which order of pixels.

    Class `classes[i]` of the source gets label i; `permutation` is int64 `[H·W]` or None.
    """

    name: str
    classes: tuple[int, ...]
    permutation: Tensor | None = None


class SourceScenario(Scenario):
    """A scenario whose tasks are all made from one source, read and split once.

    An image held out for validation or testing is held out in every task. Raises `InputError`
    for an unknown source at once, and on first use for what `Source.load` refuses and for a task
    with a part that has no samples.
    """

    def __init__(self, options: SourceOptions) -> None:
        super().__init__(options)
        kind = find("clsearch.data", Source, options.source, "scenario.source")
        self.source: Source = kind()
        self.incremental = options.incremental

    @abstractmethod
    def plan(self, classes: int, pixels: int) -> Sequence[Plan]:
        """The tasks, made from a source of so many classes and of images of so many pixels.

        A task must not depend on how many come after it.
        """

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        raw, _ = self._split
        channels, height, width = raw.train.inputs.shape[1:]
        tasks = []
        for number, plan in enumerate(self._plans, start=1):
            head = number - 1 if self.incremental == "task_incremental" else 0
            names = tuple(raw.classes[c] for c in plan.classes)
            transform = InputTransform(raw.scale, raw.mean, raw.std, plan.permutation)
            shape = (channels, height, width)
            tasks.append(Task(number, plan.name, names, head, shape, transform))
        return tuple(tasks)

    def data(self, number: int) -> TaskData:
        """Training and validation samples of task `number`; made anew at each call."""
        plan, task = self._plan(number), self.tasks[number - 1]
        raw, held_out = self._split
        train, validation = (_select(part, plan, task) for part in (raw.train, held_out))
        kept_back = 0 if raw.test is None else int(_members(raw.test, plan).sum())
        return TaskData(task, train, validation, _digest(task, train, validation), kept_back)

    def test(self, number: int) -> Samples:
        raw, _ = self._split
        assert raw.test is not None  # _split put one there
        return _select(raw.test, self._plan(number), self.tasks[number - 1])

    @cached_property
    def _split(self) -> tuple[RawData, Samples]:
        """The source with a test part and without the validation samples, and those samples."""
        options = self.options
        raw = self.source.load(data_root(options.root), options.download)
        train, test = raw.train, raw.test
        stream = (options.split_seed, self.source.name)
        if test is None:
            train, test = _hold_out(train, options.test, *stream, "test")
        train, validation = _hold_out(train, options.validation, *stream, "validation")
        return replace(raw, train=train, test=test), validation

    @cached_property
    def _plans(self) -> tuple[Plan, ...]:
        """The tasks, each known to have samples in every part."""
        raw, validation = self._split
        pixels = raw.train.inputs.shape[2:].numel()
        plans = tuple(self.plan(len(raw.classes), pixels))
        parts = {"training": raw.train, "validation": validation, "test": raw.test}
        for plan in plans:
            for part, samples in parts.items():
                if samples is None or not _members(samples, plan).any():
                    field = "scenario.test" if part == "test" else "scenario.validation"
                    share = getattr(self.options, field.removeprefix("scenario."))
                    allowed = f"a share that leaves task {plan.name!r} {part} samples"
                    step = f"Its classes have too few images in {self.source.name!r}."
                    raise InputError(field, share, allowed, step)
        return plans

    def _plan(self, number: int) -> Plan:
        if not 1 <= number <= len(self._plans):
            raise InputError("task", number, f"1 to {len(self._plans)}")
        return self._plans[number - 1]


def _hold_out(samples: Samples, share: float, *stream: str | int) -> tuple[Samples, Samples]:
    """What is kept and what is held out, each in the order of `samples`.

    Of every class of n samples round(share·n) are held out, at least 1 and at most n - 1; which
    ones depends on the stream and the class alone. A class of one sample is kept.
    """
    out = torch.zeros(len(samples), dtype=torch.bool)
    for label in sorted(set(samples.labels.tolist())):
        index = (samples.labels == label).nonzero().squeeze(1)
        n = len(index)
        count = min(max(round(share * n), 1), n - 1)
        order = torch.randperm(n, generator=generator("hold-out", *stream, label))
        out[index[order[:count]]] = True
    return samples[~out], samples[out]


def _members(samples: Samples, plan: Plan) -> Tensor:
    """Which samples are of the plan's classes: bool `[N]`."""
    return torch.isin(samples.labels, torch.tensor(plan.classes))


def _select(samples: Samples, plan: Plan, task: Task) -> Samples:
    """The samples of the plan's classes as the task sees them, labels from 0."""
    chosen = samples[_members(samples, plan)]
    new = torch.zeros(max(plan.classes) + 1, dtype=torch.int64)
    new[torch.tensor(plan.classes)] = torch.arange(len(plan.classes))
    return Samples(task.transform.permute(chosen.inputs).contiguous(), new[chosen.labels])


def _digest(task: Task, train: Samples, validation: Samples) -> str:
    """Digest of what a trial sees of a task: what it is, and every sample."""
    transform = task.transform
    order = transform.permutation
    return digest(
        {
            "task": [task.number, task.name, task.classes, task.head, task.shape],
            "normalisation": [transform.scale, transform.mean, transform.std],
            "permutation": None
            if order is None
            else hashlib.sha256(order.numpy().data).hexdigest(),
            "train": train.digest(),
            "validation": validation.digest(),
        }
    )
