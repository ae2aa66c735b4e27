"""The axes of a grid: numbers, lists of them, and ranges."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from clsearch.options import Strict

MAX_AXIS = 10_000
"""Values of one axis, at most."""


class Space(Strict):
    """A range of values: from and to (both included) and how many."""

    logspace: tuple[float, float, int] | None = Field(
        None, description="`[low, high, n]`: n values from low to high, equal ratios."
    )
    linspace: tuple[float, float, int] | None = Field(
        None, description="`[low, high, n]`: n values from low to high, equal steps."
    )

    @model_validator(mode="after")
    def _one(self) -> Space:
        if (self.logspace is None) == (self.linspace is None):
            raise ValueError("either logspace or linspace, as [low, high, n]")
        low, high, n = self.logspace or self.linspace or (0.0, 0.0, 0)
        ordered = -math.inf < low <= high < math.inf
        if not 1 <= n <= MAX_AXIS or not ordered or (self.logspace and low <= 0):
            raise ValueError(
                f"[low, high, n] with low <= high, n from 1 to {MAX_AXIS}, and low > 0 for logspace"
            )
        return self

    def values(self) -> list[float]:
        low, high, n = self.logspace or self.linspace or (0.0, 0.0, 0)
        if n == 1:
            return [low]
        if self.logspace:
            inner = [low * (high / low) ** (i / (n - 1)) for i in range(1, n - 1)]
        else:
            inner = [low + (high - low) * i / (n - 1) for i in range(1, n - 1)]
        return [low, *inner, high]


def _axis_kind(value: Any) -> str:
    """Which form of an axis a value is meant to be: errors then speak of that form alone."""
    if isinstance(value, Space | dict):
        return "an axis given as a space"
    return "an axis given as a list" if isinstance(value, list) else "an axis given as a number"


def _no_truth(value: Any) -> Any:
    """YAML's `yes` and `true` are no numbers."""
    if isinstance(value, bool):
        raise ValueError("a number")
    return value


Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_no_truth)]
Axis = Annotated[
    Annotated[
        list[Number], Field(min_length=1, max_length=MAX_AXIS), Tag("an axis given as a list")
    ]
    | Annotated[Space, Tag("an axis given as a space")]
    | Annotated[Number, Tag("an axis given as a number")],
    Discriminator(_axis_kind),
]
Grid = dict[str, Axis]


def axis_values(axis: Axis) -> list[float]:
    """The distinct values of one axis of a grid, in order."""
    values = (
        axis.values() if isinstance(axis, Space) else axis if isinstance(axis, list) else [axis]
    )
    return list(dict.fromkeys(float(v) for v in values))
