"""What the regularisers of activations share: layer by layer, gradients worked out beforehand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import linear

from clsearch.models.base import Backbone
from clsearch.regularizers.base import Hypers, Regularizer, require_unit_layers


class ActivationRegularizer(Regularizer):
    """`λ Σ_l R(H_l)` over the unit layers (SLNI eq. 1), λ the hyperparameter `strength` names."""

    strength: ClassVar[str]

    def __init__(self, options: Any, backbone: Backbone) -> None:
        super().__init__(options, backbone)
        require_unit_layers(self.name, backbone)

    @abstractmethod
    def of_layer(
        self, h: Tensor, layer: str, importance: Mapping[str, Tensor], hyper: Hypers
    ) -> Tensor:
        """R of one layer, 0-d; `h [M, units]` are its activations, a row a sample."""

    def penalty(
        self,
        params: Mapping[str, Tensor],
        activations: Mapping[str, Tensor],
        importance: Mapping[str, Tensor],
        hyper: Hypers,
    ) -> Tensor:
        strength = hyper[self.strength]
        total = strength.new_zeros(())
        for layer in self.backbone.unit_layers:
            h = samples(activations[layer.name])
            total = total + self.of_layer(h, layer.name, importance, hyper)
        return strength * total


def samples(activation: Tensor) -> Tensor:
    """`[B, units, …]` to `[M, units]`: every position in space is a sample, M = B·H·W."""
    return activation if activation.ndim == 2 else activation.transpose(0, 1).flatten(1).mT


def homogeneous(x: Tensor, direction: Tensor, degree: int) -> Tensor:
    """A 0-d term of value `⟨x, direction⟩` with the gradient `degree · direction` at x.

    That is a homogeneous function of this degree (Euler's theorem), `direction` being its gradient
    over its degree, worked out on `x.detach()`: autograd has nothing to do but to pass it on.
    """
    value = (x * direction).sum()
    return degree * value - (degree - 1) * value.detach()


def pack_product(a: Tensor, b: Tensor) -> Tensor:
    """`a bᵀ`: `[M, I]` and `[N, I]` to `[M, N]`.

    Asked for as a dense layer, because those a pack computes member by member, so that a member's
    bits do not depend on the pack (`clsearch.training.dense`).
    """
    return linear(a, b, a.new_zeros(b.shape[0]))
