"""The contract of a regulariser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from clsearch.errors import InputError
from clsearch.models.base import Backbone
from clsearch.options import Strict
from clsearch.space import Hyper

Hypers = Mapping[str, Tensor]
"""Hyperparameters by name: 0-d for one member, `[K]` for a pack."""


def per_member(values: Tensor, like: Tensor) -> Tensor:
    """`[K]` shaped to broadcast over a stack `[K, …]`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def require_unit_layers(name: str, backbone: Backbone) -> None:
    """Raises `InputError` for a backbone that names no unit layers."""
    if not backbone.unit_layers:
        allowed = f"one that the model {backbone.name} can have: it names no unit layers"
        raise InputError("name", name, allowed, "Take another regulariser or model.")


class RegularizerOptions(Strict):
    """Options of a regulariser; each declares its own."""


class Regularizer(ABC):
    """A term added to the loss of any method. One file a regulariser.

    `penalty` is the definition, for one member, and autograd takes its gradient. A regulariser of
    the weights alone may also give the gradient itself: set `analytic` and write `add_gradient`;
    the contract suite compares the two. `version` is part of every trial's key: raise it when the
    term changes.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Options: ClassVar[type[RegularizerOptions]] = RegularizerOptions
    space: ClassVar[dict[str, Hyper]] = {}
    analytic: ClassVar[bool] = False

    def __init__(self, options: Any, backbone: Backbone) -> None:
        self.options, self.backbone = options, backbone

    @abstractmethod
    def penalty(
        self,
        params: Mapping[str, Tensor],
        activations: Mapping[str, Tensor],
        importance: Mapping[str, Tensor],
        hyper: Hypers,
    ) -> Tensor:
        """The 0-d term of one member: its trained parameters, its activations `[B, units, …]`.

        `importance` is what `consolidate` returned after the task before; empty at first.
        """

    def consolidate(
        self, importance: Mapping[str, Tensor], neurons: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What to remember after a task, given what was remembered before.

        `neurons()` is the neuron importance α of the task, by unit layer `[units]` (SLNI eq. 5).
        """
        return {}

    @property
    def axes(self) -> Mapping[str, Hyper]:
        """What a grid may name: `space`, and what is there for this backbone besides."""
        return self.space

    @property
    def updates(self) -> bool:
        """Whether `after_update` does anything, and has to be called."""
        return type(self).after_update is not Regularizer.after_update

    def add_gradient(
        self, grads: dict[str, Tensor], params: Mapping[str, Tensor], hyper: Hypers
    ) -> None:
        """Adds the gradient of `penalty` to `grads` in place: stacked `[K, …]`, hyper `[K]`."""
        raise TypeError(f"{self.name} gives no analytic gradient")

    def after_update(self, params: dict[str, Tensor], hyper: Hypers) -> None:
        """Called after each optimiser step on the stacked parameters `[K, …]`, in place.

        Only where `updates` says so. Entries that a method froze are put back afterwards.
        """
