"""The same images again and again, their pixels in another order for every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from clsearch.rng import generator
from clsearch.scenarios._common import Plan, SourceOptions, SourceScenario
from clsearch.scenarios.base import Incremental


class PermutedOptions(SourceOptions):
    incremental: Incremental = Field(
        "domain_incremental",
        description="`domain_incremental` gives all tasks one output layer, `task_incremental`"
        " one each.",
    )
    tasks: int = Field(5, ge=1, le=10_000, description="Number of tasks.")
    first_identity: bool = Field(
        True,
        description="Task 1 shows the images as they are (SLNI §3.1); false permutes it as well"
        " (CLNP §3.1).",
    )


class Permuted(SourceScenario):
    """All classes in every task; one fixed random order of the pixels per task.

    The order of task t depends on `split_seed` and t alone.
    """

    name: ClassVar[str] = "permuted"
    Options: ClassVar = PermutedOptions

    def plan(self, classes: Sequence[str], pixels: int) -> list[Plan]:
        plans = []
        for number in range(1, self.options.tasks + 1):
            order = None
            if number > 1 or not self.options.first_identity:
                rng = generator("permutation", self.options.split_seed, number)
                order = torch.randperm(pixels, generator=rng)
            plans.append(Plan(f"permuted-{number}", tuple(range(len(classes))), order))
        return plans
