"""A network with ever other neurons silenced: only what changes is computed, as narrow as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear

from clsearch.models.base import Backbone, Staged, Tap, UnitLayer
from clsearch.training.batch import Batch, Readout, answer

Setting = Sequence[Tensor]
"""By unit layer, in order: bool `[units]` on the CPU, True where a neuron is active."""


def logits_at(
    backbone: Backbone,
    params: Mapping[str, Tensor],
    readout: Readout,
    settings: Sequence[Setting],
    batch: Batch,
) -> Iterator[Tensor]:
    """Logits `[B, Σ classes]` at each of `settings`, in their order.

    The same as a forward pass with gates for each, to the rounding of float32 sums. A backbone in
    stages keeps what every layer gave: where a setting silences neurons of a layer, what it gave is
    cut, and the layers behind it are computed again, with the rows and columns of silenced neurons
    cut away, so that their cost falls with the square of what is active. Settings that differ
    little from the one before, in late layers best, are therefore cheap. Others are run whole.
    """
    if isinstance(backbone, Staged):
        narrow = _Narrow(backbone, params, readout, batch)
        for setting in settings:
            yield narrow.logits(setting)
        return
    for setting in settings:
        masks = {
            unit.name: active.to(batch.x.device)
            for unit, active in zip(backbone.unit_layers, setting, strict=True)
        }
        yield answer(backbone, params, batch.x, readout, masks, batch.group)[0]


def computed(unit: UnitLayer, active: Tensor) -> Tensor:
    """The neurons of a layer that have to be computed for those `active`; both bool `[units]`.

    Whole groups, since neurons that compete depend on each other; and one group at the least, since
    torch's convolutions and pools take no images without channels.
    """
    groups = active.view(-1, unit.group).any(1)
    if not groups.any():
        groups[0] = True
    return groups.repeat_interleave(unit.group)


class _Narrow:
    """One batch, with what every stage gave at the setting before: that of `kept` neurons alone."""

    def __init__(
        self, backbone: Staged, params: Mapping[str, Tensor], readout: Readout, batch: Batch
    ) -> None:
        self.units, self.stages = backbone.unit_layers, _Stages(backbone)
        self.params, self.readout, self.batch = params, readout, batch
        self.active: list[Tensor] = []
        self.kept: list[Tensor] = []
        self.given: list[Tensor] = []

    def logits(self, setting: Setting) -> Tensor:
        layer = self._cut(setting)
        del self.active[layer:], self.kept[layer:], self.given[layer:]
        for active in setting[layer:]:
            self._compute(active)
        weight, bias = self.readout.weights(self.params)
        weight = _part(weight, 1, self.units[-1].by_input(self.kept[-1]))
        return self.readout.mask(linear(self.given[-1], weight, bias), self.batch.group)

    def _cut(self, setting: Setting) -> int:
        """The first layer to compute; what the one before it gave is cut if that will do."""
        layer = 0
        while layer < len(self.active) and torch.equal(self.active[layer], setting[layer]):
            layer += 1
        if layer == len(self.active):
            return layer
        active, before = setting[layer], self.kept[layer]
        kept = computed(self.units[layer], active)
        if not torch.equal(kept, active) or (active & ~self.active[layer]).any():
            return layer
        self.given[layer] = _neurons(self.given[layer], kept[before])
        self.active[layer], self.kept[layer] = active, kept
        return layer + 1

    def _compute(self, active: Tensor) -> None:
        """The next layer, from what the one before it gave."""
        layer = len(self.given)
        unit, kept = self.units[layer], computed(self.units[layer], active)
        own = {name: _part(self.params[name], 0, unit.by_row(kept)) for name in unit.vectors}
        weight = _part(self.params[unit.weight], 0, unit.by_row(kept))
        x = self.batch.x
        if layer:
            weight = _part(weight, 1, self.units[layer - 1].by_input(self.kept[-1]))
            x = self.given[-1]
        gate = active[kept]
        tap = Tap(None if gate.all() else {unit.name: gate.to(x.device)})
        self.given.append(self.stages.run(layer, own | {unit.weight: weight}, x, tap))
        self.active.append(active)
        self.kept.append(kept)


class _Stages(nn.Module):
    """The stages of a backbone, to be run with parameters of other widths."""

    def __init__(self, backbone: Staged) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, layer: int, x: Tensor, tap: Tap) -> Tensor:
        return self.backbone.stage(layer, x, tap)

    def run(self, layer: int, params: Mapping[str, Tensor], x: Tensor, tap: Tap) -> Tensor:
        named = {f"backbone.{name}": value for name, value in params.items()}
        given: Tensor = functional_call(self, named, (layer, x, tap))
        return given


def _part(value: Tensor, dim: int, chosen: Tensor) -> Tensor:
    """The entries of a dimension that are `chosen`, bool on the CPU; without a copy if all are."""
    if chosen.all():
        return value
    return value.index_select(dim, chosen.nonzero().flatten().to(value.device))


def _neurons(given: Tensor, chosen: Tensor) -> Tensor:
    """`[B, units·n, …]` to the part of the neurons that are `chosen`; images stay channels last.

    Of a matrix torch picks columns seven times as fast as of an image.
    """
    places = given.movedim(1, -1)
    rows = places.reshape(-1, given.shape[1])
    kept = _part(rows, 1, chosen.repeat_interleave(given.shape[1] // len(chosen)))
    return kept.view(*places.shape[:-1], kept.shape[1]).movedim(-1, 1)
