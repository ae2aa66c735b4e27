"""Sparse coding through local neural inhibition (SLNI), discounted by neuron importance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from clsearch.regularizers._activations import pack_product
from clsearch.regularizers._inhibition import SIGMA, InhibitionOptions, LocalInhibition
from clsearch.regularizers._locality import gaussian, neighbours
from clsearch.regularizers.base import RegularizerOptions
from clsearch.space import Hyper


class SLNIOptions(InhibitionOptions):
    discount: Literal["product", "min"] = Field(
        "product",
        description="`product`: e^−(αᵢ+αⱼ) (SLNI eq. 6); `min`: min(e^−αᵢ, e^−αⱼ), as in the"
        " authors' code.",
    )
    accumulate: Literal["sum", "mean"] = Field(
        "sum",
        description="Neuron importance over tasks: their sum, or their mean, as the authors' code"
        " has it for Tiny ImageNet.",
    )


class SLNI(LocalInhibition):
    """`λ Σ_l 1/M Σ_m Σ_{i≠j} e^{−(αᵢ+αⱼ)} e^{−(i−j)²/2σ²} h_i^m h_j^m` (SLNI eq. 6), λ `slni`.

    Active neurons inhibit those beside them, and neurons that earlier tasks need neither inhibit
    nor are inhibited: α is the mean magnitude of the loss's per-sample gradient at a neuron
    (eq. 5), accumulated over tasks. On the first task nothing is discounted. The sum is over
    ordered pairs of neurons of a layer, the mean over the samples of a batch; the authors' code
    has σ = width/6 (`sigma_is: scale`, `sigma: 6`). In a convolutional layer the neurons are the
    channels and every position in space counts as a sample. The product of the discounts is
    separable, their minimum is not: `discount: min` always takes the N×N product, which is slow
    for large layers.
    """

    name: ClassVar[str] = "slni"
    Options: ClassVar[type[RegularizerOptions]] = SLNIOptions
    space: ClassVar[dict[str, Hyper]] = {
        "slni": Hyper(1e-3, (0.0, 1e-4, 1e-3, 1e-2), "λ_SSL of the local inhibition (SLNI eq. 1)."),
        "sigma": SIGMA,
    }
    strength: ClassVar[str] = "slni"

    def sums(
        self, h: Tensor, layer: str, importance: Mapping[str, Tensor], sigma: Tensor
    ) -> Tensor:
        alpha = importance.get(f"alpha.{layer}")
        if alpha is None:
            return neighbours(h, sigma)
        alpha = _of_units(alpha, h.shape[1])
        if self.options.discount == "min":
            between = (-torch.maximum(alpha.unsqueeze(1), alpha)).exp()
            return pack_product(h, gaussian(h.shape[1], sigma) * between)
        return neighbours(h, sigma, (-alpha).exp())

    def consolidate(
        self, importance: Mapping[str, Tensor], neurons: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Adds the task's α to what was accumulated, by unit layer, and counts the task."""
        seen = int(importance.get("tasks", torch.tensor(0)))
        memory = {"tasks": torch.tensor(seen + 1)}
        for layer, alpha in neurons().items():
            total = _of_units(importance.get(f"alpha.{layer}", alpha.new_zeros(0)), len(alpha))
            if self.options.accumulate == "mean":
                memory[f"alpha.{layer}"] = (total * seen + alpha) / (seen + 1)
            else:
                memory[f"alpha.{layer}"] = total + alpha
        return memory


def _of_units(alpha: Tensor, units: int) -> Tensor:
    """α `[≤ units]` of a layer that may have grown since: 0 for neurons that no task has needed."""
    return pad(alpha, (0, units - len(alpha)))
