"""What EWC, MAS, SI, L2 and IMM share: a quadratic penalty around earlier weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from clsearch.methods.base import (
    ChainState,
    Context,
    Evidence,
    Method,
    MethodOptions,
    Start,
    State,
    Thresholds,
)
from clsearch.models.base import Params
from clsearch.regularizers.base import Hypers


class AnchorOptions(MethodOptions):
    accumulate: Literal["sum", "mean", "decay"] = Field(
        "sum",
        description="How importance adds up over tasks: `sum` (the papers), running `mean`, or"
        " `decay`·old + new.",
    )
    decay: float = Field(0.9, ge=0, le=1, description="Weight of old importance for `decay`.")


class QuadraticAnchor(Method):
    """`factor · strength · Σ Ω (θ − θ*)²`: Ω the accumulated importance, θ* the anchor.

    A subclass measures the importance of the task just learned. The anchor is the last task's
    weights. State: `importance.<parameter>` and `anchor.<parameter>`, held once for a pack, and
    `tasks` (0-d).
    """

    Options: ClassVar[type[MethodOptions]] = AnchorOptions
    analytic: ClassVar[bool] = True
    factor: ClassVar[float] = 0.5

    @abstractmethod
    def measure(self, start: Start, params: Params, evidence: Evidence, context: Context) -> Params:
        """The importance of each parameter for the task just learned."""

    def _anchored(self, params: Mapping[str, Tensor], state: State) -> list[str]:
        return sorted(name for name in params if f"importance.{name}" in state)

    def penalty(self, params: Mapping[str, Tensor], state: State, hyper: Hypers) -> Tensor:
        total = hyper["strength"].new_zeros(())
        for name in self._anchored(params, state):
            change = params[name] - state[f"anchor.{name}"]
            total = total + (state[f"importance.{name}"] * change.square()).sum()
        return self.factor * hyper["strength"] * total

    def add_gradient(
        self, grads: dict[str, Tensor], params: Mapping[str, Tensor], state: State, hyper: Hypers
    ) -> None:
        """`2 · factor · strength · Ω (θ − θ*)`."""
        for name in self._anchored(params, state):
            pull = (params[name] - state[f"anchor.{name}"]).mul_(state[f"importance.{name}"])
            strength = hyper["strength"].view(-1, *[1] * (pull.ndim - 1))
            grads[name].addcmul_(pull, strength, value=2 * self.factor)

    def drift(self, params: Params, state: State) -> float:
        """`Σ Ω (θ − θ*)²`, in float64: a trial whose weights grew huge has a finite drift too."""
        total = 0.0
        for n in self._anchored(params, state):
            change = params[n].double() - state[f"anchor.{n}"].double()
            total += float((state[f"importance.{n}"].double() * change.square()).sum())
        return total

    def consolidate(
        self,
        start: Start,
        params: Params,
        evidence: Evidence,
        thresholds: Thresholds | None,
        context: Context,
    ) -> ChainState:
        """Adds this task's importance to Ω and moves the anchor to the new weights."""
        state = dict(start.state)
        seen = int(state.get("tasks", torch.tensor(0)))
        for name, new in self.measure(start, params, evidence, context).items():
            old = state.get(f"importance.{name}")
            state[f"anchor.{name}"] = self.anchor(state, name, new, params[name])
            state[f"importance.{name}"] = new if old is None else self.accumulated(old, new, seen)
        state["tasks"] = torch.tensor(seen + 1)
        return ChainState(params, state)

    def anchor(self, state: State, name: str, new: Tensor, value: Tensor) -> Tensor:
        """The anchor of a parameter with importance `new` whose trained value is `value`."""
        return value

    def accumulated(self, old: Tensor, new: Tensor, seen: int) -> Tensor:
        """Ω after a task, from Ω before it and the importance for it."""
        if self.options.accumulate == "mean":
            return (old * seen + new) / (seen + 1)
        return (self.options.decay if self.options.accumulate == "decay" else 1.0) * old + new
