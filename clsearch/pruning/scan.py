"""The threshold scan: what is left of a network when its least active neurons are silenced."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clsearch.errors import InputError
from clsearch.models.base import Backbone, Gates, UnitLayer
from clsearch.pruning.narrow import logits_at
from clsearch.records import ScanPoint
from clsearch.training.batch import Batch, DeviceData, Readout

CPU_CHUNK = 512
"""Samples a CPU core works on at once: activations of a few hundred neurons stay in its cache."""


def thresholds(
    activity: Mapping[str, Tensor], prunable: Mapping[str, Tensor], count: int
) -> tuple[float, ...]:
    """The activity thresholds to scan: 0 and at most `count - 1` more, ascending and distinct.

    A neuron is active iff its activity is above θ (CLNP §2.2), so that only the activities of the
    prunable neurons matter as θ, and θ = 0 prunes exactly the dead ones. Of the D distinct
    positive activities of the prunable neurons of all layers, ascending, those of rank
    ⌊i·D / (count-1)⌋ (from 1) are taken, i = 1 … count-1: each silences about as many further
    neurons as the one before, and the last all that are prunable. With D < count all are taken.
    Raises `InputError` for a count below 1.
    """
    if count < 1:
        raise InputError("selection.thresholds", count, "a number of thresholds of at least 1")
    pooled: set[float] = set()
    for name, mask in prunable.items():
        pooled.update(activity[name].double().cpu()[mask.cpu()].tolist())
    distinct = sorted(value for value in pooled if 0 < value < math.inf)
    if len(distinct) < count:
        return (0.0, *distinct)
    ranks = [i * len(distinct) // (count - 1) for i in range(1, count)]
    return (0.0, *(distinct[rank - 1] for rank in ranks))


def threshold_scan(
    backbone: Backbone,
    params: Mapping[str, Tensor],
    readout: Readout,
    gates: Gates | None,
    prunable: Mapping[str, Tensor],
    activity: Mapping[str, Tensor],
    data: DeviceData,
    count: int,
    batch_size: int,
) -> tuple[ScanPoint, ...]:
    """Accuracy on `data` and free neurons by unit layer, at each of `thresholds(…)`, ascending.

    One θ for the whole network. A prunable neuron (bool `[units]` by layer; a layer not named has
    none) with `activity` (`[units]` by layer) at or below θ is silenced and counted free; the
    others stay as `gates` has them. Accuracy is what the readout's answers are judged by. At most
    `batch_size` samples are held at once. Raises `InputError` for a count below 1, `KeyError` for
    a parameter or an activity that is missing.

    For backbones that are `dense_relu` all thresholds cost about three forward passes, see
    `_grow`; the others are computed from one threshold to the next, see `logits_at`. Both agree
    with a forward pass per threshold to the rounding of float32 sums.
    """
    points = thresholds(activity, prunable, count)
    layers = neurons(backbone, gates, prunable, activity)
    device, judged = data.labels.device, list[Tensor]()
    with torch.inference_mode():
        if backbone.dense_relu:
            network = _Network.of(backbone, params, readout, layers, points)
            size = min(batch_size, CPU_CHUNK) if device.type == "cpu" else batch_size
            judged += (_grow(network, batch, readout) for batch in data.batches(size))
        else:
            settings = [[layer.active(theta) for layer in layers] for theta in points]
            for batch in data.batches(batch_size):
                outputs = logits_at(backbone, params, readout, settings, batch)
                judged.append(torch.stack([readout.answers.judged(o, batch.y) for o in outputs]))
    measured = readout.answers.measure(torch.cat(judged, 1), data.labels, data.image)
    return tuple(
        ScanPoint(theta, accuracy, tuple(layer.free(theta) for layer in layers))
        for theta, accuracy in zip(points, measured, strict=True)
    )


def neurons(
    backbone: Backbone,
    gates: Gates | None,
    prunable: Mapping[str, Tensor],
    activity: Mapping[str, Tensor],
) -> list[Neurons]:
    """The unit layers in order, as a scan sees them."""
    return [Neurons.of(unit, gates or {}, prunable, activity) for unit in backbone.unit_layers]


@dataclass(frozen=True)
class Neurons:
    """A unit layer in a scan, on the CPU: `open` and `prunable` bool, `activity` float64."""

    open: Tensor
    prunable: Tensor
    activity: Tensor

    @classmethod
    def of(
        cls,
        unit: UnitLayer,
        gates: Gates,
        prunable: Mapping[str, Tensor],
        activity: Mapping[str, Tensor],
    ) -> Neurons:
        """Without gate all neurons are open, and none are prunable in a layer not named."""
        name, shut = unit.name, torch.zeros(unit.units, dtype=torch.bool)
        activities = activity[name] if name in prunable else shut
        return cls(
            gates.get(name, ~shut).cpu(),
            prunable.get(name, shut).cpu(),
            activities.double().cpu(),
        )

    def free(self, theta: float) -> int:
        """How many prunable neurons θ silences."""
        return int((self.prunable & (self.activity <= theta)).sum())

    def active(self, theta: float) -> Tensor:
        """bool `[units]`: open, and not silenced by θ."""
        return self.open & ~(self.prunable & (self.activity <= theta))

    def order(self) -> Tensor:
        """int64 `[n]`: neurons active at some θ ≥ 0, those that every θ leaves first, then by
        falling activity. What is active at any θ is then a prefix."""
        height = torch.where(self.prunable, self.activity, torch.inf)
        order = height.nan_to_num(torch.inf).argsort(descending=True, stable=True)
        return order[self.active(0.0)[order]]


@dataclass(frozen=True)
class _Network:
    """A dense ReLU network with its neurons sorted; the output layer is the last stage.

    Stage s has `weights[s]` `[n_s, n_{s-1}]`, `biases[s]` `[n_s, 1]` and, for each threshold,
    ascending, `active[s]`: how many of its first neurons are active. All outputs always are.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    active: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        params: Mapping[str, Tensor],
        readout: Readout,
        layers: Sequence[Neurons],
        points: Sequence[float],
    ) -> _Network:
        """Weights reduced to the neurons that are active at some threshold, in their order."""
        weights, biases, active = [], [], []
        inputs: Tensor | None = None
        for unit, layer in zip(backbone.unit_layers, layers, strict=True):
            weight, bias = params[unit.weight], params[unit.bias]
            order = layer.order().to(weight.device)
            weight = weight[order] if inputs is None else weight[order][:, inputs]
            weights.append(weight)
            biases.append(bias[order].unsqueeze(1))
            active.append(tuple(int(layer.active(theta).sum()) for theta in points))
            inputs = order
        weight, bias = readout.weights(params)
        weights.append(weight[:, inputs])
        biases.append(bias.unsqueeze(1))
        active.append((len(bias),) * len(points))
        return cls(tuple(weights), tuple(biases), tuple(active))


