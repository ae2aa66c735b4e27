"""L2 norm of the weights: weight decay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor

from clsearch.regularizers.base import Hypers, Regularizer, per_member
from clsearch.space import Hyper


class L2WD(Regularizer):
    """`λ/2 · Σ w²` over the weights, not the biases (L2-WD of SLNI §3.1), λ `l2_wd`.

    The weights of the unit layers and of the output layer. Its gradient λ·w goes through the
    optimiser with the rest: under Adam that is not decoupled weight decay.
    """

    name: ClassVar[str] = "l2_wd"
    space: ClassVar[dict[str, Hyper]] = {
        "l2_wd": Hyper(1e-4, (0.0, 1e-5, 1e-4, 1e-3), "λ of the squared L2 norm of the weights.")
    }
    analytic: ClassVar[bool] = True

    def _weights(self, params: Mapping[str, Tensor]) -> Iterator[str]:
        own = {layer.weight for layer in self.backbone.unit_layers}
        for name in params:
            if name in own or (name.startswith("head.") and name.endswith("weight")):
                yield name

    def penalty(
        self,
        params: Mapping[str, Tensor],
        activations: Mapping[str, Tensor],
        importance: Mapping[str, Tensor],
        hyper: Hypers,
    ) -> Tensor:
        total = hyper["l2_wd"].new_zeros(())
        for name in self._weights(params):
            total = total + params[name].square().sum()
        return hyper["l2_wd"] / 2 * total

    def add_gradient(
        self, grads: dict[str, Tensor], params: Mapping[str, Tensor], hyper: Hypers
    ) -> None:
        for name in self._weights(params):
            grads[name].addcmul_(params[name], per_member(hyper["l2_wd"], params[name]))
