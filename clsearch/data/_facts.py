"""A table of images and the facts they show: `image, subject, predicate, object` in a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from clsearch.data._images import Encoded, decode
from clsearch.data._listed import ListedOptions
from clsearch.data._paths import file
from clsearch.data._pixels import raw_data
from clsearch.data._words import words_of
from clsearch.data.base import OwnOptions, RawData, Source
from clsearch.errors import InputError
from clsearch.options import PLACE

COLUMNS = ("image", "subject", "predicate", "object")
PARTS = ("train", "test")


class FactOptions(ListedOptions, OwnOptions):
    """Options of a set of facts and their images."""

    path: str = Field(
        json_schema_extra=PLACE,
        description="A CSV file, absolute or within the data folder, with the columns `image`,"
        " `subject`, `predicate` and `object`, and perhaps `split` and `task`.",
    )
    images: str | None = Field(
        None,
        json_schema_extra=PLACE,
        description="The folder that the paths of images start from, absolute or within the data"
        " folder; default that of the CSV file.",
    )


class Fact(NamedTuple):
    """A structured fact <S, P, O>; an empty part is a wild card."""

    subject: str
    predicate: str
    object: str

    def __str__(self) -> str:
        """`person, riding, horse`; wild cards at the end are left out, others are `*`."""
        shown = [part or "*" for part in self]
        while shown[-1] == "*":
            shown.pop()
        return ", ".join(shown)


@dataclass(frozen=True)
class Row:
    """A line of the table: an image and a fact it shows; `split` and `task` may be empty."""

    line: int
    image: str
    fact: Fact
    split: str
    task: str


class FactTable(Source):
    """The images of a table, each row a sample whose class is its fact; facts in order.

    Without a column `split`, which says `train` or `test` in every row, there is no test part.
    """

    name = "facts"
    Options = FactOptions

    def load(self, root: Path, download: bool) -> RawData:
        """Training and test parts, uint8 `[N, C, H, W]`.

        Raises `InputError` for a table or images that are missing, rows without an image or a
        subject, an image in both parts, and what `decode` refuses.
        """
        table, notes = self.table(root), tuple[str, ...]()
        self._check_parts(table)
        folder = self._folder(root, table)
        numbers = {fact: i for i, fact in enumerate(table.facts)}
        parts = []
        for part in PARTS if table.rows[0].split else [""]:
            rows = [row for row in table.rows if row.split == part]
            images = [Encoded(row.image, folder / row.image, numbers[row.fact]) for row in rows]
            samples, more = decode(images, len(images), self.options, self.field, self.storage)
            parts.append(samples)
            notes += more
        names = tuple(str(fact) for fact in table.facts)
        test = parts[1] if len(parts) > 1 else None
        return raw_data(parts[0], test, names, self.options, self.field, notes)

    def check(self, root: Path) -> None:
        file(root, self.options.path, f"{self.field}.path")

    def table(self, root: Path) -> Table:
        """What stands in the file."""
        return Table(self._rows(file(root, self.options.path, f"{self.field}.path")))

    def _rows(self, path: Path) -> tuple[Row, ...]:
        """The lines of the file, each with an image and a fact."""
        field, allowed = f"{self.field}.path", "a CSV file with the columns " + ", ".join(COLUMNS)
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream, strict=True)
                absent = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
                if absent:
                    found = f"Missing: {', '.join(absent)}."
                    raise InputError(field, str(path), allowed, found)
                rows = tuple(_row(reader.line_num, cells) for cells in reader)
        except (OSError, ValueError, csv.Error) as error:
            raise InputError(field, str(path), allowed, f"The reader said: {error}") from error
        if not rows:
            raise InputError(field, str(path), "a CSV file with a row or more")
        for column in ("image", "subject"):
            value = [row.image if column == "image" else row.fact.subject for row in rows]
            self._refuse(path, rows, [not v for v in value], f"an `{column}` in every row")
        return rows

    def _refuse(self, path: Path, rows: Sequence[Row], wrong: Sequence[bool], allowed: str) -> None:
        """Raises `InputError` where a row is wrong: the first is named, all are counted."""
        lines = [row.line for row, bad in zip(rows, wrong, strict=True) if bad]
        if lines:
            step = f"So it is in {len(lines)} of {len(rows)} rows, the first in line {lines[0]}."
            raise InputError(f"{self.field}.path", str(path), allowed, step)

    def _check_parts(self, table: Table) -> None:
        """Raises `InputError` where `split` says something else, or an image is in both parts."""
        rows, path = table.rows, Path(self.options.path)
        if not any(row.split for row in rows):
            return
        others = [row.split not in PARTS for row in rows]
        self._refuse(path, rows, others, "`train` or `test` in every row of the column `split`")
        for part in PARTS:
            if all(row.split != part for row in rows):
                allowed = f"`{part}` in some rows of the column `split`"
                raise InputError(f"{self.field}.path", str(path), allowed)
        train = {row.image for row in rows if row.split == "train"}
        both = [row.split == "test" and row.image in train for row in rows]
        self._refuse(path, rows, both, "every image either in `train` or in `test`")

    def _folder(self, root: Path, table: Table) -> Path:
        """Where the images lie; raises `InputError` where one is missing."""
        given = self.options.images
        place = Path(self.options.path).parent if given is None else Path(given)
        folder = root / place.expanduser()
        missing = [row.image for row in table.rows if not (folder / row.image).is_file()]
        if missing:
            step = f"{len(missing)} of {len(table.rows)} are missing, the first is {missing[0]!r}."
            allowed = "a folder in which every image of the table is"
            raise InputError(f"{self.field}.images", str(folder.absolute()), allowed, step)
        return folder


def _row(line: int, cells: dict[str, str | None]) -> Row:
    """A line of the file; blanks around and between words are nothing."""
    clean = {name: " ".join((cell or "").split()) for name, cell in cells.items() if name}
    subject, predicate, thing = (" ".join(words_of(clean[column])) for column in COLUMNS[1:])
    image = (cells["image"] or "").strip()
    return Row(
        line, image, Fact(subject, predicate, thing), clean.get("split", ""), clean.get("task", "")
    )


@dataclass(frozen=True)
class Table:
    """The rows of a file, and their facts in order."""

    rows: tuple[Row, ...]

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        return tuple(sorted({row.fact for row in self.rows}))
