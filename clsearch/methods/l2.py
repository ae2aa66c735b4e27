"""A uniform quadratic anchor (the L2 baseline of Kirkpatrick et al. 2017, fig. 2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from clsearch.methods._anchor import QuadraticAnchor
from clsearch.methods.base import Context, Evidence, MethodOptions, Start
from clsearch.models.base import Params
from clsearch.space import Hyper


class L2(QuadraticAnchor):
    """`λ/2 · Σ_i (θ_i − θ*_i)²`, λ called `strength`: every weight matters alike.

    θ* are the weights after the last task (Kirkpatrick et al. 2017, fig. 2, "L2").
    """

    name: ClassVar[str] = "l2"
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    space: ClassVar[dict[str, Hyper]] = {
        "strength": Hyper(0.01, (1e-3, 1e-2, 1e-1, 1.0), "λ of the quadratic penalty.")
    }

    def measure(self, start: Start, params: Params, evidence: Evidence, context: Context) -> Params:
        return {name: torch.ones(()) for name in start.trainable}

    def accumulated(self, old: Tensor, new: Tensor, seen: int) -> Tensor:
        return new
