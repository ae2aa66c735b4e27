"""A backbone with other numbers of neurons than its options say."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from clsearch.models.base import Backbone


def resized(backbone: Backbone, units: Mapping[str, int]) -> Backbone:
    """A copy of a backbone with so many neurons in each unit layer; those not named stay as wide.

    Its modules stay formulas without values, `device="meta"`: only their shapes differ. Raises
    `ValueError` for a layer that the backbone has not, or fewer neurons than a group.
    """
    known = {unit.name: unit for unit in backbone.unit_layers}
    for name, count in units.items():
        if name not in known or count < 1 or count % known[name].group:
            raise ValueError(f"{backbone.name} cannot have {count} neurons in {name}")
    other = copy.deepcopy(backbone)
    other.unit_layers = tuple(
        replace(unit, units=units.get(unit.name, unit.units)) for unit in backbone.unit_layers
    )
    other.__dict__.pop("numbers", None)  # counted for the widths before
    inputs: int | None = None
    for unit in other.unit_layers:
        rows = unit.units * unit.rows
        shape = other.get_parameter(unit.weight).shape
        inputs = shape[1] if inputs is None else inputs
        _shape(other, unit.weight, torch.Size([rows, inputs, *shape[2:]]))
        for name in unit.vectors:
            _shape(other, name, torch.Size([rows]))
        inputs = unit.units * unit.fan
    return other


def _shape(backbone: Backbone, name: str, shape: torch.Size) -> None:
    """Gives a parameter or a statistic another shape, and its module the widths it shows."""
    place, _, part = name.rpartition(".")
    module, value = backbone.get_submodule(place), torch.empty(shape, device="meta")
    setattr(module, part, nn.Parameter(value) if part in module._parameters else value)
    if part == "weight" and isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif part == "weight" and isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = shape[:2]
