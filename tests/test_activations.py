"""Maxout and LWTA: values by hand, whole groups in CLNP, and the same bits wherever they run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Learner, tiny_config, tiny_tasks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import cross_entropy

from clsearch.config import parse_config
from clsearch.errors import DepletedError, InputError
from clsearch.exports.files import load_export, save_export
from clsearch.exports.standalone import StandaloneModel
from clsearch.identity import identity
from clsearch.methods.base import ImportanceObjective
from clsearch.models.activations import lwta, maxout
from clsearch.models.base import Params, forward, initial_head, initial_parameters
from clsearch.models.mlp import MLP, MLPOptions
from clsearch.models.partition import free_rows, without_interference
from clsearch.pruning.activity import mean_activity
from clsearch.pruning.scan import threshold_scan
from clsearch.rng import generator
from clsearch.scenarios.base import InputTransform, Task
from clsearch.search.plan import pack_size
from clsearch.system import build_system, resolve
from clsearch.training import dense
from clsearch.training.batch import DeviceData, Readout
from clsearch.training.importance import mean_moment

SHAPE = (1, 3, 4)
PLAIN = InputTransform(1.0, (0.0,), (1.0,))
SCALED = InputTransform(255.0, (0.4,), (0.3,))
grouped = pytest.mark.parametrize("activation", ["maxout", "lwta"])
both = pytest.mark.parametrize("function", [maxout, lwta])
heads = pytest.mark.parametrize("shared", [True, False], ids=["shared", "multi"])


def network(activation: str, hidden: list[int], group: int, seed: int = 0) -> tuple[MLP, Params]:
    source = generator("test-activations", seed)
    backbone = MLP(MLPOptions(hidden=hidden, activation=activation, group=group), SHAPE)
    params = initial_parameters(backbone, source)
    return backbone, params | initial_head(0, 3, hidden[-1], source)


def noise(samples: int, seed: int = 0) -> DeviceData:
    source = generator("test-activations", "noise", seed)
    pixels = torch.randint(0, 256, (samples, *SHAPE), generator=source, dtype=torch.uint8)
    labels = torch.randint(0, 3, (samples,), generator=source)
    return DeviceData(pixels, labels, None, SCALED)


def by_hand(kind: str, values: list[float], group: int) -> list[float]:
    """The activation of one sample's layer, one group after the other."""
    found = []
    for i in range(0, len(values), group):
        members = values[i : i + group]
        best = max(members)
        winner = members.index(best)
        found += (
            [best] if kind == "maxout" else [best if j == winner else 0.0 for j in range(group)]
        )
    return found


# --- values and gradients ------------------------------------------------------------------------


def test_maxout_worked_out_by_hand() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5, -3.0, -1.0, -1.0], [0.0, 0.0, 0.0, 2.0, 7.0, 7.0]])
    assert maxout(x, 3).tolist() == [[1.0, -1.0], [0.0, 7.0]]
    assert maxout(x, 2).tolist() == [[1.0, 0.5, -1.0], [0.0, 2.0, 7.0]]
    assert maxout(x, 6).tolist() == [[1.0], [7.0]]


def test_lwta_worked_out_by_hand() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5, -3.0, -1.0, -1.0], [4.0, 4.0, 4.0, 2.0, 7.0, 7.0]])
    assert lwta(x, 3).tolist() == [[1.0, 0, 0, 0, -1.0, 0], [4.0, 0, 0, 0, 7.0, 0]]
    assert lwta(x, 2).tolist() == [[1.0, 0, 0.5, 0, -1.0, 0], [4.0, 0, 4.0, 0, 7.0, 0]]


@both
def test_the_gradient_goes_to_the_first_largest_alone(function: Any) -> None:
    x = torch.tensor([[1.0, 3.0, 2.0, -1.0, -1.0, -5.0]], requires_grad=True)
    weights = torch.tensor([[5.0, 7.0]] if function is maxout else [[5.0, 5, 5, 7, 7, 7]])
    (gradient,) = torch.autograd.grad((function(x, 3) * weights).sum(), x)
    assert gradient.tolist() == [[0.0, 5.0, 0.0, 7.0, 0.0, 0.0]]


