"""One data set cut into tasks of a few classes each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from clsearch.errors import InputError
from clsearch.scenarios._common import Plan, SourceOptions, SourceScenario


class SplitOptions(SourceOptions):
    classes_per_task: int = Field(2, ge=2, description="Classes in a task.")
    tasks: int | None = Field(
        None, ge=1, description="Number of tasks; default as many as the classes allow."
    )
    class_order: list[int] | None = Field(
        None,
        min_length=1,
        description="Classes of the source, counted from 0, in the order in which tasks take them;"
        " those not named are left out. Default all, in the order of the source.",
    )


class Split(SourceScenario):
    """Task t has the t-th group of `classes_per_task` classes of the class order.

    Raises `InputError` when the classes do not fill the tasks.
    """

    name: ClassVar[str] = "split"
    Options: ClassVar = SplitOptions

    def __init__(self, options: SplitOptions) -> None:
        super().__init__(options)
        if options.class_order is not None:
            if len(set(options.class_order)) < len(options.class_order):
                raise InputError("scenario.class_order", options.class_order, "every class once")
            self._check(options.class_order)

    def plan(self, classes: int, pixels: int) -> list[Plan]:
        order = self.options.class_order or list(range(classes))
        if not 0 <= min(order) <= max(order) < classes:
            allowed = f"classes of {self.source.name!r}: 0 to {classes - 1}"
            raise InputError("scenario.class_order", order, allowed)
        self._check(order)
        size = self.options.classes_per_task
        count = self.options.tasks or len(order) // size
        groups = [tuple(order[i * size : (i + 1) * size]) for i in range(count)]
        return [Plan(f"split-{number}", group) for number, group in enumerate(groups, start=1)]

    def _check(self, order: Sequence[int]) -> None:
        size, total = self.options.classes_per_task, len(order)
        if total % size:
            allowed = f"a divisor of the number of classes, {total}"
            step = "Name the classes to use in `class_order` to leave some out."
            raise InputError("scenario.classes_per_task", size, allowed, step)
        if self.options.tasks is not None and self.options.tasks * size > total:
            allowed = f"1 to {total // size}: {total} classes, {size} in a task"
            raise InputError("scenario.tasks", self.options.tasks, allowed)
