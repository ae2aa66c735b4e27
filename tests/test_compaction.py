"""Compact models answer as full ones with gates, and hold nothing that a task does not need."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Learner, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from test_convolutional_chains import SHAPE, AnyNetwork, architectures
from test_convolutions import tasks
from test_models import VARIANTS, images, made
from torch import Tensor, nn

from clsearch.errors import ClsearchError, DamagedError
from clsearch.exports.compacted import compaction
from clsearch.exports.files import load_export, save_export
from clsearch.exports.standalone import model_of
from clsearch.methods.base import ChainState
from clsearch.models.base import (
    Backbone,
    BackboneOptions,
    Params,
    forward,
    initial_head,
    initial_parameters,
)
from clsearch.models.mlp import MLP, MLPOptions
from clsearch.models.partition import needed
from clsearch.models.widths import resized
from clsearch.pruning.compaction import compact
from clsearch.pruning.measure import compare
from clsearch.rng import generator

MODELS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "relu": ({"name": "mlp", "hidden": [12, 9]}, (2, 3, 4)),
    "maxout": ({"name": "mlp", "hidden": [12, 9], "activation": "maxout"}, (2, 3, 4)),
    "lwta": (
        {"name": "mlp", "hidden": [12, 9], "activation": "lwta", "group": 3},
        (2, 3, 4),
    ),
    "clnp_narrow": (
        {"name": "clnp_narrow", "channels": [6, 5, 7, 6], "dense": 12},
        (2, 9, 8),
    ),
    "clnp_wide": ({"name": "clnp_wide", "channels": [5, 6, 4, 7, 9]}, (1, 26, 27)),
    "alexnet": ({"name": "alexnet", "channels": [5, 4, 6, 5, 8], "dense": [9, 7]}, (3, 64, 64)),
    "vgg16": ({"name": "vgg16", "channels": [5, 7, 9, 8, 8], "dense": [9, 7]}, (3, 32, 32)),
}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def silenced(backbone: Backbone, params: Params, share: float, seed: int) -> Params:
    """As CLNP leaves it: inactive neurons are read by zeros alone. Any number, all of a layer."""
    source, cut = generator("compaction", seed), dict(params)
    for unit in backbone.unit_layers:
        groups = torch.rand(unit.units // unit.group, generator=source) < share
        dead = unit.by_input(groups.repeat_interleave(unit.group))
        reader = unit.outgoing or "head.0.weight"
        cut[reader] = cut[reader].clone()
        cut[reader][:, dead] = 0
    return cut


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", VARIANTS, ids="-".join)
def test_every_backbone_can_be_cut(name: tuple[str, str], share: float) -> None:
    """A backbone's forward takes its widths from its parameters."""
    backbone, params = made(name)
    cut = silenced(backbone, params, share, 1)
    small, kept = compact(backbone, cut, 0, None)
    x = images(5, backbone)
    close(forward(small, kept, x, 0, None)[0], forward(backbone, cut, x, 0, None)[0])
    assert {n: p.shape for n, p in small.named_parameters()} == {
        n: kept[n].shape for n, _ in backbone.named_parameters()
    }
    counts = [(u.units, v.units, v.group) for u, v in _pairs(backbone, small)]
    if share == 0.0:
        assert all(before == after for before, after, _ in counts)
        assert all(torch.equal(kept[n], cut[n]) for n in kept)
    elif share == 1.0:
        assert all(after == group for _, after, group in counts)
    else:
        assert sum(p.numel() for p in kept.values()) < 0.6 * sum(cut[n].numel() for n in kept)


def _pairs(backbone: Backbone, small: Backbone) -> Any:
    return zip(backbone.unit_layers, small.unit_layers, strict=True)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers=architectures(), share=st.floats(0.1, 0.9), gated=st.booleans(), seed=st.integers(0))
def test_any_network_keeps_its_logits(
    layers: list[Any], share: float, gated: bool, seed: int
) -> None:
    backbone = AnyNetwork(BackboneOptions(), SHAPE, layers)
    source = generator("compaction", seed)
    params = initial_parameters(backbone, source)
    params |= initial_head(0, 3, backbone.features, source)
    params |= {n: p + 0.5 for n, p in params.items() if "_norm" in n}
    cut = silenced(backbone, params, share, seed)
    gates = {
        u.name: torch.rand(u.units, generator=source) > share
        for u in backbone.unit_layers
        if gated and torch.rand((), generator=source) < 0.5
    }
    small, kept = compact(backbone, cut, 0, gates)
    x = torch.randn(4, *SHAPE, generator=source)
    close(forward(small, kept, x, 0, None)[0], forward(backbone, cut, x, 0, gates)[0])


