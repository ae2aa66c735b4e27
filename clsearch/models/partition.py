"""The partition of a network's weights into active, free and interference (CLNP §2.1)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clsearch.models.base import Backbone, Params


def free_rows(params: Params, backbone: Backbone, free: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of W_free: the weights and biases that lead into free neurons (CLNP alg. 1), and the
    scales and running statistics of their normalisation.

    `free[layer]` is bool `[units]`; a free neuron frees all its rows. A parameter without any free
    entry is left out.
    """
    masks = {}
    for layer in backbone.unit_layers:
        if free[layer.name].any():
            weight, rows = params[layer.weight], layer.by_row(free[layer.name])
            masks[layer.weight] = rows.view(-1, *[1] * (weight.ndim - 1))
            masks |= dict.fromkeys(layer.vectors, rows)
    return masks


def without_interference(
    params: Params, backbone: Backbone, active: Mapping[str, Tensor]
) -> Params:
    """The parameters with W_int, from inactive into active neurons, at exactly zero (CLNP §2.1).

    `active[layer]` is bool `[units]`. Heads are not touched.
    """
    result = dict(params)
    for layer, following in zip(backbone.unit_layers, backbone.unit_layers[1:], strict=False):
        if layer.outgoing is None:
            continue
        weight = result[layer.outgoing]
        inactive = ~layer.by_input(active[layer.name])
        interference = following.by_row(active[following.name])[:, None] & inactive[None, :]
        interference = interference.view(*interference.shape, *[1] * (weight.ndim - 2))
        result[layer.outgoing] = torch.where(interference, weight.new_zeros(()), weight)
    return result
