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
    """By unit layer, float64 `[units]`: E_S[N_l], each neuron's mean activation over all of `data`.

    CLNP §2.2. A channel's mean runs over space too (activations `[B, units, …]`). Sums are kept in
    float64, so that `batch_size` shows in the rounding of single activations at most. A neuron
    silenced by `gates` has activity 0. Raises `KeyError` for a backbone parameter missing in
    `params`.
    """
    own = {name: params[name] for name, _ in backbone.named_parameters()}
    gates = {layer: gate.to(data.inputs.device) for layer, gate in (gates or {}).items()}
    sums: dict[str, Tensor] = {}
    places: dict[str, int] = {}
    with torch.no_grad():
        for batch in data.batches(batch_size):
            tap = Tap(gates)
            functional_call(backbone, own, (batch.x, tap))
            for layer, activation in tap.activations.items():
                others = [0, *range(2, activation.ndim)]
                total = activation.sum(others, dtype=torch.float64)
                sums[layer] = sums[layer] + total if layer in sums else total
                seen = activation.numel() // activation.shape[1]
                places[layer] = places.get(layer, 0) + seen
    return {layer: total / places[layer] for layer, total in sums.items()}
