"""Memory Aware Synapses (Aljundi et al. 2018)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from clsearch.methods._anchor import QuadraticAnchor
from clsearch.methods.base import ImportanceObjective
from clsearch.space import Hyper


def squared_norm(logits: Tensor, labels: Tensor) -> Tensor:
    """`‖F(x)‖²` of each sample: logits `[B, classes]` to `[B]`; labels play no part."""
    return logits.square().sum(-1)


class MAS(QuadraticAnchor):
    """`λ/2 · Σ_ij Ω_ij (θ_ij − θ*_ij)²` (MAS eq. 3), λ called `strength`; the global variant.

    Ω is the mean over training samples of the magnitude of the per-sample gradient of the squared
    norm of the output (MAS eq. 2 and §4.1). The authors' code uses λ in place of λ/2: double its
    values here.
    """

    name: ClassVar[str] = "mas"
    space: ClassVar[dict[str, Hyper]] = {
        "strength": Hyper(1.0, (0.01, 0.1, 1.0, 10.0), "λ of the quadratic penalty.")
    }
    objective: ClassVar = ImportanceObjective(squared_norm, "magnitude")