def _grow(network: _Network, batch: Batch, readout: Readout) -> Tensor:
    """What the answers at each threshold are judged by, `[thresholds, B, …]`.

    From the highest θ down, neurons only ever wake. Activations are feature-major, `[n, B]`, and
    neurons are sorted, so that the active ones are a prefix of rows. The first stage is computed
    once. The second stage's sums z are kept: each step adds the inputs that woke to the rows that
    were active already, and all active inputs to the rows that woke, so that every weight is used
    once over all thresholds. Later stages, the output layer at the least, are computed at each
    threshold from the active rows alone.
    """
    first, second, *later = zip(network.weights, network.biases, network.active, strict=True)
    inputs = torch.addmm(first[1], first[0], batch.x.flatten(1).t()).relu_()
    weight, bias, rows = second
    z = bias.expand(-1, len(batch.y)).contiguous()
    relu = torch.empty_like(z)
    sums = [z.new_empty(len(stage[1]), len(batch.y)) for stage in later]
    judged = []
    was_in = was_out = 0
    for i in reversed(range(len(rows))):
        now_in, now_out = first[2][i], rows[i]
        if now_in > was_in and was_out > 0:
            z[:was_out].addmm_(weight[:was_out, was_in:now_in], inputs[was_in:now_in])
        if now_out > was_out and now_in > 0:
            z[was_out:now_out].addmm_(weight[was_out:now_out, :now_in], inputs[:now_in])
        was_in, was_out = now_in, now_out
        active, buffer = z[:now_out], relu
        for (w, b, counts), out in zip(later, sums, strict=True):
            n, m = counts[i], len(active)
            torch.clamp_min(active, 0, out=buffer[:m])
            torch.addmm(b[:n], w[:n, :m], buffer[:m], out=out[:n])
            active = buffer = out[:n]
        outputs = readout.mask(active.t(), batch.group)
        judged.append(readout.answers.judged(outputs, batch.y))
    return torch.stack(judged[::-1])
