"""Networks cut to their active neurons answer as whole ones with gates, and cost less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_convolutional_chains import SHAPE, AnyNetwork, architectures
from torch import Tensor

from clsearch.errors import InputError
from clsearch.models._convnet import Conv, Dense
from clsearch.models.base import (
    Backbone,
    BackboneOptions,
    Params,
    Staged,
    Tap,
    initial_head,
    initial_parameters,
)
from clsearch.models.mlp import MLP, MLPOptions
from clsearch.pruning.activity import mean_activity
from clsearch.pruning.layers import layer_thresholds
from clsearch.pruning.narrow import logits_at
from clsearch.pruning.scan import threshold_scan, thresholds
from clsearch.records import LayerPruning
from clsearch.rng import generator
from clsearch.scenarios.base import InputTransform
from clsearch.training.batch import DeviceData, Readout, answer

SCALED = InputTransform(255.0, (0.4, 0.5), (0.3, 0.2))
Masks = dict[str, Tensor]


def network(backbone: Backbone, seed: int, heads: int = 1) -> tuple[Params, Readout]:
    """Weights and statistics that are trivial nowhere."""
    source = generator("narrow", seed)
    params = initial_parameters(backbone, source)
    for name, value in params.items():
        if "_norm" in name:
            params[name] = 0.5 + torch.rand(value.shape, generator=source)
    for head in range(heads):
        params |= initial_head(head, 3, backbone.features, source)
    if heads == 1:
        return params, Readout((0,))
    allowed = torch.block_diag(*[torch.ones(1, 3)] * heads).bool()
    return params, Readout(tuple(range(heads)), allowed)


def noise(samples: int, seed: int, heads: int = 1) -> DeviceData:
    source = generator("narrow", "data", seed)
    pixels = torch.randint(0, 256, (samples, *SHAPE), generator=source, dtype=torch.uint8)
    labels = torch.randint(0, 3, (samples,), generator=source)
    group = torch.randint(0, heads, (samples,), generator=source) if heads > 1 else None
    return DeviceData(pixels, labels if group is None else labels + 3 * group, group, SCALED)


def any_settings(backbone: Backbone, count: int, seed: int) -> list[list[Tensor]]:
    """Settings of any kind: some go on from the one before, some silence a whole layer."""
    source = generator("narrow", "settings", seed)
    found: list[list[Tensor]] = []
    for _ in range(count):
        kind, fate = torch.rand(2, generator=source).tolist()
        setting = []
        for layer, unit in enumerate(backbone.unit_layers):
            active = torch.rand(unit.units, generator=source) < fate
            if kind < 0.7 and found:
                before, late = found[-1][layer], layer >= len(backbone.unit_layers) // 2
                active = before & active if late or kind < 0.4 else before
            setting.append(active)
        found.append(setting)
    return found


def dense(groups: list[int], activation: str) -> MLP:
    options = {} if activation == "relu" else {"activation": activation, "group": 3}
    return MLP(MLPOptions.model_validate({"hidden": [3 * n for n in groups], **options}), SHAPE)


MLPS = st.builds(
    dense,
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.sampled_from(["relu", "maxout", "lwta"]),
)
CONVNETS = architectures().map(lambda layers: AnyNetwork(BackboneOptions(), SHAPE, layers))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(backbone=st.one_of(MLPS, CONVNETS), heads=st.sampled_from([1, 3]), seed=st.integers(0, 999))
def test_every_setting_answers_as_a_forward_with_gates(
    backbone: Backbone, heads: int, seed: int
) -> None:
    """Batch-norm, pools, dropout, flatten, groups with a part silenced, layers without any."""
    params, readout = network(backbone, seed, heads)
    (batch,) = noise(6, seed, heads).batches(6)
    chosen = any_settings(backbone, 8, seed)
    found = list(logits_at(backbone, params, readout, chosen, batch))
    assert len(found) == len(chosen)
    for setting, logits in zip(chosen, found, strict=True):
        gates = {u.name: on for u, on in zip(backbone.unit_layers, setting, strict=True)}
        expected, _ = answer(backbone, params, batch.x, readout, gates, batch.group)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


class Counted(AnyNetwork):
    """Notes which stages are run, and how wide they are."""

    name: ClassVar[str] = "test-counted"
    calls: ClassVar[list[tuple[int, int]]] = []

    def stage(self, layer: int, x: Tensor, tap: Tap) -> Tensor:
        given = super().stage(layer, x, tap)
        self.calls.append((layer, tap.activations[self.unit_layers[layer].name].shape[1]))
        return given


def test_only_what_changes_is_computed_and_as_narrow_as_it_is() -> None:
    backbone = Counted(BackboneOptions(), SHAPE, [Conv(6), Conv(5), Dense(4)])
    params, readout = network(backbone, 0)
    (batch,) = noise(3, 0).batches(3)
    ones = [torch.ones(u.units).bool() for u in backbone.unit_layers]
    half = [on & (torch.arange(len(on)) % 2 == 0) for on in ones]
    nested = [ones, [*ones[:2], half[2]], [ones[0], half[1], half[2]], half, half, ones]
    Counted.calls.clear()
    list(logits_at(backbone, params, readout, nested, batch))
    assert Counted.calls == [
        *((0, 6), (1, 5), (2, 4)),  # all of it
        (2, 2),  # the second layer was cut, the third reads less
        *((1, 3), (2, 2)),  # the first was cut
        *((0, 6), (1, 5), (2, 4)),  # more is active than before
    ]


def test_a_backbone_without_stages_is_run_whole() -> None:
    class Whole(Backbone):
        name: ClassVar[str] = "test-whole"
        Options: ClassVar = BackboneOptions

        def __init__(self, inner: Staged) -> None:
            super().__init__(inner.options, inner.shape)
            self.inner, self.unit_layers = [inner], inner.unit_layers
            for name, module in inner.named_children():
                self.add_module(name, module)

        def forward(self, x: Tensor, tap: Tap) -> Tensor:
            return self.inner[0](x, tap)  # type: ignore[no-any-return]

    staged = AnyNetwork(BackboneOptions(), SHAPE, [Conv(6, norm=True), Dense(4)])
    whole = Whole(staged)
    params, readout = network(staged, 3)
    data = noise(50, 3)
    activity = mean_activity(staged, params, data, None, 50)
    prunable = {u.name: torch.ones(u.units).bool() for u in staged.unit_layers}
    for scan in (threshold_scan, layer_scan):
        rest = (params, readout, None, prunable, activity, data, 9, 20)
        assert scan(whole, *rest) == scan(staged, *rest)  # type: ignore[operator]


# --- a threshold for each layer ------------------------------------------------------------------


def layer_scan(*arguments: Any, start: float = 0.0, floor: float = 0.3) -> LayerPruning:
    *given, count, size = arguments
    return layer_thresholds(*given, start, floor, count, size)


class Case:
    """A network with its activities, samples that it answers right as long as it is whole, and
    what brute force says of thresholds."""

    def __init__(self, backbone: Backbone, seed: int, partly: bool = False) -> None:
        self.backbone, self.seed = backbone, seed
        self.params, self.readout = network(backbone, seed)
        (batch,) = noise(80, seed).batches(80)
        logits, _ = answer(backbone, self.params, batch.x, self.readout, None)
        self.data = replace(noise(80, seed), labels=logits.argmax(1))
        self.activity = mean_activity(backbone, self.params, self.data, None, 80)
        source = generator("narrow", "prunable", seed)
        self.prunable: Masks = {}
        for u in backbone.unit_layers:
            groups = torch.rand(u.units // u.group, generator=source) > (0.3 if partly else -1)
            self.prunable[u.name] = groups.repeat_interleave(u.group)

    def silenced(self, at: tuple[float, ...]) -> list[Tensor]:
        return [
            self.prunable[u.name] & (self.activity[u.name] <= theta)
            for u, theta in zip(self.backbone.unit_layers, at, strict=True)
        ]

    def accuracy(self, at: tuple[float, ...]) -> float:
        """By one whole forward pass."""
        layers = zip(self.backbone.unit_layers, self.silenced(at), strict=True)
        gates = {u.name: ~off for u, off in layers}
        (batch,) = self.data.batches(80)
        logits, _ = answer(self.backbone, self.params, batch.x, self.readout, gates)
        return int((logits.argmax(1) == batch.y).sum()) / 80

    def own(self, layer: int, count: int) -> tuple[float, ...]:
        name = self.backbone.unit_layers[layer].name
        return thresholds(self.activity, {name: self.prunable[name]}, count)

    def search(self, start: float, floor: float, count: int, size: int = 80) -> LayerPruning | None:
        return layer_thresholds(
            self.backbone, self.params, self.readout, None, self.prunable, self.activity,
            self.data, start, floor, count, size,
        )  # fmt: skip

    def found(self, start: float, floor: float, count: int, size: int = 80) -> LayerPruning:
        pruning = self.search(start, floor, count, size)
        assert pruning is not None
        return pruning


def by_hand(case: Case, start: float, floor: float, count: int) -> tuple[float, ...]:
    """Round by round from the last layer to the first, with a whole pass for each threshold."""
    now, before = (start,) * len(case.backbone.unit_layers), None
    while now != before:
        before = now
        for layer in reversed(range(len(now))):
            moves = [(*now[:layer], t, *now[layer + 1 :]) for t in case.own(layer, count)]
            holding = [m for m in moves if case.accuracy(m) >= floor - 1e-9]
            now = max([now, *holding], key=lambda m: m[layer])
    return now


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    backbone=st.one_of(MLPS, CONVNETS),
    partly=st.booleans(),
    count=st.sampled_from([3, 60]),
    margin=st.sampled_from([0.025, 0.1, 0.3]),
    seed=st.integers(0, 999),
)
def test_layers_are_pruned_as_far_as_the_floor_allows(
    backbone: Backbone, partly: bool, count: int, margin: float, seed: int
) -> None:
    case = Case(backbone, seed, partly)
    pooled = thresholds(case.activity, case.prunable, 9)
    start = pooled[len(pooled) // 3]
    everywhere = (start,) * len(backbone.unit_layers)
    floor = case.accuracy(everywhere) - margin
    found = case.found(start, floor, count)
    assert found.accuracy == case.accuracy(found.thresholds)
    assert found.accuracy >= floor - 1e-9
    assert found.free == tuple(int(off.sum()) for off in case.silenced(found.thresholds))
    network_wide = [int(off.sum()) for off in case.silenced(everywhere)]
    for layer, unit in enumerate(backbone.unit_layers):
        assert found.free[layer] >= network_wide[layer]
        assert found.free[layer] % unit.group == 0
    assert found.thresholds == by_hand(case, start, floor, count)
    assert case.found(start, floor, count, size=7) == found


@pytest.mark.parametrize("seed", range(4))
def test_one_layer_takes_the_highest_threshold_that_holds_whatever_lower_ones_do(seed: int) -> None:
    case = Case(AnyNetwork(BackboneOptions(), SHAPE, [Conv(24, padding=1)]), seed)
    everything = {theta: case.accuracy((theta,)) for theta in case.own(0, 60)}
    floor = sorted(everything.values())[len(everything) // 2]
    start = next(theta for theta, accuracy in everything.items() if accuracy >= floor)
    best = max(theta for theta, accuracy in everything.items() if accuracy >= floor)
    assert case.found(start, floor, 60).thresholds == (best,)


def test_from_a_start_below_the_floor_nothing_is_found() -> None:
    case = Case(MLP(MLPOptions(hidden=[6, 4]), SHAPE), 1)
    assert case.search(0.0, case.accuracy((0.0, 0.0)) + 1 / 80, 9) is None
    with pytest.raises(InputError, match="at least 1"):
        case.search(0.0, 0.0, 0)
