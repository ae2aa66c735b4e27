"""The partition of a network's weights into active, free and interference (CLNP §2.1), which
neurons an output layer needs of it, and parameters in other widths."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clsearch.models.base import Backbone, Gates, Params, head_names


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


def needed(
    backbone: Backbone, params: Mapping[str, Tensor], head: int, gates: Gates | None
) -> dict[str, Tensor]:
    """By unit layer, bool `[units]`: the neurons that a head's logits depend on.

    A neuron is needed iff its gate is open and a needed row of the next layer, or the head, reads
    it by a weight that is not exactly zero. CLNP leaves such zeros: W_int, and the head's columns
    of inactive neurons (§2.1). Rows are needed of all neurons that compete with a needed one.
    """
    weight, _ = head_names(head)
    reading, found = params[weight], {}
    for unit in reversed(backbone.unit_layers):
        read = (reading != 0).transpose(0, 1).flatten(1).any(1).view(-1, unit.fan).any(1)
        gate = (gates or {}).get(unit.name)
        needs = read if gate is None else read & gate.to(read.device)
        found[unit.name] = needs
        rivals = needs.view(-1, unit.group).any(1).repeat_interleave(unit.group)
        reading = params[unit.weight][unit.by_row(rivals)]
    return dict(reversed(found.items()))


def fitted(params: Params, backbone: Backbone) -> Params:
    """Parameters in the widths of a backbone, heads with them: neurons behind are cut off, missing
    ones filled up with zeros. Tensors that fit are left as they are, the others are new ones.
    """
    shapes = {name: value.shape for name, value in backbone.state_dict().items()}
    result = {}
    for name, value in params.items():
        of_head = torch.Size([*value.shape[:1], *[backbone.features] * (value.ndim - 1)])
        shape = shapes.get(name, of_head)
        if value.shape != shape:
            kept = value[tuple(map(slice, shape))]
            value = value.new_zeros(shape)  # noqa: PLW2901 - the tensor of this name
            value[tuple(map(slice, kept.shape))] = kept
        result[name] = value
    return result
