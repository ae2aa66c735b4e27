"""What scenarios share: sources split once, tasks planned from them, the choice of samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from pydantic import Field
from torch import Tensor

from clsearch.data._images import Colour, Size, conform
from clsearch.data.base import RawData, Samples, Source, SourceConfig, build_source, data_root
from clsearch.errors import InputError
from clsearch.records import digest
from clsearch.rng import generator
from clsearch.scenarios.answers import CLASSIFICATION, Answers
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

    source: SourceConfig = Field(
        SourceConfig(name="digits"),
        description="The data set the tasks are made from: its name, or a section of its name and"
        " its options.",
    )
    incremental: Incremental = Field(
        "task_incremental",
        description="`task_incremental` gives every task an output layer of its own,"
        " `domain_incremental` one to all.",
    )


@dataclass(frozen=True)
class Plan:
    """How a task is made from the source: which of its classes, in which order of pixels.

    Class `classes[i]` of the source gets label i; `permutation` is int64 `[H·W]` or None;
    `answers` say what the outputs of the task's head mean.
    """

    name: str
    classes: tuple[int, ...]
    permutation: Tensor | None = None
    answers: Answers = CLASSIFICATION


class Pool:
    """A source that is read and split once, however many tasks are made from it."""

    def __init__(self, source: Source, options: ScenarioOptions) -> None:
        self.source, self.options = source, options

    @cached_property
    def _split(self) -> tuple[RawData, Samples, Samples]:
        """The source without the samples held out, those for validation, those for testing."""
        options = self.options
        raw = self.read()
        train, test = raw.train, raw.test
        stream = (options.split_seed, self.source.name)
        if test is None:
            train, test = self.parted(train, options.test, *stream, "test")
        train, validation = self.parted(train, options.validation, *stream, "validation")
        return replace(raw, train=train), validation, test

    def parted(self, samples: Samples, share: float, *stream: str | int) -> tuple[Samples, Samples]:
        """What is kept and what is held out, each in the order of `samples`; see `held_out`."""
        out = held_out(samples.labels, share, *stream)
        return samples[~out], samples[out]

    def read(self) -> RawData:
        """The source as it is read."""
        return self.source.load(data_root(self.options.root), self.options.download)

    @property
    def raw(self) -> RawData:
        """The source; `train` is without the samples held out."""
        return self._split[0]

    @property
    def validation(self) -> Samples:
        return self._split[1]

    @property
    def test(self) -> Samples:
        return self._split[2]


class ConformedPool(Pool):
    """A pool whose images are brought to one size and to the same channels, and normalised by
    `moments`, a mean and a deviation for each channel, if they are given."""

    def __init__(
        self,
        source: Source,
        options: ScenarioOptions,
        size: Size | None,
        colour: Colour | None,
        moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ) -> None:
        super().__init__(source, options)
        self.size, self.colour, self.moments = size, colour, moments

    def read(self) -> RawData:
        raw = conform(super().read(), self.size, self.colour, self.source.storage)
        if self.moments is None:
            return raw
        return replace(raw, mean=self.moments[0], std=self.moments[1])


class PlannedScenario(Scenario):
    """A scenario whose tasks are planned, each from one pool.

    An image held out for validation or testing is held out in every task. Raises `InputError` on
    first use for what `Source.load` refuses, for a task with a part that has no samples or a class
    that has none to train on, for tasks whose images differ in shape, and for tasks that cannot
    share one output layer.
    """

    @abstractmethod
    def steps(self) -> Sequence[tuple[Pool, Plan]]:
        """The tasks in order. May read the data. A task must not depend on later ones."""

    @property
    def notes(self) -> tuple[str, ...]:
        pools = {id(pool): pool for pool, _ in self._steps}
        return tuple(note for pool in pools.values() for note in pool.raw.notes)

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        tasks = []
        for number, (pool, plan) in enumerate(self._steps, start=1):
            raw = pool.raw
            channels, height, width = raw.train.inputs.shape[1:]
            head = number - 1 if self.incremental == "task_incremental" else 0
            names = tuple(raw.classes[c] for c in plan.classes)
            transform = InputTransform(raw.scale, raw.mean, raw.std, plan.permutation)
            shape = (channels, height, width)
            tasks.append(Task(number, plan.name, names, head, shape, transform, plan.answers))
        self._agree(tasks)
        return tuple(tasks)

    def _agree(self, tasks: Sequence[Task]) -> None:
        """Raises `InputError` where one network cannot learn all tasks."""
        first = tasks[0]
        for task in tasks:
            if task.shape != first.shape:
                shapes = ["x".join(map(str, t.shape)) for t in (first, task)]
                found = f"{first.name!r} has {shapes[0]}, {task.name!r} has {shapes[1]}."
                step = f"{found} Options that give all the same are `size` and `colour`."
                raise InputError("scenario.tasks", task.name, "images of one shape", step)
            if task.head == first.head and task.outputs != first.outputs:
                counts = f"{len(first.classes)} and {len(task.classes)}"
                step = f"{first.name!r} and {task.name!r} have {counts}."
                allowed = "task_incremental where tasks differ in their number of classes"
                raise InputError("scenario.incremental", self.incremental, allowed, step)

    def data(self, number: int) -> TaskData:
        """Training and validation samples of task `number`; made anew at each call."""
        (pool, plan), task = self._step(number), self.tasks[number - 1]
        train, validation = (_select(p, plan, task) for p in (pool.raw.train, pool.validation))
        kept_back = int(_members(pool.test, plan).sum())
        if number not in self._digests:
            self._digests[number] = _digest(task, train, validation)
        return TaskData(task, train, validation, self._digests[number], kept_back)

    def origin(self, number: int) -> Source:
        return self._step(number)[0].source

    def test(self, number: int) -> Samples:
        pool, plan = self._step(number)
        return _select(pool.test, plan, self.tasks[number - 1])

    @cached_property
    def _digests(self) -> dict[int, str]:
        """Those of tasks whose data has been made: every sample is read for one."""
        return {}

    @cached_property
    def _steps(self) -> tuple[tuple[Pool, Plan], ...]:
        """The tasks, each known to have samples in every part, and of every class."""
        steps = tuple(self.steps())
        for pool, plan in steps:
            parts = {"training": pool.raw.train, "validation": pool.validation, "test": pool.test}
            for part, samples in parts.items():
                if not _members(samples, plan).any():
                    field = "scenario.test" if part == "test" else "scenario.validation"
                    share = getattr(self.options, field.removeprefix("scenario."))
                    allowed = f"a share that leaves task {plan.name!r} {part} samples"
                    step = f"Its classes have too few images in {pool.source.name!r}."
                    raise InputError(field, share, allowed, step)
            seen = set(pool.raw.train.labels.tolist())
            for label in plan.classes:
                if label not in seen:
                    allowed = f"a class of task {plan.name!r} with training images"
                    notes = " ".join(pool.raw.notes)
                    raise InputError(pool.source.field, pool.raw.classes[label], allowed, notes)
        return steps

    def _step(self, number: int) -> tuple[Pool, Plan]:
        if not 1 <= number <= len(self._steps):
            raise InputError("task", number, f"1 to {len(self._steps)}")
        return self._steps[number - 1]


class SourceScenario(PlannedScenario):
    """A scenario whose tasks are all made from one source; an unknown one is refused at once."""

    def __init__(self, options: SourceOptions) -> None:
        super().__init__(options)
        self.source = build_source(options.source, "scenario.source", self.storage)
        self.pool = Pool(self.source, options)
        self.incremental = options.incremental

    @abstractmethod
    def plan(self, classes: Sequence[str], pixels: int) -> Sequence[Plan]:
        """The tasks, made from a source of these classes and of images of so many pixels.

        A task must not depend on how many come after it.
        """

    def steps(self) -> list[tuple[Pool, Plan]]:
        raw = self.pool.raw
        plans = self.plan(raw.classes, raw.train.inputs.shape[2:].numel())
        return [(self.pool, plan) for plan in plans]


def held_out(labels: Tensor, share: float, *stream: str | int) -> Tensor:
    """Which samples are held out, bool `[N]`, by their labels `[N]`.

    Of every class of n samples round(share·n) are held out, at least 1 and at most n - 1; which
    ones depends on the stream and the class alone. A class of one sample is kept.
    """
    out = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        index = (labels == label).nonzero().squeeze(1)
        n = len(index)
        count = min(max(round(share * n), 1), n - 1)
        order = torch.randperm(n, generator=generator("hold-out", *stream, label))
        out[index[order[:count]]] = True
    return out


def _members(samples: Samples, plan: Plan) -> Tensor:
    """Which samples are of the plan's classes: bool `[N]`."""
    return torch.isin(samples.labels, torch.tensor(plan.classes))


def _select(samples: Samples, plan: Plan, task: Task) -> Samples:
    """The samples of the plan's classes as the task sees them, labels from 0."""
    chosen = samples[_members(samples, plan)]
    new = torch.zeros(max(plan.classes) + 1, dtype=torch.int64)
    new[torch.tensor(plan.classes)] = torch.arange(len(plan.classes))
    return Samples(task.transform.permute(chosen.inputs), new[chosen.labels], chosen.image)


def _digest(task: Task, train: Samples, validation: Samples) -> str:
    """Digest of what a trial sees of a task: what it is, and every sample."""
    transform = task.transform
    return digest(
        {
            "task": [task.number, task.name, task.classes, task.head, task.shape],
            "normalisation": [transform.scale, transform.mean, transform.std],
            "permutation": transform.order,
            "train": train.digest(),
            "validation": validation.digest(),
            **task.answers.identity,
        }
    )