def test_what_is_needed_by_hand() -> None:
    """fc2's third neuron reads nothing needed and is not read; then fc1's second is not either."""
    backbone = MLP(MLPOptions(hidden=[3, 3]), (1, 1, 2))
    params = {
        "fc1.weight": torch.ones(3, 2), "fc1.bias": torch.ones(3),
        "fc2.weight": torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        "fc2.bias": torch.ones(3),
        "head.0.weight": torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
        "head.0.bias": torch.ones(2),
    }  # fmt: skip
    assert {n: v.tolist() for n, v in needed(backbone, params, 0, None).items()} == {
        "fc1": [True, False, False],
        "fc2": [True, True, False],
    }
    gates = {"fc2": torch.tensor([False, True, True])}
    small, kept = compact(backbone, params, 0, gates)
    assert [u.units for u in small.unit_layers] == [1, 1]  # one of fc1, though none is needed
    assert kept["fc2.weight"].tolist() == [[0.0]]
    assert kept["head.0.weight"].tolist() == [[1.0], [0.0]]


def test_what_a_needed_neuron_competes_with_is_needed_with_all_it_reads() -> None:
    """The head reads fc2's first neuron; its rival reads fc1's second group, and nothing else."""
    backbone = MLP(MLPOptions(hidden=[4, 2], activation="lwta", group=2), (1, 2, 2))
    source = generator("compaction", "rivals")
    params = initial_parameters(backbone, source) | initial_head(0, 2, 2, source)
    params["fc2.weight"] = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    params["head.0.weight"] = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    small, kept = compact(backbone, params, 0, None)
    assert [u.units for u in small.unit_layers] == [4, 2]
    x = torch.randn(50, 1, 2, 2, generator=source)
    close(forward(small, kept, x, 0, None)[0], forward(backbone, params, x, 0, None)[0])


def test_a_gate_within_a_group_leaves_the_group_and_silences_the_neuron() -> None:
    backbone = MLP(MLPOptions(hidden=[6], activation="lwta", group=3), (1, 2, 2))
    source = generator("compaction", "lwta")
    params = initial_parameters(backbone, source) | initial_head(0, 3, 6, source)
    gates = {"fc1": torch.tensor([True, False, True, False, False, False])}
    small, kept = compact(backbone, params, 0, gates)
    assert [u.units for u in small.unit_layers] == [3]
    x = torch.randn(50, 1, 2, 2, generator=source)
    expected, activations = forward(backbone, params, x, 0, None)
    assert activations["fc1"][:, 1].any()  # it wins where its rivals stay at zero
    close(forward(small, kept, x, 0, None)[0], forward(backbone, params, x, 0, gates)[0])
    assert not torch.allclose(forward(small, kept, x, 0, None)[0], expected)


# --- after training ------------------------------------------------------------------------------


def two_tasks(model: str, shared: bool, method: str = "clnp") -> tuple[Learner, ChainState]:
    """A chain after two tasks, each pruned to 40 % of the neurons that were free, by rank."""
    options, shape = MODELS[model]
    config = tiny_config(method, model=options, training={"epochs": 1, "batch_size": 7})
    chain = Learner(config, tasks(2, shared, shape), shared)
    state: ChainState | None = None
    for number in (1, 2):
        start = chain.begin(state, number)
        (trained,) = chain.train(start, number)
        params = {**start.params, **(trained.params or {})}
        free = chain.method.prunable(start.state)
        evidence = chain.evidence(start, params, number)
        rank = {}
        for name, activity in evidence.activity().items():
            among = activity[free[name]]
            rank[name] = (among[None, :] < activity[:, None]).float().mean(1)
        evidence = replace(evidence, mean_activity=rank)
        state = chain.consolidate(start, params, evidence, 0.6, number)
    assert state is not None
    return chain, state


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "multi"])
@pytest.mark.parametrize("model", MODELS)
def test_compact_models_of_two_tasks_of_clnp(model: str, shared: bool, tmp_path: Path) -> None:
    """Of both tasks: same logits on stored images, fewer parameters, in both kinds of file."""
    chain, state = two_tasks(model, shared)
    for number in (1, 2):
        task = chain.tasks[number - 1].task
        pixels = chain.tasks[number - 1].train.inputs
        full = model_of(chain.system, state, task)
        small = model_of(chain.system, state, task, compacted=True)
        close(small(pixels), full(pixels))
        close(full(chain.tasks[number - 1].validation.inputs), chain.logits(state, number))
        assert not small.gated
        units = list(_pairs(full.backbone, small.backbone))
        assert all(v.units <= u.units and v.units % v.group == 0 for u, v in units)
        parameters = [sum(p.numel() for p in m.parameters()) for m in (full, small)]
        assert parameters[1] < 0.8 * parameters[0]
        suffixes = (".pt2", ".safetensors") if number == 2 else (".safetensors",)
        for suffix in suffixes:
            file = tmp_path / f"{number}{suffix}"
            save_export(file, small, {})
            loaded, described = load_export(file)
            close(loaded(pixels.float()), full(pixels))
            assert described["architecture"]["units"] == {v.name: v.units for _, v in units}


