"""Tasks from several data sets, one after the other: public ones or the user's own."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from clsearch.data._images import Colour, Size
from clsearch.data.base import SourceConfig, build_source
from clsearch.messages import NAME
from clsearch.options import Strict
from clsearch.records import digest
from clsearch.scenarios._classes import ClassList, chosen, once
from clsearch.scenarios._common import ConformedPool, Plan, PlannedScenario, Pool
from clsearch.scenarios.base import Incremental, ScenarioOptions


class Entry(Strict):
    """One task of a sequence."""

    source: SourceConfig = Field(
        description="The data set of the task: its name, or a section of its name and its options."
    )
    classes: ClassList | None = Field(
        None,
        description="The classes of the task, each by its number, counted from 0, or its name;"
        " default all.",
    )
    name: str | None = Field(
        None, pattern=NAME, description="Name of the task; default `<source>-<number>`."
    )


class SequenceOptions(ScenarioOptions):
    incremental: Incremental = Field(
        "task_incremental",
        description="`task_incremental` gives every task an output layer of its own,"
        " `domain_incremental` one to all.",
    )
    tasks: list[Entry] = Field(min_length=1, description="The tasks in order.")
    size: Size | None = Field(
        None,
        description="Height and width that the images of all tasks are brought to, or one number"
        " for both, as `size` of a source does; default as they are.",
    )
    colour: Colour | None = Field(
        None,
        description="Channels that the images of all tasks are brought to: `rgb` three, `grey` one;"
        " default as they are.",
    )


class Sequence(PlannedScenario):
    """Task t has classes of the t-th data set; the same set in several tasks is split once.

    Raises `InputError` for a class that is not there or in two tasks of one set, and where images
    differ in shape: `size` and `colour` bring them to one.
    """

    name: ClassVar[str] = "sequence"
    Options: ClassVar = SequenceOptions

    def __init__(self, options: SequenceOptions) -> None:
        super().__init__(options)
        self.incremental = options.incremental
        self.names = [e.name or f"{e.source.name}-{i + 1}" for i, e in enumerate(options.tasks)]
        once(self.names, "scenario.tasks", "tasks of different names")
        self.pools: dict[str, Pool] = {}
        for i, entry in enumerate(options.tasks):
            source = build_source(entry.source, f"scenario.tasks[{i}].source", self.storage)
            pool = ConformedPool(source, options, options.size, options.colour)
            self.pools.setdefault(_key(entry), pool)

    def steps(self) -> list[tuple[Pool, Plan]]:
        steps: list[tuple[Pool, Plan]] = []
        for i, (entry, name) in enumerate(zip(self.options.tasks, self.names, strict=True)):
            pool, field = self.pools[_key(entry)], f"scenario.tasks[{i}].classes"
            known = pool.raw.classes
            classes = tuple(range(len(known)))
            if entry.classes is not None:
                classes = chosen(entry.classes, known, field)
            taken = [known[c] for p, plan in steps if p is pool for c in plan.classes]
            once([*taken, *(known[c] for c in classes)], field, "every class of a set in one task")
            steps.append((pool, Plan(name, classes)))
        return steps


def _key(entry: Entry) -> str:
    """The same for entries of the same data."""
    return digest(entry.source.model_dump(mode="json"))
