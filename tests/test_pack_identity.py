"""A member's result is the same bits whatever pack it is trained in."""

from __future__ import annotations

import pytest
import torch

from clsearch.config import AugmentConfig, TrainingConfig
from clsearch.methods._anchor import AnchorOptions
from clsearch.methods.base import Start
from clsearch.methods.mas import MAS
from clsearch.models.base import Backbone, initial_head, initial_parameters
from clsearch.models.cnn_narrow import CLNPNarrow, NarrowOptions
from clsearch.models.mlp import MLP, MLPOptions
from clsearch.regularizers.l1_param import L1Param, L1ParamOptions
from clsearch.rng import generator
from clsearch.scenarios.base import InputTransform
from clsearch.training import dense
from clsearch.training.batch import DeviceData, PackData, Readout
from clsearch.training.loop import Trained, train_pack
from clsearch.training.step import Objective

pytestmark = pytest.mark.skipif(
    not dense.available(), reason="MKL's last bits depend on where a member lies in memory"
)

SHAPE = (1, 12, 11)
HYPERS = [{"lr": 1e-3 * (1 + i), "l1": 1e-4 * i, "strength": 0.5 * i} for i in range(5)]


def dense_network(hidden: list[int]) -> Backbone:
    return MLP(MLPOptions(hidden=hidden), SHAPE)


def setting(backbone: Backbone) -> tuple[Objective, PackData]:
    source = generator("pack-identity")
    head = initial_head(0, 7, backbone.features, source)
    params = initial_parameters(backbone, source) | head
    method = MAS(AnchorOptions(), backbone)
    state = {f"importance.{n}": torch.rand(p.shape, generator=source) for n, p in params.items()}
    state |= {f"anchor.{n}": p + 0.01 for n, p in params.items()}
    start = Start(params, state, method.everything(params))
    x = torch.randint(0, 256, (333, *SHAPE), generator=source, dtype=torch.uint8)
    y = torch.randint(0, 7, (333,), generator=source)
    data = DeviceData(x, y, None, InputTransform(255.0, (0.3,), (0.2,)))
    objective = Objective(
        backbone, method, [L1Param(L1ParamOptions(), backbone)], start, Readout((0,))
    )
    return objective, PackData(data, data, Readout((0,)))


def trained(
    members: list[dict[str, float]], backbone: Backbone, augment: AugmentConfig | None = None
) -> list[Trained]:
    objective, data = setting(backbone)
    config = TrainingConfig(epochs=3, batch_size=50, augment=augment)
    found = train_pack(objective, members, data, config, lambda stream: generator("pack", stream))
    return sorted(found, key=lambda one: one.member)


def same(a: Trained, b: Trained) -> bool:
    assert a.params is not None
    assert b.params is not None
    return a.curve == b.curve and all(torch.equal(a.params[n], b.params[n]) for n in a.params)


@pytest.mark.parametrize("hidden", [[17], [50, 50], [129, 33, 10]])
def test_any_pack_gives_the_same_bits(hidden: list[int]) -> None:
    backbone = dense_network(hidden)
    alone = [trained([hyper], backbone)[0] for hyper in HYPERS]
    for members in ([0, 1], [4, 2, 0], [3, 3], [0, 1, 2, 3, 4]):
        together = trained([HYPERS[i] for i in members], backbone)
        assert all(same(alone[i], one) for i, one in zip(members, together, strict=True))


@pytest.mark.parametrize(
    "backbone",
    [dense_network([50, 50]), CLNPNarrow(NarrowOptions(channels=[2, 3, 4, 5], dense=9), SHAPE)],
    ids=["dense", "convolutional"],
)
def test_any_pack_gives_the_same_bits_of_augmented_images(backbone: Backbone) -> None:
    augment = AugmentConfig(flip=True, crop=2)
    alone = [trained([hyper], backbone, augment)[0] for hyper in HYPERS[:3]]
    assert not same(alone[1], trained([HYPERS[1]], backbone)[0])
    for members in ([2, 0, 1], [1, 1]):
        together = trained([HYPERS[i] for i in members], backbone, augment)
        assert all(same(alone[i], one) for i, one in zip(members, together, strict=True))


@pytest.mark.parametrize("augment", [None, AugmentConfig(flip=True, crop=2)])
def test_a_broken_member_leaves_the_others_bits(augment: AugmentConfig | None) -> None:
    broken = {**HYPERS[2], "lr": 1e30}
    backbone = dense_network([50])
    alone = trained([HYPERS[1]], backbone, augment)[0]
    first, second, third = trained([HYPERS[1], broken, HYPERS[1]], backbone, augment)
    assert second.params is None
    assert "not finite" in second.reason
    assert same(alone, first)
    assert same(alone, third)