@both
@given(st.integers(2, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 9999))
@settings(max_examples=40, deadline=None)
def test_any_layer_by_hand(function: Any, group: int, units: int, rows: int, seed: int) -> None:
    """Few different values, so that most groups tie."""
    source = generator("test-activations", "values", seed)
    x = torch.randint(-2, 3, (rows, units * group), generator=source).float()
    expected = [by_hand(function.__name__, row.tolist(), group) for row in x]
    assert function(x, group).tolist() == expected
    assert function(x.T.contiguous().T, group).tolist() == expected


@both
def test_channels_are_grouped_place_by_place(function: Any) -> None:
    x = torch.randn(3, 6, 4, 5, generator=generator("test-activations", "channels"))
    found = function(x, 3)
    places = x.permute(0, 2, 3, 1).reshape(-1, 6)
    expected = function(places, 3).view(3, 4, 5, -1).permute(0, 3, 1, 2)
    assert torch.equal(found, expected)
    assert torch.equal(function(x.to(memory_format=torch.channels_last), 3), expected)


@both
def test_a_pack_under_vmap(function: Any) -> None:
    x = torch.randint(-2, 3, (4, 5, 6), generator=generator("test-activations", "pack")).float()
    members = torch.stack([function(one, 2) for one in x])
    assert torch.equal(vmap(lambda one: function(one, 2))(x), members)


@both
def test_what_is_no_number_is_not_hidden(function: Any) -> None:
    for place in (0, 1):
        x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        x[0, place] = math.nan
        found = function(x, 2)
        assert found[0, : found.shape[1] // 2].isnan().any()
        assert found[0, -1 if function is lwta else 1] == 4.0


@grouped
def test_forward_of_the_network_by_hand(activation: str) -> None:
    backbone, params = network(activation, [4, 6], 2)
    assert params["fc1.weight"].shape == (8 if activation == "maxout" else 4, 12)
    (batch,) = noise(5).batches(5)
    found, activations = forward(backbone, params, batch.x, 0, None)
    a = batch.x.flatten(1).double()
    for name in ("fc1", "fc2"):
        z = a @ params[f"{name}.weight"].double().T + params[f"{name}.bias"].double()
        a = torch.tensor([by_hand(activation, row.tolist(), 2) for row in z]).double()
        torch.testing.assert_close(activations[name].double(), a, rtol=1e-4, atol=1e-5)
    logits = a @ params["head.0.weight"].double().T + params["head.0.bias"].double()
    torch.testing.assert_close(found.double(), logits, rtol=1e-4, atol=1e-5)


@grouped
@pytest.mark.parametrize("moment", ["magnitude", "square"])
def test_importance_of_grouped_layers_is_that_of_single_samples(
    activation: str, moment: Any
) -> None:
    backbone, params = network(activation, [6, 4], 2)
    data, names = noise(23), [n for n, _ in backbone.named_parameters()]

    def value(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, reduction="none")

    objective = ImportanceObjective(value, moment)
    found = mean_moment(backbone, params, data, Readout((0,)), None, names, objective, 10)
    total = {n: torch.zeros_like(params[n]) for n in names}
    for one in data.batches(1):
        leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
        logits, _ = forward(backbone, leaves, one.x, 0, None)
        grads = torch.autograd.grad(value(logits, one.y).sum(), [leaves[n] for n in names])
        for n, grad in zip(names, grads, strict=True):
            total[n] += (grad.abs() if moment == "magnitude" else grad.square()) / len(data)
    for n in names:
        torch.testing.assert_close(found[n], total[n], rtol=1e-4, atol=1e-6)


# --- options -------------------------------------------------------------------------------------


def built(**model: Any) -> MLP:
    backbone = build_system(tiny_config(model={"name": "mlp", **model}), 0, SHAPE).backbone
    assert isinstance(backbone, MLP)
    return backbone


def test_the_group_is_2_where_none_is_given_and_relu_has_none() -> None:
    assert built(hidden=[4]).options.group is None
    assert built(hidden=[4], group=None).options.group is None
    assert built(hidden=[4], activation="maxout").options.group == 2
    assert built(hidden=[4], activation="lwta", group=None).options.group == 2
    assert built(hidden=[6], activation="lwta", group=3).options.group == 3
    layers = {a: built(hidden=[4], activation=a).unit_layers[0] for a in ("relu", "maxout", "lwta")}
    assert {a: (u.units, u.rows, u.group) for a, u in layers.items()} == {
        "relu": (4, 1, 1), "maxout": (4, 2, 1), "lwta": (4, 1, 2),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "field", "value", "allowed"),
    [
        ({"group": 2}, "model.group", 2, "maxout and lwta"),
        ({"activation": "relu", "group": 4}, "model.group", 4, "maxout and lwta"),
        ({"activation": "maxout", "group": 1}, "model.group", 1, "at least 2"),
        ({"activation": "lwta", "group": 1025}, "model.group", 1025, "at most 1024"),
        ({"activation": "lwta", "group": "two"}, "model.group", "two", "whole number"),
        ({"activation": "tanh"}, "model.activation", "tanh", "'relu', 'maxout' or 'lwta'"),
        ({"activation": "lwta"}, "model.hidden", [8, 5], "multiples of 2"),
        ({"activation": "lwta", "group": 8}, "model.hidden", [8, 5], "multiples of 8"),
    ],
)
def test_groups_that_are_refused(
    model: dict[str, Any], field: str, value: object, allowed: str
) -> None:
    with pytest.raises(InputError) as caught:
        built(hidden=[8, 5], **model)
    assert (caught.value.field, caught.value.value) == (field, value)
    assert allowed in caught.value.allowed
    assert caught.value.exit_code == 2


