"""Mean activity of neurons: what CLNP prunes by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from clsearch.models.base import Backbone, Gates, Tap
from clsearch.training.batch import DeviceData


def mean_activity(
    backbone: Backbone,
    params: Mapping[str, Tensor],
    data: DeviceData,
    gates: Gates | None,
    batch_size: int,
) -> dict[str, Tensor]:
    """By unit layer, float64 `[units]`: E_S[|N_l|], a neuron's mean magnitude over all of `data`.

    CLNP alg. 1. §2.2 leaves the bars out, which is the same for ReLU, but not for activations that
    may be negative. A channel's mean runs over space too (activations `[B, units, …]`). Neurons
    that compete (`UnitLayer.group`) all have the largest mean of their group, so that a threshold
    silences whole groups. A neuron silenced by `gates` counts as 0. Sums are kept in float64, so
    that `batch_size` shows in the rounding of single activations at most. Raises `KeyError` for a
    backbone parameter missing in `params`.
    """
    own = backbone.values(params)
    gates = {layer: gate.to(data.device) for layer, gate in (gates or {}).items()}
    sums: dict[str, Tensor] = {}
    places: dict[str, int] = {}
    with torch.no_grad():
        for batch in data.batches(batch_size):
            tap = Tap(gates)
            functional_call(backbone, own, (batch.x, tap))
            for layer, activation in tap.activations.items():
                others = [0, *range(2, activation.ndim)]
                total = activation.abs().sum(others, dtype=torch.float64)
                sums[layer] = sums[layer] + total if layer in sums else total
                seen = activation.numel() // activation.shape[1]
                places[layer] = places.get(layer, 0) + seen
    return {
        unit.name: _shared(sums[unit.name] / places[unit.name], unit.group)
        for unit in backbone.unit_layers
    }


def _shared(activity: Tensor, group: int) -> Tensor:
    """`[units]` to the same, each neuron with the largest activity of its group."""
    return activity.view(-1, group).amax(1).repeat_interleave(group)
