"""Classes as a config names them, by number or by name, into class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, StrictInt

from clsearch.errors import InputError

ClassList = Annotated[list[StrictInt | str], Field(min_length=2)]


def chosen(given: Sequence[int | str], names: Sequence[str], field: str) -> tuple[int, ...]:
    """The numbers of classes given by number, counted from 0, or by name.

    Raises `InputError` at `field` for a class that is not there or stands twice.
    """
    numbers = []
    for one in given:
        if isinstance(one, str) and one in names:
            numbers.append(names.index(one))
        elif isinstance(one, int) and 0 <= one < len(names):
            numbers.append(one)
        else:
            allowed = f"a class from 0 to {len(names) - 1}, or one of {', '.join(names)}"
            raise InputError(field, one, allowed)
    once(numbers, field, "every class once")
    return tuple(numbers)


def once(given: Sequence[int | str], field: str, allowed: str) -> None:
    """Raises `InputError` at `field` where something stands twice."""
    twice = sorted({one for one in given if given.count(one) > 1}, key=str)
    if twice:
        raise InputError(field, list(given), allowed, f"Twice: {', '.join(map(str, twice))}.")