def test_maxout_takes_any_width() -> None:
    assert built(hidden=[7, 5], activation="maxout", group=3).unit_layers[1].units == 5


@pytest.mark.parametrize("model", [{}, {"activation": "maxout"}, {"activation": "lwta"}])
def test_a_resolved_config_is_read_again_as_the_same(model: dict[str, Any]) -> None:
    config = resolve(tiny_config(model={"name": "mlp", "hidden": [4], **model}))
    again = resolve(parse_config(config.model_dump(mode="json")))
    assert again.model.model_dump() == config.model.model_dump()
    assert identity(again) == identity(config)


def test_packs_count_the_rows_that_are_computed() -> None:
    def size(width: int, **options: Any) -> int:
        return pack_size(MLP(MLPOptions(hidden=[width], **options), SHAPE), "auto", "cpu", 64)

    assert size(150, activation="maxout", group=4) == size(600) < size(150)
    assert size(150, activation="lwta") == size(150)


# --- groups in activity, partition and scan ------------------------------------------------------


def activity_of(activation: str, hidden: int, gates: Any = None) -> list[float]:
    """Of a layer that passes its four pixels on, the last two less 10."""
    backbone = MLP(MLPOptions(hidden=[hidden], activation=activation), (1, 1, 4))
    params = {"fc1.weight": torch.eye(4), "fc1.bias": torch.tensor([0.0, 0, -10, -10])}
    pixels = torch.tensor([[3, 1, 2, 4], [0, 5, 9, 1]], dtype=torch.uint8).view(2, 1, 1, 4)
    data = DeviceData(pixels, torch.zeros(2, dtype=torch.int64), None, PLAIN)
    return mean_activity(backbone, params, data, gates, 1)["fc1"].tolist()


def test_activity_is_the_mean_magnitude() -> None:
    assert activity_of("maxout", 2) == [4.0, 3.5]  # 3 and 5; -6 and -1


