"""One data set cut into tasks of a few classes each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from clsearch.errors import InputError
from clsearch.scenarios._classes import ClassList, chosen, once
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
    task_classes: list[ClassList] | None = Field(
        None,
        min_length=1,
        description="The classes of every task, each by its number, counted from 0, or its name:"
        " `[[0, 1], [cat, dog]]`. In place of `classes_per_task` and `class_order`.",
    )


class Split(SourceScenario):
    """Task t has the t-th group of `classes_per_task` classes of the class order.

    Or the t-th list of `task_classes`. Raises `InputError` when the classes do not fill the tasks,
    and for a class that is not there or in two tasks.
    """

    name: ClassVar[str] = "split"
    Options: ClassVar = SplitOptions

    def __init__(self, options: SplitOptions) -> None:
        super().__init__(options)
        groups = options.task_classes
        if groups is not None:
            for other in ("classes_per_task", "class_order"):
                value = getattr(options, other)
                if value != SplitOptions.model_fields[other].default:
                    allowed = "nothing beside `task_classes`"
                    raise InputError(f"scenario.{other}", value, allowed)
            every = [one for group in groups for one in group]
            once(every, "scenario.task_classes", "every class in one task, and once")
            self._check(len(groups), 1)
        elif options.class_order is not None:
            once(options.class_order, "scenario.class_order", "every class once")
            self._check(len(options.class_order), options.classes_per_task)

    def plan(self, classes: Sequence[str], pixels: int) -> list[Plan]:
        groups = self._listed(classes) if self.options.task_classes else self._cut(len(classes))
        return [Plan(f"split-{number}", group) for number, group in enumerate(groups, start=1)]

    def _listed(self, names: Sequence[str]) -> list[tuple[int, ...]]:
        """The groups of `task_classes`."""
        field = "scenario.task_classes"
        groups = [
            chosen(group, names, f"{field}[{i}]")
            for i, group in enumerate(self.options.task_classes)
        ]
        once([number for group in groups for number in group], field, "every class in one task")
        return groups[: self.options.tasks]

    def _cut(self, classes: int) -> list[tuple[int, ...]]:
        """The groups of `classes_per_task` classes, in the class order."""
        order = self.options.class_order or list(range(classes))
        if not 0 <= min(order) <= max(order) < classes:
            allowed = f"classes of {self.source.name!r}: 0 to {classes - 1}"
            raise InputError("scenario.class_order", order, allowed)
        size = self.options.classes_per_task
        self._check(len(order), size)
        count = self.options.tasks or len(order) // size
        return [tuple(order[i * size : (i + 1) * size]) for i in range(count)]

    def _check(self, total: int, size: int) -> None:
        """`total` is to be cut into tasks of `size`."""
        if total % size:
            allowed = f"a divisor of the number of classes, {total}"
            step = "Name the classes to use in `class_order` to leave some out."
            raise InputError("scenario.classes_per_task", size, allowed, step)
        if self.options.tasks is not None and self.options.tasks * size > total:
            what = "lists of classes" if self.options.task_classes else f"classes, {size} in a task"
            raise InputError(
                "scenario.tasks", self.options.tasks, f"1 to {total // size}: {total} {what}"
            )
