"""A threshold for each layer: from one for the whole network on, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clsearch.models.base import Backbone, Gates
from clsearch.pruning.narrow import Setting, logits_at
from clsearch.pruning.scan import neurons, thresholds
from clsearch.records import LayerPruning
from clsearch.selection import SLACK
from clsearch.training.batch import DeviceData, Readout

CHUNK = 200
"""Samples at once, at most: after each chunk, thresholds that can no longer do are given up."""


def layer_thresholds(
    backbone: Backbone,
    params: Mapping[str, Tensor],
    readout: Readout,
    gates: Gates | None,
    prunable: Mapping[str, Tensor],
    activity: Mapping[str, Tensor],
    data: DeviceData,
    start: float,
    floor: float,
    count: int,
    batch_size: int,
) -> LayerPruning | None:
    """The thresholds by unit layer that coordinate-wise search finds from θ = `start` everywhere.

    One layer after the other, the rest held fixed: of at most `count` thresholds of its own
    activities (as `thresholds` spreads them) those above its present one are measured on `data`,
    and the highest that stays at or above `floor` (a fraction), whatever lower ones do, becomes its
    own. From the last layer to the first, round and round until no layer moves. The last first,
    since it is the cheapest to scan, holds most neurons where networks widen or end in dense
    layers, and what is cut there makes every later scan cheaper. No layer's threshold ever falls,
    so that each leaves at least as many neurons free as at `start`.

    None where the network is below the floor at `start` itself. Arguments as in `threshold_scan`.
    Raises `InputError` for a count below 1, `KeyError` for a parameter or an activity that is
    missing.
    """
    layers = neurons(backbone, gates, prunable, activity)
    own = [
        thresholds(activity, {u.name: prunable[u.name]}, count) if u.name in prunable else ()
        for u in backbone.unit_layers
    ]
    size = min(batch_size, CHUNK)

    def accuracies(choices: Sequence[Sequence[float]]) -> list[float | None]:
        settings = [[n.active(t) for n, t in zip(layers, c, strict=True)] for c in choices]
        return _accuracies(backbone, params, readout, settings, data, floor, size)

    now = [start] * len(layers)
    (accuracy,) = accuracies([now])
    if accuracy is None:
        return None
    still, layer = 0, len(layers)
    while still < len(layers):
        layer = (layer or len(layers)) - 1
        higher = [theta for theta in own[layer] if theta > now[layer]]
        found = accuracies([[*now[:layer], theta, *now[layer + 1 :]] for theta in higher])
        holding = [(t, a) for t, a in zip(higher, found, strict=True) if a is not None]
        still = 1 if holding else still + 1
        if holding:
            now[layer], accuracy = holding[-1]
    free = tuple(n.free(theta) for n, theta in zip(layers, now, strict=True))
    return LayerPruning(tuple(now), accuracy, free)


def _accuracies(
    backbone: Backbone,
    params: Mapping[str, Tensor],
    readout: Readout,
    settings: Sequence[Setting],
    data: DeviceData,
    floor: float,
    size: int,
) -> list[float | None]:
    """The accuracy at each setting that reaches the floor, None at the others.

    A setting is given up as soon as all remaining samples together could not lift it to the floor.
    """
    answers, left = readout.answers, dict.fromkeys(range(len(settings)), 1.0)
    parts: list[Tensor] = []
    with torch.inference_mode():
        for batch in data.batches(size):
            if not left:
                break
            outputs = logits_at(backbone, params, readout, [settings[i] for i in left], batch)
            parts.append(torch.stack([answers.judged(each, batch.y) for each in outputs]))
            judged = torch.cat(parts, 1)
            at_most = answers.at_most(judged, data.labels, data.image)
            kept = [k for k, most in enumerate(at_most) if most >= floor - SLACK]
            parts = [judged[kept]]
            left = {i: at_most[k] for k, i in enumerate(left) if k in kept}
    return [left.get(i) for i in range(len(settings))]
