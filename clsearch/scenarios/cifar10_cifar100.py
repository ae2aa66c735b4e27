"""CIFAR-10, then CIFAR-100 ten classes at a time."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from clsearch.data.base import SourceConfig, build_source
from clsearch.scenarios._common import Plan, PlannedScenario, Pool
from clsearch.scenarios.base import Incremental, ScenarioOptions

_SIZE = 10
_TASKS = 11


class Cifar10Cifar100Options(ScenarioOptions):
    incremental: Incremental = Field(
        "task_incremental",
        description="`task_incremental` gives every task an output layer of its own,"
        " `domain_incremental` one to all.",
    )
    tasks: int = Field(_TASKS, ge=1, le=_TASKS, description="Number of tasks.")


class Cifar10Cifar100(PlannedScenario):
    """Task 1 is CIFAR-10; tasks 2 to 11 have ten classes of CIFAR-100 each (CLNP §3.2).

    The classes of CIFAR-100 are taken in the order of its labels. Every task is normalised with the
    mean and deviation of its own set.
    """

    name: ClassVar[str] = "cifar10_cifar100"
    Options: ClassVar = Cifar10Cifar100Options

    def __init__(self, options: Cifar10Cifar100Options) -> None:
        super().__init__(options)
        self.incremental = options.incremental
        self.first, self.later = (
            Pool(build_source(SourceConfig(name=name), "scenario.name", self.storage), options)
            for name in ("cifar10", "cifar100")
        )

    def steps(self) -> list[tuple[Pool, Plan]]:
        steps = [(self.first, Plan("cifar10", tuple(range(_SIZE))))]
        for number in range(1, self.options.tasks):
            classes = tuple(range((number - 1) * _SIZE, number * _SIZE))
            steps.append((self.later, Plan(f"cifar100-{number}", classes)))
        return steps
