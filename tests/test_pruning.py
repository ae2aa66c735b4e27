"""Activity against sums by hand, the threshold scan against masked forward passes."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clsearch.errors import InputError
from clsearch.models.base import (
    Backbone,
    BackboneOptions,
    Params,
    Tap,
    UnitLayer,
    initial_head,
    initial_parameters,
)
from clsearch.models.mlp import MLP, MLPOptions
from clsearch.pruning.activity import mean_activity
from clsearch.pruning.scan import CPU_CHUNK, threshold_scan, thresholds
from clsearch.rng import generator
from clsearch.scenarios.base import InputTransform
from clsearch.training.batch import DeviceData, Readout

SHAPE = (1, 3, 4)
PLAIN = InputTransform(1.0, (0.0,), (1.0,))
SCALED = InputTransform(255.0, (0.4,), (0.3,))


class MaskedMLP(MLP):
    """The same network, with nothing known of its form: scanned by masked forwards."""

    dense_relu: ClassVar[bool] = False


class Conv(Backbone):
    """One convolution with two channels, and a dense layer."""

    name: ClassVar[str] = "test-conv"
    Options: ClassVar = BackboneOptions

    def __init__(self, options: BackboneOptions, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        self.conv1 = nn.Conv2d(shape[0], 2, 1, device="meta")
        self.fc1 = nn.Linear(2 * shape[1] * shape[2], 3, device="meta")
        self.unit_layers = (
            UnitLayer("conv1", 2, "conv1.weight", "conv1.bias", "fc1.weight", shape[1] * shape[2]),
            UnitLayer("fc1", 3, "fc1.weight", "fc1.bias", None),
        )

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        x = tap("conv1", self.conv1(x).relu())
        return tap("fc1", self.fc1(x.flatten(1)).relu())


def noise(samples: int, seed: int, heads: int = 1) -> DeviceData:
    source = generator("test-pruning", seed)
    pixels = torch.randint(0, 256, (samples, *SHAPE), generator=source, dtype=torch.uint8)
    labels = torch.randint(0, 3, (samples,), generator=source)
    group = None
    if heads > 1:
        group = torch.randint(0, heads, (samples,), generator=source)
        labels = labels + 3 * group
    return DeviceData(pixels, labels, group, SCALED)


def network(backbone: Backbone, seed: int, heads: int = 1) -> tuple[Params, Readout]:
    source = generator("test-pruning", "weights", seed)
    params = initial_parameters(backbone, source)
    for head in range(heads):
        params |= initial_head(head, 3, backbone.unit_layers[-1].units, source)
    if heads == 1:
        return params, Readout((0,))
    allowed = torch.block_diag(*[torch.ones(1, 3)] * heads).bool()
    return params, Readout(tuple(range(heads)), allowed)


def dense_by_hand(
    params: Params, layers: int, masks: list[Tensor], data: DeviceData, heads: int
) -> Tensor:
    """Hits `[N]` of an MLP with its neurons multiplied by masks, in float64."""
    a = (data.inputs.double() / 255.0 - 0.4) / 0.3
    a = a.flatten(1)
    for i in range(layers):
        w, b = params[f"fc{i + 1}.weight"].double(), params[f"fc{i + 1}.bias"].double()
        a = (a @ w.T + b).clamp(min=0) * masks[i].double()
    weight = torch.cat([params[f"head.{h}.weight"] for h in range(heads)]).double()
    bias = torch.cat([params[f"head.{h}.bias"] for h in range(heads)]).double()
    logits = a @ weight.T + bias
    if data.group is not None:
        columns = torch.arange(3 * heads)
        foreign = (columns // 3)[None, :] != data.group[:, None]
        logits[foreign] = -torch.inf
    return logits.argmax(1) == data.labels


CASES = {
    "hidden": st.lists(st.integers(1, 12), min_size=1, max_size=3),
    "heads": st.sampled_from([1, 1, 3]),
    "gated": st.booleans(),
    "partly": st.booleans(),
    "count": st.sampled_from([1, 2, 3, 7, 60]),
    "batch_size": st.sampled_from([7, 64, 1000]),
    "seed": st.integers(0, 10_000),
}


@settings(max_examples=120, deadline=None)
@given(**CASES, kind=st.sampled_from([MLP, MaskedMLP]))
def test_scan_equals_networks_masked_by_hand(
    kind: type[MLP], hidden: list[int], heads: int, gated: bool, partly: bool, count: int,
    batch_size: int, seed: int,
) -> None:  # fmt: skip
    backbone = kind(MLPOptions(hidden=hidden), SHAPE)
    params, readout = network(backbone, seed, heads)
    data = noise(60, seed, heads)
    source = generator("test-pruning", "masks", seed)
    names = [unit.name for unit in backbone.unit_layers]
    bits = {n: torch.rand(2, k, generator=source) for n, k in zip(names, hidden, strict=True)}
    opened = {n: bits[n][0] >= (0.2 if gated else 0.0) for n in names}
    prunable = {n: bits[n][1] >= (0.4 if partly else 0.0) for n in names}
    gates = opened if gated else None
    activity = mean_activity(backbone, params, noise(50, seed + 1), gates, 16)
    scan = threshold_scan(
        backbone, params, readout, gates, prunable, activity, data, count, batch_size
    )
    assert len(scan) <= count
    assert scan[0].threshold == 0.0
    assert [p.threshold for p in scan] == sorted({p.threshold for p in scan})
    for point in scan:
        silenced = [prunable[n] & (activity[n] <= point.threshold) for n in names]
        masks = [opened[n] & ~off for n, off in zip(names, silenced, strict=True)]
        expected = int(dense_by_hand(params, len(hidden), masks, data, heads).sum())
        assert abs(round(point.accuracy * len(data)) - expected) <= 1
        assert point.free == tuple(int(off.sum()) for off in silenced)


def test_chunks_of_samples_add_up() -> None:
    backbone = MLP(MLPOptions(hidden=[20, 15]), SHAPE)
    params, readout = network(backbone, 1)
    data = noise(CPU_CHUNK + 100, 1)
    activity = mean_activity(backbone, params, data, None, 100)
    masked = MaskedMLP(MLPOptions(hidden=[20, 15]), SHAPE)
    prunable = {"fc1": torch.ones(20).bool(), "fc2": torch.ones(15).bool()}
    rest = (params, readout, None, prunable, activity, data, 20)
    fast, slow = threshold_scan(backbone, *rest, 10_000), threshold_scan(masked, *rest, 99)
    for a, b in zip(fast, slow, strict=True):
        assert (a.threshold, a.free) == (b.threshold, b.free)
        assert abs(a.accuracy - b.accuracy) * len(data) <= 1.001
    assert fast[-1].free == (20, 15)
    assert len({p.accuracy for p in fast}) > 3


@pytest.mark.parametrize("kind", [MLP, MaskedMLP])
def test_scan_worked_out_by_hand(kind: type[MLP]) -> None:
    """Two neurons that each answer one class; the second is the weaker one."""
    backbone = kind(MLPOptions(hidden=[2]), (1, 1, 2))
    params = {
        "fc1.weight": torch.eye(2), "fc1.bias": torch.zeros(2),
        "head.0.weight": torch.eye(2), "head.0.bias": torch.tensor([0.5, 0.0]),
    }  # fmt: skip
    pixels = torch.tensor([[4, 0], [4, 0], [0, 1], [0, 2]], dtype=torch.uint8).view(4, 1, 1, 2)
    data = DeviceData(pixels, torch.tensor([0, 0, 1, 1]), None, PLAIN)
    activity = mean_activity(backbone, params, data, None, 3)
    assert activity["fc1"].tolist() == [2.0, 0.75]
    prunable = {"fc1": torch.tensor([True, True])}
    scan = threshold_scan(backbone, params, Readout((0,)), None, prunable, activity, data, 9, 2)
    assert [(p.threshold, p.accuracy, p.free) for p in scan] == [
        (0.0, 1.0, (0,)),
        (0.75, 0.5, (1,)),
        (2.0, 0.5, (2,)),
    ]
    gates = {"fc1": torch.tensor([False, True])}
    prunable = {"fc1": torch.tensor([False, True])}
    scan = threshold_scan(backbone, params, Readout((0,)), gates, prunable, activity, data, 9, 2)
    assert [(p.threshold, p.accuracy, p.free) for p in scan] == [
        (0.0, 1.0, (0,)),
        (0.75, 0.5, (1,)),
    ]


def test_nothing_prunable_is_one_point() -> None:
    backbone = MLP(MLPOptions(hidden=[5, 4]), SHAPE)
    params, readout = network(backbone, 3)
    data = noise(30, 3)
    scan = threshold_scan(backbone, params, readout, None, {}, {}, data, 50, 8)
    assert [(p.threshold, p.free) for p in scan] == [(0.0, (0, 0))]
    expected = dense_by_hand(params, 2, [torch.ones(5), torch.ones(4)], data, 1)
    assert scan[0].accuracy == int(expected.sum()) / 30


def test_scan_of_a_convolutional_backbone() -> None:
    backbone = Conv(BackboneOptions(), SHAPE)
    params, readout = network(backbone, 5)
    data = noise(40, 5)
    activity = mean_activity(backbone, params, data, None, 9)
    prunable = {name: torch.ones(len(a)).bool() for name, a in activity.items()}
    scan = threshold_scan(backbone, params, readout, None, prunable, activity, data, 10, 7)
    assert scan[-1].free == (2, 3)
    bias_alone = int(params["head.0.bias"].argmax())
    assert scan[-1].accuracy == (data.labels == bias_alone).sum().item() / 40


def test_scan_changes_none_of_its_inputs() -> None:
    backbone = MLP(MLPOptions(hidden=[6, 5]), SHAPE)
    params, readout = network(backbone, 7)
    data = noise(20, 7)
    activity = mean_activity(backbone, params, data, None, 20)
    prunable = {name: torch.ones(len(a)).bool() for name, a in activity.items()}
    before = {name: p.clone() for name, p in params.items()}
    once = threshold_scan(backbone, params, readout, None, prunable, activity, data, 8, 20)
    assert all(torch.equal(params[name], p) for name, p in before.items())
    assert once == threshold_scan(backbone, params, readout, None, prunable, activity, data, 8, 20)


# --- thresholds ----------------------------------------------------------------------------------


def test_thresholds_are_spread_by_rank() -> None:
    activity = {"a": torch.tensor([0.0, 5.0, 1.0, 2.0]), "b": torch.tensor([9.0, 3.0, 3.0, 7.0])}
    prunable = {"a": torch.ones(4).bool(), "b": torch.tensor([False, True, True, True])}
    assert thresholds(activity, prunable, 99) == (0.0, 1.0, 2.0, 3.0, 5.0, 7.0)
    assert thresholds(activity, prunable, 6) == (0.0, 1.0, 2.0, 3.0, 5.0, 7.0)
    assert thresholds(activity, prunable, 5) == (0.0, 1.0, 2.0, 3.0, 7.0)
    assert thresholds(activity, prunable, 3) == (0.0, 2.0, 7.0)
    assert thresholds(activity, prunable, 2) == (0.0, 7.0)
    assert thresholds(activity, prunable, 1) == (0.0,)


def test_thresholds_leave_out_what_is_no_number_and_what_is_dead() -> None:
    activity = {"a": torch.tensor([torch.nan, torch.inf, -1.0, 0.0, 4.0])}
    assert thresholds(activity, {"a": torch.ones(5).bool()}, 9) == (0.0, 4.0)


def test_a_count_of_none_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        thresholds({}, {}, 0)
    assert caught.value.field == "selection.thresholds"


# --- activity ------------------------------------------------------------------------------------


def test_activity_of_a_dense_layer_by_hand() -> None:
    backbone = MLP(MLPOptions(hidden=[2]), (1, 1, 2))
    params = {"fc1.weight": torch.tensor([[1.0, -1.0], [0.5, 0.5]]), "fc1.bias": torch.zeros(2)}
    pixels = torch.tensor([[3, 1], [0, 4], [2, 2]], dtype=torch.uint8).view(3, 1, 1, 2)
    data = DeviceData(pixels, torch.zeros(3, dtype=torch.int64), None, PLAIN)
    activity = mean_activity(backbone, params, data, None, 2)
    torch.testing.assert_close(activity["fc1"], torch.tensor([2 / 3, 2.0], dtype=torch.float64))
    shut = mean_activity(backbone, params, data, {"fc1": torch.tensor([True, False])}, 2)
    torch.testing.assert_close(shut["fc1"], torch.tensor([2 / 3, 0.0], dtype=torch.float64))


def test_activity_of_a_channel_is_its_mean_over_space_too() -> None:
    backbone = Conv(BackboneOptions(), (1, 1, 2))
    params: dict[str, Any] = {
        "conv1.weight": torch.tensor([1.0, -1.0]).view(2, 1, 1, 1),
        "conv1.bias": torch.tensor([0.0, 2.0]),
        "fc1.weight": torch.ones(3, 4), "fc1.bias": torch.tensor([0.0, -5.0, -100.0]),
    }  # fmt: skip
    pixels = torch.tensor([[3, 1], [0, 4]], dtype=torch.uint8).view(2, 1, 1, 2)
    data = DeviceData(pixels, torch.zeros(2, dtype=torch.int64), None, PLAIN)
    activity = mean_activity(backbone, params, data, None, 1)
    assert activity["conv1"].tolist() == [2.0, 0.75]  # (3+1+0+4)/4; 2-x clipped, (0+1+2+0)/4
    assert activity["fc1"].tolist() == [5.5, 0.5, 0.0]  # sums 5 and 6; less 5, 0 and 1


@pytest.mark.parametrize("kind", [MLP, Conv])
def test_activity_does_not_depend_on_the_batch_size(kind: type[Backbone]) -> None:
    options = MLPOptions(hidden=[9, 8]) if kind is MLP else BackboneOptions()
    backbone = kind(options, SHAPE)
    params, _ = network(backbone, 11)
    data = noise(101, 11)
    whole = mean_activity(backbone, params, data, None, 101)
    for size in (1, 7, 50, 1000):
        parts = mean_activity(backbone, params, data, None, size)
        assert parts.keys() == whole.keys()
        for name, values in whole.items():
            assert values.dtype == torch.float64
            torch.testing.assert_close(parts[name], values, rtol=1e-6, atol=1e-7)
