"""Facts in images, learned group by group as embeddings beside word vectors (MAS §5.2)."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from clsearch.data._facts import Fact, FactOptions, FactTable, Table
from clsearch.data._paths import file
from clsearch.data._stored import Images, chunks
from clsearch.data._words import embed
from clsearch.data.base import RawData, Samples, data_root
from clsearch.errors import InputError
from clsearch.options import PLACE
from clsearch.rng import generator
from clsearch.scenarios._common import Plan, PlannedScenario, Pool, held_out
from clsearch.scenarios.base import Incremental, ScenarioOptions
from clsearch.scenarios.retrieval import Retrieval, first_of


class FactsOptions(ScenarioOptions, FactOptions):
    incremental: Incremental = Field(
        "domain_incremental",
        description="`domain_incremental` gives all tasks one output layer, as in MAS §5.2,"
        " `task_incremental` one each.",
    )
    words: str = Field(
        json_schema_extra=PLACE,
        description="Word vectors, absolute or within the data folder: a text file of `word v1 …"
        " vD`, or an .npz file of `words` and `vectors`.",
    )
    groups: int | None = Field(
        None,
        ge=1,
        description="Tasks into which the facts are split at random, by `split_seed`; default as"
        " the column `task` of the CSV file says: 1, 2, …",
    )


class Facts(PlannedScenario):
    """Task t has the t-th group of facts, such as `<person, riding, horse>` or `<dog>`.

    An output layer gives three embeddings of an image, as long as the word vectors, and is trained
    to come near the words of the image's fact; what stands for accuracy is the mean average
    precision of retrieving images with facts, among the images of the task (MAS §5.2). Empty parts
    of a fact are wild cards; a part of several words has the mean of their vectors. An image may
    show several facts, each in a row of its own; it is held out with all of its rows, and each
    fact ranks it once.
    """

    name: ClassVar[str] = "facts"
    Options: ClassVar = FactsOptions

    def __init__(self, options: FactsOptions) -> None:
        super().__init__(options)
        self.incremental = options.incremental
        self.source = FactTable(options, "scenario", self.storage)
        self.pool = _FactPool(self.source, options)

    @property
    def notes(self) -> tuple[str, ...]:
        about = "Accuracy is the mean average precision of fact to image retrieval."
        return (*super().notes, about)

    def steps(self) -> list[tuple[Pool, Plan]]:
        answers = self._answers
        steps: list[tuple[Pool, Plan]] = []
        for number, group in enumerate(self._groups(), start=1):
            index = torch.tensor(group)
            own = Retrieval(answers.vectors[index], answers.given[index])
            steps.append((self.pool, Plan(f"facts-{number}", tuple(group), answers=own)))
        return steps

    @cached_property
    def _table(self) -> Table:
        return self.source.table(data_root(self.options.root))

    @cached_property
    def _answers(self) -> Retrieval:
        """The vectors of all facts, and what each of them has."""
        facts, field = self._table.facts, "scenario.words"
        place = file(data_root(self.options.root), self.options.words, field)
        found = embed({part for fact in facts for part in fact if part}, place, field)
        zero = torch.zeros_like(next(iter(found.values())))
        vectors = torch.stack([torch.stack([found.get(p, zero) for p in f]) for f in facts])
        return Retrieval(vectors, torch.tensor([[bool(part) for part in f] for f in facts]))

    def _groups(self) -> list[list[int]]:
        """The facts of every task, by number."""
        count, options = len(self._table.facts), self.options
        if options.groups is None:
            return self._named()
        if 2 * options.groups > count:
            allowed = f"1 to {count // 2}: of {count} facts, two or more in every task"
            raise InputError("scenario.groups", options.groups, allowed)
        order = torch.randperm(count, generator=generator("facts", options.split_seed)).tolist()
        ends = [i * count // options.groups for i in range(options.groups + 1)]
        return [sorted(order[a:b]) for a, b in itertools.pairwise(ends)]

    def _named(self) -> list[list[int]]:
        """The groups of the column `task`."""
        facts, where = self._table.facts, dict[Fact, int]()
        field, path = "scenario.path", self.options.path
        for row in self._table.rows:
            if not row.task.isdecimal() or int(row.task) < 1:
                allowed = "the number of a task, from 1, in every row of the column `task`"
                step = f"In line {row.line} fact {str(row.fact)!r} has {row.task!r}."
                step += " Give `groups` to split facts at random."
                raise InputError(field, path, allowed, step)
            if where.setdefault(row.fact, int(row.task)) != int(row.task):
                step = f"In line {row.line} {str(row.fact)!r} is in another task than above."
                raise InputError(field, path, "every fact in one task", step)
        groups: dict[int, list[int]] = {number: [] for number in sorted(set(where.values()))}
        for i, fact in enumerate(facts):
            groups[where[fact]].append(i)
        for place, (number, group) in enumerate(groups.items(), start=1):
            if place != number or len(group) < 2:
                step = f"Task {place} has {len(group) if place == number else 0}."
                raise InputError(field, path, "two facts or more in every task", step)
        return list(groups.values())


class _FactPool(Pool):
    """Holds out images, not rows: all rows of an image are on one side."""

    def read(self) -> RawData:
        """With the numbers of images, if any of them is in several rows."""
        raw = super().read()
        parts = [part for part in (raw.train, raw.test) if part is not None]
        numbers = [_numbers(part.inputs) for part in parts]
        if all(first_of(image).all() for image in numbers):
            return raw
        train, *test = (replace(p, image=i) for p, i in zip(parts, numbers, strict=True))
        return replace(raw, train=train, test=test[0] if test else None)

    def parted(self, samples: Samples, share: float, *stream: str | int) -> tuple[Samples, Samples]:
        """By the fact that an image shows first. An image is kept where a fact would have none."""
        if samples.image is None:
            return super().parted(samples, share, *stream)
        first = first_of(samples.image)
        image = torch.unique(samples.image, return_inverse=True)[1]
        out = held_out(samples.labels[first], share, *stream)[image]
        for label in sorted(set(samples.labels.tolist())):
            own = samples.labels == label
            if out[own].all():
                out[image == image[own][0]] = False
        return samples[~out], samples[out]


def _numbers(inputs: Images) -> Tensor:
    """The number of each row's image, int64 `[rows]`, in the order in which they come: rows of the
    same pixels are of one image."""
    number = dict[bytes, int]()
    digests = (
        hashlib.sha256(pixels.numpy().data).digest()
        for pixels in itertools.chain.from_iterable(chunks(inputs))
    )
    return torch.tensor([number.setdefault(sha, len(number)) for sha in digests])
