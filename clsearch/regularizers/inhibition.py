"""Inhibition between all neurons of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from clsearch.regularizers._activations import ActivationRegularizer, homogeneous
from clsearch.regularizers.base import Hypers
from clsearch.space import Hyper


class Inhibition(ActivationRegularizer):
    """`λ Σ_l 1/M Σ_m Σ_{i≠j} h_i^m h_j^m` (SLNI eq. 2), λ `inhibition`.

    SLNI without locality and discount: every active neuron inhibits all others of its layer. In
    closed form `(Σ_i h_i)² − Σ_i h_i²`, over ordered pairs, hence linear in the neurons. The mean
    is over the samples of a batch. In a convolutional layer the neurons are the channels and every
    position in space counts as a sample.
    """

    name: ClassVar[str] = "inhibition"
    space: ClassVar[dict[str, Hyper]] = {
        "inhibition": Hyper(1e-5, (0.0, 1e-6, 1e-5, 1e-4), "λ of the inhibition.")
    }
    strength: ClassVar[str] = "inhibition"

    def of_layer(
        self, h: Tensor, layer: str, importance: Mapping[str, Tensor], hyper: Hypers
    ) -> Tensor:
        own = h.detach()
        return homogeneous(h, own.sum(1, keepdim=True) - own, 2) / h.shape[0]
