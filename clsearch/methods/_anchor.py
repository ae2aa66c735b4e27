"""What EWC and MAS share: a quadratic penalty around the last task's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from clsearch.methods.base import (
    ChainState,
    Context,
    Evidence,
    ImportanceObjective,
    Method,
    MethodOptions,
    Start,
    State,
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
    """`strength/2 · Σ Ω (θ − θ*)²`: Ω the accumulated importance, θ* the last task's weights.

    A subclass says which objective the importance is the moment of. Ω is a mean over samples of
    per-sample gradients, so it does not depend on the batch size it is estimated with. State:
    `importance.<parameter>` and `anchor.<parameter>`, held once for a pack, and `tasks` (0-d).
    """

    Options: ClassVar = AnchorOptions
    analytic: ClassVar[bool] = True

    objective: ClassVar[ImportanceObjective]
    """The scalar of each sample whose gradient is the importance."""

    def _anchored(self, params: Mapping[str, Tensor], state: State) -> list[str]:
        return sorted(name for name in params if f"importance.{name}" in state)

    def penalty(self, params: Mapping[str, Tensor], state: State, hyper: Hypers) -> Tensor:
        total = hyper["strength"].new_zeros(())
        for name in self._anchored(params, state):
            change = params[name] - state[f"anchor.{name}"]
            total = total + (state[f"importance.{name}"] * change.square()).sum()
        return hyper["strength"] / 2 * total

    def add_gradient(
        self, grads: dict[str, Tensor], params: Mapping[str, Tensor], state: State, hyper: Hypers
    ) -> None:
        """`strength · Ω (θ − θ*)`."""
        for name in self._anchored(params, state):
            pull = (params[name] - state[f"anchor.{name}"]).mul_(state[f"importance.{name}"])
            strength = hyper["strength"].view(-1, *[1] * (pull.ndim - 1))
            grads[name].addcmul_(pull, strength)

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
        threshold: float | None,
        context: Context,
    ) -> ChainState:
        """Adds this task's importance to Ω and moves the anchor to the new weights."""
        state = dict(start.state)
        tasks = state.get("tasks")
        seen = 0 if tasks is None else int(tasks)
        for name, new in evidence.importance(self.objective).items():
            old = state.get(f"importance.{name}")
            if old is not None:
                new = self._accumulated(old, new, seen)  # noqa: PLW2901
            state[f"importance.{name}"] = new
            state[f"anchor.{name}"] = params[name]
        state["tasks"] = torch.tensor(seen + 1)
        return ChainState(params, state)

    def _accumulated(self, old: Tensor, new: Tensor, seen: int) -> Tensor:
        if self.options.accumulate == "mean":
            return (old * seen + new) / (seen + 1)
        return (self.options.decay if self.options.accumulate == "decay" else 1.0) * old + new
