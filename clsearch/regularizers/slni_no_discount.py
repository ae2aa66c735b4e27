"""Sparse coding through local neural inhibition, without regard for earlier tasks."""

from __future__ import annotations

from typing import ClassVar

from clsearch.regularizers._inhibition import SIGMA, LocalInhibition
from clsearch.space import Hyper


class SLNINoDiscount(LocalInhibition):
    """`λ Σ_l 1/M Σ_m Σ_{i≠j} e^{−(i−j)²/2σ²} h_i^m h_j^m` (SLNI eq. 4), λ `slni_no_discount`.

    Active neurons inhibit those beside them. The sum is over ordered pairs of neurons of a layer,
    the mean over the samples of a batch. In a convolutional layer the neurons are the channels and
    every position in space counts as a sample.
    """

    name: ClassVar[str] = "slni_no_discount"
    space: ClassVar[dict[str, Hyper]] = {
        "slni_no_discount": Hyper(1e-3, (0.0, 1e-4, 1e-3, 1e-2), "λ of the local inhibition."),
        "sigma": SIGMA,
    }
    strength: ClassVar[str] = "slni_no_discount"
