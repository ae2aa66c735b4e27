"""What a user reads: pydantic's errors as field, value, what is allowed; commands to type next,
times, and lines as they are."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from clsearch.errors import InputError
from clsearch.files import program_path

if TYPE_CHECKING:
    from rich.console import Console

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
NAME_IN_WORDS = (
    "1 to 64 letters, digits, '.', '_' or '-', of which the first is a letter or a digit"
)
AXIS = "a list of numbers, {logspace: [low, high, n]}, {linspace: [low, high, n]} or a number"


def from_pydantic(error: ValidationError, model: type[BaseModel], prefix: str = "") -> InputError:
    """The first error of pydantic as an `InputError`: field, value, what is allowed."""
    errors = error.errors()
    first = errors[0]
    field = prefix
    for part in first["loc"]:
        if isinstance(part, int) and first["type"] != "invalid_key":
            field += f"[{part}]"
        elif part not in NO_KEYS and not str(part).startswith(("list[", "function-", "literal[")):
            field += f".{part}" if field else str(part)
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, first["loc"][:-1])
        allowed = "one of " + ", ".join(sorted(known)) if known else "nothing: it has no options"
        return InputError(field, first["loc"][-1], allowed)
    if "an axis given as a number" in first["loc"]:
        return InputError(field, first["input"], AXIS)
    if "an axis given as a space" in first["loc"][:-1]:
        return InputError(field, first["input"], "[low, high, n]: two numbers and a whole number")
    if first["type"] == "missing":
        return InputError(field, None, "this key is required", "Add it.")
    return InputError(field or "config", first["input"], _in_words(errors))


NO_KEYS = frozenset(
    {
        "an axis given as a list",
        "an axis given as a space",
        "an axis given as a number",
        "constrained-int",
        "int",
        "float",
        "str",
        "[key]",
    }
)
"""What pydantic puts into the place of an error and the user never wrote."""

KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "invalid_key": "keys that are text",
    "none_required": "null",
    "literal_error": "{expected}",
    "greater_than_equal": "a number of at least {ge}",
    "greater_than": "a number above {gt}",
    "less_than_equal": "a number of at most {le}",
    "less_than": "a number below {lt}",
    "too_short": "a list of {min_length} or more values",
    "too_long": "a list of at most {max_length} values",
}


def _in_words(errors: Sequence[ErrorDetails]) -> str:
    """What the first of pydantic's errors allows, and the other kinds its value may be of."""
    words = []
    for one in errors:
        if one["input"] is not errors[0]["input"] or one["loc"][:-1] != errors[0]["loc"][:-1]:
            break
        kind, context = one["type"], one.get("ctx", {})
        if context.get("pattern") == NAME:
            words.append(NAME_IN_WORDS)
        elif kind in KINDS:
            words.append(KINDS[kind].format(**context))
        else:
            words.append(one["msg"].removeprefix("Value error, ").removeprefix("Input should be "))
    return " or ".join(dict.fromkeys(words))


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names of the section of `model` at `location`."""
    for part in location:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        kinds = [model.model_fields[str(part)].annotation]
        while kinds:
            kind = kinds.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
                break
            kinds += getattr(kind, "__args__", ())
    return list(model.model_fields)


def printable(text: str) -> str:
    """The text without the characters that steer a terminal: it may be somebody else's."""
    return _CONTROLS.sub("", text)


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def say(console: Console, text: str) -> None:
    """Prints text as it is: no markup in it, no colours, lines as long as they are."""
    console.print(printable(text), soft_wrap=True, markup=False, highlight=False)


def command(verb: str, what: Path | str, *rest: str) -> str:
    """A command of clsearch as it can be typed here: by its path, where it is not on the PATH."""
    program = "clsearch" if shutil.which("clsearch") else program_path("clsearch")
    return shlex.join([program, verb, str(what), *rest])


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
