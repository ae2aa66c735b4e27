"""A contract suite for backbones: every file of the folder is picked up and held to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from clsearch.models.activations import ActivationOptions
from clsearch.models.base import (
    Backbone,
    Params,
    Tap,
    forward,
    initial_head,
    initial_parameters,
)
from clsearch.plugins import discover
from clsearch.rng import generator

SHAPE = (3, 8, 8)
BACKBONES = discover("clsearch.models", Backbone)
SMALL: dict[str, dict[str, Any]] = {
    "clnp_narrow": {"channels": [5, 4, 6, 3], "dense": 7},
    "clnp_wide": {"channels": [5, 4, 6, 3, 8]},
}
"""Options and shapes of networks that are too large, or too deep, for these tests."""
SHAPES = {"clnp_wide": (3, 26, 26)}
GROUPS: dict[str, dict[str, Any]] = {
    "maxout": {"activation": "maxout", "group": 3},
    "lwta": {"activation": "lwta", "group": 4},
}
VARIANTS = {
    (name, "default"): (kind, kind.Options(**SMALL.get(name, {})))
    for name, kind in BACKBONES.items()
} | {
    (name, activation): (kind, kind.Options(**given))
    for name, kind in BACKBONES.items()
    for activation, given in GROUPS.items()
    if issubclass(kind.Options, ActivationOptions)
}
each = pytest.mark.parametrize("name", VARIANTS, ids="-".join)


def made(name: tuple[str, str]) -> tuple[Backbone, Params]:
    kind, options = VARIANTS[name]
    backbone = kind(options, SHAPES.get(name[0], SHAPE))
    params = initial_parameters(backbone, generator("models", *name))
    return backbone, params | initial_head(0, 4, backbone.features, generator("head"))


def images(count: int, backbone: Backbone) -> Tensor:
    return torch.randn(count, *backbone.shape, generator=generator("images"))


@each
def test_unit_layers_name_parameters_of_their_size_in_order(name: tuple[str, str]) -> None:
    backbone, params = made(name)
    layers = backbone.unit_layers
    assert len({u.name for u in layers}) == len(layers) > 0
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        assert params[layer.weight].shape[0] == layer.units * layer.rows
        assert all(params[v].shape == (layer.units * layer.rows,) for v in layer.vectors)
        assert layer.units % layer.group == 0
        if after is None:
            assert layer.outgoing is None
        else:
            assert layer.outgoing == after.weight
            assert params[after.weight].shape[1] == layer.units * layer.fan
    named = [n for u in layers for n in (u.weight, *u.vectors)]
    assert sorted(named) == sorted(backbone.values(params))


@each
def test_taps_are_called_once_a_layer_in_order(name: tuple[str, str]) -> None:
    backbone, params = made(name)
    called: list[str] = []

    class Listening(Tap):
        def __call__(self, layer: str, activation: Tensor) -> Tensor:
            called.append(layer)
            return super().__call__(layer, activation)

    tap = Listening()
    forward(backbone, params, images(5, backbone), 0, None, tap)
    assert called == [u.name for u in backbone.unit_layers]
    assert tap.features.shape == (5, backbone.features)
    for u in backbone.unit_layers:
        assert tap.activations[u.name].shape[:2] == (5, u.units)


@each
def test_a_row_depends_on_no_other(name: tuple[str, str]) -> None:
    backbone, params = made(name)
    x = images(6, backbone)
    whole, _ = forward(backbone, params, x, 0, None)
    changed = x.clone()
    changed[1:] = 0
    part, _ = forward(backbone, params, changed, 0, None)
    torch.testing.assert_close(part[0], whole[0])


@each
def test_a_gate_silences_a_neuron(name: tuple[str, str]) -> None:
    backbone, params = made(name)
    for u in backbone.unit_layers:
        gate = torch.ones(u.units, dtype=torch.bool)
        gate[0] = False
        _, activations = forward(backbone, params, images(4, backbone), 0, {u.name: gate})
        assert not activations[u.name][:, 0].any()
        assert activations[u.name].any()


@each
def test_a_neuron_depends_on_its_own_rows_and_those_of_its_group(name: tuple[str, str]) -> None:
    """What CLNP takes for granted when it freezes some neurons and frees others."""
    backbone, params = made(name)
    x = images(20, backbone)
    for u in backbone.unit_layers:
        before = forward(backbone, params, x, 0, None)[1][u.name]
        for neuron in (0, u.units // 2, u.units - 1):
            rows = u.by_row(torch.arange(u.units) == neuron)
            moved = {n: params[n].clone() for n in (u.weight, *u.vectors)}
            for value in moved.values():
                value[rows] += torch.rand(value[rows].shape, generator=generator("moved", neuron))
            after = forward(backbone, params | moved, x, 0, None)[1][u.name]
            rivals = torch.arange(u.units) // u.group == neuron // u.group
            assert torch.equal(after[:, ~rivals], before[:, ~rivals])
            assert not torch.equal(after[:, neuron], before[:, neuron])


@each
def test_a_pack_computes_what_each_member_does(name: tuple[str, str]) -> None:
    backbone, params = made(name)
    stack = {n: torch.stack([v, v * 0.5, v * 2]) for n, v in params.items()}
    x = images(4, backbone)
    packed = vmap(lambda p: forward(backbone, p, x, 0, None)[0])(stack)
    for k in range(3):
        alone, _ = forward(backbone, {n: v[k] for n, v in stack.items()}, x, 0, None)
        torch.testing.assert_close(packed[k], alone, rtol=1e-4, atol=1e-5)


@each
def test_fresh_parameters_are_those_of_their_stream(name: tuple[str, str]) -> None:
    backbone, params = made(name)
    again = initial_parameters(backbone, generator("models", *name))
    other = initial_parameters(backbone, generator("models", *name, "other"))
    for n, _ in backbone.named_parameters():
        assert torch.equal(params[n], again[n])
        assert not torch.equal(params[n], other[n]) or params[n].ndim == 1
        assert params[n].device.type == "cpu"
    for n in backbone.statistics:
        assert n.endswith(("running_mean", "running_var"))
        assert (params[n] == (1.0 if n.endswith("var") else 0.0)).all()


@each
def test_dense_relu_is_true_of_the_forward(name: tuple[str, str]) -> None:
    """A backbone that says so is what the fast scan takes it for."""
    backbone, params = made(name)
    if backbone.dense_relu:
        x = images(5, backbone)
        expected = x.flatten(1)
        _, activations = forward(backbone, params, x, 0, None)
        for u in backbone.unit_layers:
            expected = (expected @ params[u.weight].T + params[u.bias]).relu()
            torch.testing.assert_close(activations[u.name], expected, rtol=1e-4, atol=1e-5)


def test_a_normalisation_starts_as_the_identity() -> None:
    class Normed(Backbone):
        name = "normed"
        unit_layers = ()

        def __init__(self) -> None:
            super().__init__(None, (1, 1, 4))
            self.fc = torch.nn.Linear(4, 3, device="meta")
            self.norm = torch.nn.LayerNorm(3, device="meta")

        def forward(self, x: Tensor, tap: Tap) -> Tensor:
            return self.norm(self.fc(x.flatten(1)))

    params = initial_parameters(Normed(), generator("normed"))
    assert params["norm.weight"].tolist() == [1.0, 1.0, 1.0]
    assert params["norm.bias"].tolist() == [0.0, 0.0, 0.0]
    assert params["fc.weight"].abs().max() <= 0.5
