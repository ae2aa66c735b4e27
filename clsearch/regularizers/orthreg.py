"""OrthReg: decorrelates the weight vectors of a layer's neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from clsearch.models.base import Backbone
from clsearch.products import REGISTER
from clsearch.regularizers._activations import pack_product
from clsearch.regularizers.base import (
    Hypers,
    Regularizer,
    RegularizerOptions,
    require_unit_layers,
)
from clsearch.space import Hyper

STEEPNESS = 10.0
"""The 10 of the formula, λ in the paper: vectors at right angles or beyond hardly count."""


class OrthReg(Regularizer):
    """`λ Σ_l Σ_{i≠j} log(1 + e^{10 (cos(w_i, w_j) − 1)})` (Rodríguez et al. 2017), λ `orthreg`.

    Over ordered pairs of neurons of each unit layer; `w_i` are the weights that feed neuron i,
    without its bias. A neuron whose weights are all zero has no direction: it is at right angles
    to all others, and nothing pulls it. In a convolutional layer the neurons are the channels, and
    `w_i` is a whole filter, so that space plays no part. The cost is that of two products of
    units × units × inputs, whatever the batch.
    """

    name: ClassVar[str] = "orthreg"
    space: ClassVar[dict[str, Hyper]] = {
        "orthreg": Hyper(1e-3, (0.0, 1e-4, 1e-3, 1e-2), "λ of the angles between weight vectors.")
    }
    version: ClassVar[int] = 2

    def __init__(self, options: RegularizerOptions, backbone: Backbone) -> None:
        super().__init__(options, backbone)
        require_unit_layers(self.name, backbone)

    def penalty(
        self,
        params: Mapping[str, Tensor],
        activations: Mapping[str, Tensor],
        importance: Mapping[str, Tensor],
        hyper: Hypers,
    ) -> Tensor:
        total = hyper["orthreg"].new_zeros(())
        for layer in self.backbone.unit_layers:
            if layer.weight in params:
                total = total + between(params[layer.weight].flatten(1))
        return hyper["orthreg"] * total


def between(weight: Tensor) -> Tensor:
    """`Σ_{i≠j} log(1 + e^{10 (cos_ij − 1)})` of the rows of `[units, inputs]`, 0-d.

    Autograd passes the gradient on from the directions of the rows; at them it is worked out here,
    which saves it a product.
    """
    norm = weight.norm(dim=1, keepdim=True)
    direction = weight / torch.where(norm > 0, norm, torch.inf)
    units = len(weight)
    # So that all pairs are a multiple of `REGISTER`; what was added is nobody's neighbour.
    own = pad(direction.detach(), (0, 0, 0, -units % math.isqrt(REGISTER)))
    place = torch.arange(len(own), device=weight.device)
    apart = (place.unsqueeze(1) != place) & (place < units) & (place.unsqueeze(1) < units)
    excess = (STEEPNESS * (pack_product(own, own) - 1)).masked_fill(~apart, -torch.inf)
    value = softplus(excess).sum()
    pull = pack_product(own.mT, excess.sigmoid()).mT[:units]  # by rows in memory, as weights are
    slope = (direction * pull).sum() * (2 * STEEPNESS)
    return value + (slope - slope.detach())
