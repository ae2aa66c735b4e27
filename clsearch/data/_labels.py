"""Labels as a user's files have them, numbers or texts, into class numbers and class names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from clsearch.data.base import SourceOptions
from clsearch.errors import InputError

Label = int | str


class LabelOptions(SourceOptions):
    """Options of a source whose labels stand beside the images."""

    names: list[str] | str | None = Field(
        None,
        min_length=1,
        description="Names of the classes 0, 1, … as a list, or a text file of the data folder with"
        " a name in each line. Default: the labels that occur in the training part, in order.",
    )


def class_names(options: LabelOptions, root: Path, field: str) -> tuple[str, ...] | None:
    """The names of the options, from their file if they are in one; None where none are given."""
    if options.names is None:
        return None
    if isinstance(options.names, list):
        return _distinct(options.names, f"{field}.names")
    return read_names(root / Path(options.names).expanduser(), f"{field}.names")


def read_names(path: Path, field: str) -> tuple[str, ...]:
    """The lines of a text file that are not empty, each once."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        allowed = "a readable text file with the name of a class in each line"
        raise InputError(field, str(path), allowed, f"The system said: {error}.") from error
    return _distinct([line.strip() for line in lines if line.strip()], field)


def _distinct(names: Sequence[str], field: str) -> tuple[str, ...]:
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice or not names:
        raise InputError(field, twice or list(names), "one or more names of classes, each once")
    return tuple(names)


def number(
    train: Sequence[Label],
    test: Sequence[Label] | None,
    names: tuple[str, ...] | None,
    field: str,
) -> tuple[list[int], list[int] | None, tuple[str, ...]]:
    """Class numbers of both parts and the names of the classes.

    With `names`, whole numbers are places in them and texts are names; without, the classes are
    the labels of the training part, in order. Raises `InputError` at `field` for other labels, and
    for numbers below 0.
    """
    if names is None:
        known = {label: i for i, label in enumerate(sorted(set(train), key=_order))}
        below = [label for label in train if isinstance(label, int) and label < 0]
        if below:
            step = f"Below are {len(below)} of {len(train)}."
            raise InputError(field, below[0], "labels of 0 or more, or texts", step)
        names = tuple(str(label) for label in known)
        allowed = "in the test part, the labels of the training part"
    else:
        known = {name: i for i, name in enumerate(names)} | {i: i for i in range(len(names))}
        allowed = f"labels from 0 to {len(names) - 1}, or the names of these classes"
    for part in (train, test or ()):
        others = [label for label in part if label not in known]
        if others:
            step = f"So it is at {len(others)} of {len(part)} images."
            raise InputError(field, others[0], allowed, step)
    numbers = [known[label] for label in train]
    return numbers, None if test is None else [known[label] for label in test], names


def _order(label: Label) -> tuple[bool, int, str]:
    """Numbers by size, before texts by the alphabet."""
    return (False, label, "") if isinstance(label, int) else (True, 0, label)