def test_the_description_says_what_was_cut_and_what_it_saves() -> None:
    chain, state = two_tasks("clnp_narrow", True)
    chain.system.backbone.__dict__.pop("numbers", None)  # a command has not counted them yet
    full, small = (
        model_of(chain.system, state, chain.tasks[1].task, compacted=cut) for cut in (False, True)
    )
    found = json.loads(json.dumps(compaction(full, small)))
    for name, model in (("before", full), ("after", small)):
        assert found["parameters"][name] == sum(p.numel() for p in model.parameters())
        assert found["bytes"][name] == sum(
            t.numel() * t.element_size() for t in model.state_dict().values()
        )
        assert found["units"][name] == {u.name: u.units for u in model.backbone.unit_layers}
    assert found["units"]["before"] == dict(
        zip(("conv1", "conv2", "conv3", "conv4", "fc1"), (6, 5, 7, 6, 12), strict=True)
    )
    assert 0 <= found["difference"] <= 1e-5
    latency = found["latency"]
    assert latency["threads"] == 1
    assert latency["cpu"]
    assert [ms["batch"] for ms in latency["ms"]] == [1, 256]
    assert all(ms["before"] > 0 and ms["after"] > 0 for ms in latency["ms"])


@pytest.mark.parametrize("method", ["finetune", "ewc"])
def test_nothing_is_cut_where_nothing_was_pruned(method: str) -> None:
    chain, state = two_tasks("relu", False, method)
    full, small = (
        model_of(chain.system, state, chain.tasks[1].task, compacted=cut) for cut in (False, True)
    )
    found = compaction(full, small)
    assert found["units"]["before"] == found["units"]["after"]
    assert found["difference"] == 0.0
    pixels = chain.tasks[1].train.inputs
    assert torch.equal(full(pixels), small(pixels))


def test_a_file_with_widths_that_are_not_its_own_is_refused(tmp_path: Path) -> None:
    chain, state = two_tasks("lwta", False)
    file, beside = tmp_path / "m.safetensors", tmp_path / "m.safetensors.json"
    save_export(file, model_of(chain.system, state, chain.tasks[1].task, compacted=True), {})
    described = json.loads(beside.read_text())
    for units in ({"fc1": 12}, {"fc1": 0}, {"fc1": 4}, {"conv1": 3}):
        beside.write_text(json.dumps(described | {"architecture": {
            **described["architecture"], "units": units}}))  # fmt: skip
        with pytest.raises(DamagedError, match="does not describe"):
            load_export(file)


def test_models_that_answer_otherwise_are_not_compared() -> None:
    full, small = nn.Linear(3, 2), nn.Linear(3, 2)
    with pytest.raises(ClsearchError, match="differ by"):
        compare(full, small, [torch.ones(4, 3)])
    nothing = nn.Linear(3, 2)
    torch.nn.init.constant_(nothing.weight, torch.nan)
    for pair in ((full, nothing), (nothing, full)):
        with pytest.raises(ClsearchError, match="differ by nan"):
            compare(*pair, [torch.ones(4, 3)])


def test_modules_show_their_new_widths() -> None:
    backbone, _ = made(("clnp_narrow", "default"))
    other = resized(backbone, {"conv2": 2, "conv4": 9})
    conv3, dense = other.get_submodule("conv3"), other.get_submodule("fc1")
    assert (conv3.in_channels, conv3.out_channels) == (2, 6)
    assert dense.in_features == 9 * 2 * 2
    assert other.numbers != backbone.numbers
    assert [u.units for u in backbone.unit_layers] == [5, 4, 6, 3, 7]