def test_activity_of_rivals_is_the_largest_of_the_group() -> None:
    """Alone they have 1.5, 2.5 and 0.5, 3: outputs 3 0 | 0 -6 and 0 5 | -1 0."""
    assert activity_of("lwta", 4) == [2.5, 2.5, 3.0, 3.0]
    shut = {"fc1": torch.tensor([False, False, True, True])}
    assert activity_of("lwta", 4, shut) == [0.0, 0.0, 3.0, 3.0]


def test_a_maxout_neuron_takes_all_its_rows_along() -> None:
    backbone, params = network("maxout", [2, 2], 2)
    on = {"fc1": torch.tensor([True, False]), "fc2": torch.tensor([False, True])}
    masks = free_rows(params, backbone, {name: ~neurons for name, neurons in on.items()})
    assert masks["fc1.bias"].tolist() == [False, False, True, True]
    assert masks["fc2.weight"].tolist() == [[True], [True], [False], [False]]
    cut = without_interference(params, backbone, on)["fc2.weight"] != params["fc2.weight"]
    assert cut.tolist() == [[False, False], [False, False], [False, True], [False, True]]


@grouped
@given(
    groups=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    group=st.integers(2, 3),
    count=st.sampled_from([1, 3, 60]),
    seed=st.integers(0, 9999),
)
@settings(max_examples=15, deadline=None)
def test_scan_equals_forwards_masked_by_hand(
    activation: str, groups: list[int], group: int, count: int, seed: int
) -> None:
    hidden = [n * group for n in groups]
    backbone, params = network(activation, hidden, group, seed)
    assert not backbone.dense_relu
    data, readout = noise(60, seed), Readout((0,))
    prunable = {u.name: torch.ones(u.units, dtype=torch.bool) for u in backbone.unit_layers}
    activity = mean_activity(backbone, params, noise(50, seed + 1), None, 16)
    scan = threshold_scan(backbone, params, readout, None, prunable, activity, data, count, 7)
    for point in scan:
        (batch,) = data.batches(60)
        a, free = batch.x.flatten(1).double(), []
        for u in backbone.unit_layers:
            z = a @ params[u.weight].double().T + params[u.bias].double()
            kept = (activity[u.name] > point.threshold).double()
            a = torch.tensor([by_hand(activation, row.tolist(), group) for row in z]) * kept
            free.append(int((kept == 0).sum()))
            assert free[-1] % u.group == 0
        logits = a @ params["head.0.weight"].double().T + params["head.0.bias"].double()
        expected = int((logits.argmax(1) == data.labels).sum())
        assert abs(round(point.accuracy * 60) - expected) <= 1
        assert point.free == tuple(free)


# --- chains --------------------------------------------------------------------------------------


def clnp(shared: bool, tasks: int = 4, mode: str = "gradient", **model: Any) -> Learner:
    config = tiny_config(
        {"name": "clnp", "regularizers": [{"name": "l1_param", "mode": mode}]},
        model={"name": "mlp", **model},
        training={"epochs": 1, "batch_size": 8},
    )
    return Learner(config, tiny_tasks(tasks, shared), shared)


