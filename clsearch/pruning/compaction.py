"""Compaction: what one task needs of a network, as a network that has nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from clsearch.models.base import Backbone, Gates, Params, head_names
from clsearch.models.partition import needed
from clsearch.models.widths import resized
from clsearch.pruning.narrow import computed


def compact(
    backbone: Backbone, params: Mapping[str, Tensor], head: int, gates: Gates | None
) -> tuple[Backbone, Params]:
    """The network of what a head needs, and its parameters: the same logits, without any gate.

    The rounding of sums differs. Neurons that compete stay together; those that a gate silences
    among them are read by zeros. A layer that nothing needs (the logits are then constant) keeps
    one group of neurons, read by zeros: torch's convolutions and pools take no images without
    channels. `params` are left alone.
    """
    names = head_names(head)
    small = {name: params[name] for name in names}
    needs = needed(backbone, params, head, gates)
    units: dict[str, int] = {}
    inputs: tuple[Tensor, Tensor] | None = None
    for unit in backbone.unit_layers:
        kept = computed(unit, needs[unit.name].cpu()).to(params[unit.weight].device)
        rows = unit.by_row(kept)
        small |= {name: params[name][rows] for name in unit.vectors}
        small[unit.weight] = _columns(params[unit.weight][rows], inputs)
        inputs = unit.by_input(kept), unit.by_input(needs[unit.name])
        units[unit.name] = int(kept.sum())
    small[names[0]] = _columns(params[names[0]], inputs)
    return resized(backbone, units), small


def _columns(weight: Tensor, inputs: tuple[Tensor, Tensor] | None) -> Tensor:
    """The columns `[outputs, inputs, …]` that are kept, with those not needed among them at 0."""
    if inputs is None:
        return weight
    kept, needs = inputs
    read = needs[kept].view(1, -1, *[1] * (weight.ndim - 2))
    return weight[:, kept].where(read, weight.new_zeros(()))
