"""Synaptic Intelligence (Zenke, Poole, Ganguli 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from clsearch.methods._anchor import AnchorOptions, QuadraticAnchor
from clsearch.methods.base import Context, Evidence, MethodOptions, Start, State
from clsearch.models.base import Params
from clsearch.space import Hyper


class SIOptions(AnchorOptions):
    damping: float = Field(
        0.1, gt=0, description="ξ, which bounds the importance of weights that hardly moved."
    )


class SI(QuadraticAnchor):
    """`c · Σ_k Ω_k (θ̃_k − θ_k)²` (Zenke et al. 2017, eq. 4), c called `strength`.

    `Ω_k = Σ_tasks ω_k / (Δ_k² + ξ)` (eq. 5), where the path integral `ω_k = −Σ_steps g_k δ_k` adds
    up how much the loss fell by each weight's moves: g the gradient of the cross-entropy alone, δ
    the step taken, Δ the whole move during the task. A weight whose moves made the loss rise
    (ω < 0) has importance 0. There is no ½ here: EWC's λ is 2c.
    """

    name: ClassVar[str] = "si"
    Options: ClassVar[type[MethodOptions]] = SIOptions
    factor: ClassVar[float] = 1.0
    space: ClassVar[dict[str, Hyper]] = {
        "strength": Hyper(0.1, (0.01, 0.1, 1.0, 10.0), "c of the quadratic penalty.")
    }

    def running(self, stack: Mapping[str, Tensor]) -> State:
        return {f"path.{name}": torch.zeros_like(value) for name, value in stack.items()}

    def after_step(
        self,
        running: State,
        gradient: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
    ) -> None:
        for name, value in gradient.items():
            running[f"path.{name}"].addcmul_(value, after[name] - before[name], value=-1.0)

    def measure(self, start: Start, params: Params, evidence: Evidence, context: Context) -> Params:
        return {
            name: evidence.running[f"path.{name}"].clamp(min=0)
            / ((params[name] - start.params[name]).square() + self.options.damping)
            for name in start.trainable
        }
