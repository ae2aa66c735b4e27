"""Elastic Weight Consolidation (Kirkpatrick et al. 2017)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from clsearch.methods._anchor import QuadraticAnchor
from clsearch.methods.base import ImportanceObjective
from clsearch.space import Hyper


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """`−log p(y|x)` of each sample: logits `[B, classes]`, labels `[B]` to `[B]`."""
    return cross_entropy(logits, labels, reduction="none")


class EWC(QuadraticAnchor):
    """`λ/2 · Σ_i F_i (θ_i − θ*_i)²` (Kirkpatrick et al. 2017, eq. 3), λ called `strength`.

    F is the diagonal of the empirical Fisher information: the mean over training samples of the
    *squared per-sample* gradient of the log-likelihood. One running F and the latest anchor
    stand for all earlier tasks.
    """

    name: ClassVar[str] = "ewc"
    space: ClassVar[dict[str, Hyper]] = {
        "strength": Hyper(100.0, (1.0, 10.0, 100.0, 1000.0), "λ of the quadratic penalty.")
    }
    objective: ClassVar[ImportanceObjective] = ImportanceObjective(
        negative_log_likelihood, "square"
    )
