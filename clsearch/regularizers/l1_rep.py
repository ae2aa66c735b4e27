"""L1 norm of the activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from clsearch.regularizers._activations import ActivationRegularizer
from clsearch.regularizers.base import Hypers
from clsearch.space import Hyper


class L1Rep(ActivationRegularizer):
    """`λ Σ_l 1/M Σ_m Σ_i |h_i^m|` (L1-Rep of SLNI §2 and §3.1), λ `l1_rep`.

    Every neuron of a layer counts, the mean is over the samples of a batch. In a convolutional
    layer the neurons are the channels and every position in space counts as a sample.
    """

    name: ClassVar[str] = "l1_rep"
    space: ClassVar[dict[str, Hyper]] = {
        "l1_rep": Hyper(1e-4, (0.0, 1e-5, 1e-4, 1e-3), "λ of the L1 norm of the activations.")
    }
    strength: ClassVar[str] = "l1_rep"

    def of_layer(
        self, h: Tensor, layer: str, importance: Mapping[str, Tensor], hyper: Hypers
    ) -> Tensor:
        return h.abs().sum() / h.shape[0]