@grouped
@heads
@given(
    groups=st.lists(st.integers(2, 6), min_size=1, max_size=3),
    group=st.integers(2, 3),
    quantiles=st.lists(st.floats(0, 0.9), min_size=4, max_size=4),
    mode=st.sampled_from(["gradient", "proximal"]),
    l1=st.sampled_from([0.0, 1e-2]),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_clnp_zero_forgetting_is_exact(
    activation: str,
    shared: bool,
    groups: list[int],
    group: int,
    quantiles: list[float],
    mode: str,
    l1: float,
) -> None:
    """Logits of all earlier tasks are bit-equal after every later one, whatever was pruned."""
    hidden = [n * group for n in groups]
    chain = clnp(shared, mode=mode, hidden=hidden, activation=activation, group=group)
    hypers = [{"lr": 0.02 * (k + 1), "l1": l1} for k in range(2)]
    state, remembered = None, {}
    for number, q in enumerate(quantiles, start=1):
        try:
            start = chain.begin(state, number)
        except DepletedError:
            assert shared
            break
        params = {**start.params, **(chain.train(start, number, hypers)[-1].params or {})}
        evidence = chain.evidence(start, params, number)
        activity, free = evidence.activity(), chain.method.prunable(start.state)
        own = torch.cat([activity[n][free[n]] for n in free])
        theta = float(own.quantile(q)) if len(own) else 0.0
        state = chain.consolidate(start, params, evidence, theta, number)
        for unit in chain.system.backbone.unit_layers:
            active = state.state[f"active.{unit.name}"].view(-1, unit.group)
            assert torch.equal(active.any(1), active.all(1)), "a group was split"
        for earlier, logits in remembered.items():
            assert torch.equal(chain.logits(state, earlier), logits), f"task {earlier} forgotten"
        remembered[number] = chain.logits(state, number)
    assert remembered


@grouped
@heads
def test_a_chain_keeps_learning_in_what_is_free(activation: str, shared: bool) -> None:
    """The exactness above is not that of a network in which nothing moves."""
    chain = clnp(shared, tasks=3, hidden=[24, 16], activation=activation, group=2)
    hyper, state = {"lr": 0.05, "l1": 1e-3}, None
    for number in (1, 2, 3):
        start = chain.begin(state, number)
        trained = chain.train(start, number, [hyper])[0].params or {}
        for unit in chain.system.backbone.unit_layers:
            free = chain.method.prunable(start.state)[unit.name]
            moved = trained[unit.weight] != start.params[unit.weight]
            rows = unit.by_row(free)
            assert not moved[~rows].any()
            assert moved[rows].any() == rows.any()
        params = {**start.params, **trained}
        evidence = chain.evidence(start, params, number)
        last = evidence.activity()["fc2"][chain.method.prunable(start.state)["fc2"]]
        theta = float(last.quantile(0.5))
        state = chain.consolidate(start, params, evidence, theta, number)
        assert 0 < int(state.state["active.fc2"].sum()) < 16


@pytest.mark.skipif(
    not dense.available(), reason="MKL's last bits depend on where a member lies in memory"
)
@grouped
@pytest.mark.parametrize("hidden", [[18], [129, 33, 9]])
def test_a_pack_of_eight_gives_the_bits_of_eight_packs_of_one(
    activation: str, hidden: list[int]
) -> None:
    chain = clnp(False, tasks=2, hidden=hidden, activation=activation, group=3)
    hypers = [{"lr": 1e-2 * (1 + i), "l1": 1e-3 * i} for i in range(8)]
    for parent in (None, chain.learn(None, 1, 0.3)):
        number = 1 if parent is None else 2
        start = chain.begin(parent, number)
        together = chain.train(start, number, hypers)
        for member, hyper in zip(together, hypers, strict=True):
            (alone,) = chain.train(start, number, [hyper])
            assert member.params is not None
            assert alone.params is not None
            assert member.curve == alone.curve
            assert all(torch.equal(member.params[n], alone.params[n]) for n in alone.params)


# --- export --------------------------------------------------------------------------------------


@grouped
@pytest.mark.parametrize("suffix", [".pt2", ".safetensors"])
def test_an_exported_model_answers_the_same(activation: str, suffix: str, tmp_path: Path) -> None:
    backbone, params = network(activation, [9, 6], 3)
    task = Task(1, "one", ("a", "b", "c"), 0, SHAPE, SCALED)
    gates = {"fc2": torch.tensor([True, True, True, False, False, False])}
    save_export(tmp_path / f"m{suffix}", StandaloneModel(backbone, params, 0, gates, task), {})
    answer, metadata = load_export(tmp_path / f"m{suffix}")
    options = {"hidden": [9, 6], "activation": activation, "group": 3}
    assert metadata["architecture"]["options"] == options
    for count in (1, 2, 17):
        data = noise(count)
        (batch,) = data.batches(count)
        expected, _ = forward(backbone, params, batch.x, 0, gates)
        assert torch.equal(answer(data.inputs.float()), expected)
