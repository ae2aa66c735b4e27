"""What SLNI with and without discount share: strength, σ, and what it counts in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from clsearch.regularizers._activations import ActivationRegularizer, homogeneous
from clsearch.regularizers._locality import neighbours
from clsearch.regularizers.base import Hypers, RegularizerOptions
from clsearch.space import Hyper

SIGMA = Hyper(
    10.0,
    (5.0, 10.0, 20.0, 40.0),
    "σ of the Gaussian between neurons; what it counts in is the option `sigma_is`.",
    above_low=True,
)


class InhibitionOptions(RegularizerOptions):
    sigma_is: Literal["neurons", "scale"] = Field(
        "neurons",
        description="`neurons`: σ itself; `scale`: σ is the layer's width over `sigma`.",
    )


class LocalInhibition(ActivationRegularizer):
    """`λ Σ_l 1/M Σ_m Σ_{i≠j} e^{−(i−j)²/2σ²} h_i^m h_j^m`: SLNI eq. 4."""

    Options: ClassVar[type[RegularizerOptions]] = InhibitionOptions

    def of_layer(
        self, h: Tensor, layer: str, importance: Mapping[str, Tensor], hyper: Hypers
    ) -> Tensor:
        sums = self.sums(h.detach(), layer, importance, self.sigma(h.shape[1], hyper))
        return homogeneous(h, sums, 2) / h.shape[0]

    def sums(
        self, h: Tensor, layer: str, importance: Mapping[str, Tensor], sigma: Tensor
    ) -> Tensor:
        """The weighted sum of every neuron's neighbours, `[M, units]`, for constant `h`."""
        return neighbours(h, sigma)

    def sigma(self, units: int, hyper: Hypers) -> Tensor:
        """σ in neurons, 0-d."""
        sigma = hyper["sigma"]
        return sigma if self.options.sigma_is == "neurons" else units / sigma
