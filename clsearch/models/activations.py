"""Activations that every backbone can take: ReLU, maxout and local winner takes all (LWTA).

The functions work on dimension 1, so that they serve neurons `[B, N]` and channels `[B, C, H, W]`.
A group is `group` neighbours in that dimension; of several that tie for the maximum, the first is
it. A group with a NaN gives NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from clsearch.errors import InputError
from clsearch.models.base import BackboneOptions


def maxout(x: Tensor, group: int) -> Tensor:
    """`[B, units·group, …]` to `[B, units, …]`: a unit is the maximum of its group, whatever its
    sign (Goodfellow et al. 2013, §3). The gradient goes to the maximum alone."""
    return _groups(x, group).max(2).values


def lwta(x: Tensor, group: int) -> Tensor:
    """`[B, units, …]` to the same: the largest of each group passes as it is, whatever its sign,
    and the others are 0 (Srivastava et al. 2013). The gradient goes to the winners alone."""
    neurons = _groups(x, group)
    value, winner = neurons.max(2, keepdim=True)
    return torch.zeros_like(neurons).scatter(2, winner, value).flatten(1, 2)


def _groups(x: Tensor, group: int) -> Tensor:
    """`[B, N, …]` to `[B, N / group, group, …]`."""
    return x.view(x.shape[0], x.shape[1] // group, group, *x.shape[2:])


class ActivationOptions(BackboneOptions):
    """Options of a backbone whose unit layers take any of the activations.

    With maxout a layer of `units` neurons has `units·rows` rows of weights; with LWTA it has
    groups of `rivals` neurons. Both are 1 otherwise: `UnitLayer.rows` and `UnitLayer.group`.
    """

    activation: Literal["relu", "maxout", "lwta"] = Field(
        "relu",
        description="`relu`; `maxout`: a neuron is the maximum of `group` linear ones (Goodfellow "
        "et al. 2013); `lwta`: of `group` neurons the largest passes (Srivastava et al. 2013).",
    )
    group: int | None = Field(
        None,
        ge=2,
        le=1024,
        validate_default=True,
        description="Size of a group of `maxout` or `lwta`: 2 if not given.",
    )

    @field_validator("group")
    @classmethod
    def _of_the_activation(cls, group: int | None, info: ValidationInfo) -> int | None:
        grouped = info.data.get("activation") in ("maxout", "lwta")
        if group is not None and info.data.get("activation") == "relu":
            raise ValueError("no group with activation relu; maxout and lwta have groups")
        return 2 if group is None and grouped else group

    @property
    def rows(self) -> int:
        """Rows of weights that feed a neuron."""
        return self.group or 1 if self.activation == "maxout" else 1

    @property
    def rivals(self) -> int:
        """Neurons that compete with each other."""
        return self.group or 1 if self.activation == "lwta" else 1

    def check(self, field: str, widths: Sequence[int]) -> None:
        """Raises `InputError` for neurons of layers, given in `field`, that fill no groups."""
        if any(units % self.rivals for units in widths):
            allowed = f"multiples of {self.rivals}, the neurons of an lwta group"
            raise InputError(field, widths, allowed, "Change these, or the model's `group`.")

    def activate(self, x: Tensor) -> Tensor:
        """`[B, units·rows, …]` to `[B, units, …]`."""
        if self.activation == "maxout":
            return maxout(x, self.rows)
        return lwta(x, self.rivals) if self.activation == "lwta" else x.relu()
