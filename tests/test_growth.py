"""CLNP's growth between tasks, what is left where nothing grows, and the account of neurons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Learner, same_theta, tiny_config, tiny_tasks
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from clsearch.consolidation import consolidate
from clsearch.data.base import Samples
from clsearch.errors import DepletedError, InputError
from clsearch.exports.files import load_export, save_export
from clsearch.exports.standalone import model_of
from clsearch.methods.base import ChainState
from clsearch.models.alexnet import AlexNet, AlexNetOptions
from clsearch.models.base import forward, head_names, initial_parameters
from clsearch.models.partition import fitted, needed
from clsearch.models.widths import resized
from clsearch.records import LayerCapacity
from clsearch.rng import generator
from clsearch.scenarios.base import TaskData
from clsearch.search.plan import trial_key
from clsearch.system import build_scenario, build_system, check

MLP = {"name": "mlp", "hidden": [6, 4]}
MODELS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "relu": (MLP, (1, 2, 3)),
    "maxout": ({**MLP, "activation": "maxout"}, (1, 2, 3)),
    "lwta": ({**MLP, "activation": "lwta"}, (1, 2, 3)),
    "narrow": ({"name": "clnp_narrow", "channels": [3, 4, 3, 4], "dense": 6}, (2, 9, 8)),
    "wide": ({"name": "clnp_wide", "channels": [3, 4, 3, 4, 6]}, (2, 23, 23)),
}
TASKS = 4
heads = pytest.mark.parametrize("shared", [True, False], ids=["shared", "multi"])


def of_shape(task: TaskData, shape: tuple[int, int, int]) -> TaskData:
    """A tiny task with its pixels repeated over images of another shape."""

    def larger(samples: Samples) -> Samples:
        pixels = samples.inputs.repeat(1, shape[0], shape[1], shape[2])
        return Samples(pixels[:, :, : shape[1], : shape[2]].contiguous(), samples.labels)

    channels = {"mean": (0.4,) * shape[0], "std": (0.3,) * shape[0]}
    transform = replace(task.task.transform, **channels)
    of = replace(task.task, shape=shape, transform=transform)
    return replace(task, task=of, train=larger(task.train), validation=larger(task.validation))


def chain_of(model: str, shared: bool, grow: dict[str, Any], *more: str) -> Learner:
    """A CLNP chain on a tiny network, with the regularisers `more` beside its own."""
    given, shape = MODELS[model]
    entry = {"name": "clnp", "options": {"grow": grow}, "regularizers": [{"name": n} for n in more]}
    config = tiny_config(entry, model=given, training={"epochs": 1, "batch_size": 8})
    tasks = [of_shape(task, shape) for task in tiny_tasks(TASKS, shared, samples=12)]
    return Learner(config, tasks, shared)


def learn(
    chain: Learner, parent: ChainState | None, number: int, keep: float, members: int = 1
) -> ChainState:
    """Trains a pack on a task and keeps a share of the distinct activities in each layer."""
    start = chain.begin(parent, number)
    hypers = [chain.defaults | {"lr": 0.02 * (k + 1)} for k in range(members)]
    memory = parent.regularizer_state if parent else {}
    trained = chain.train(start, number, hypers, memory)[-1]
    assert trained.params is not None, trained.reason
    found = chain.evidence(start, {**start.params, **trained.params}, number)
    ranks = {}
    for layer, activity in found.mean_activity.items():
        values, rank = activity.unique(return_inverse=True)
        ranks[layer] = rank / len(values)
    evidence = replace(found, mean_activity=ranks)
    system = chain.system.of(start.state)
    thresholds = same_theta(system.backbone, 1 - keep)
    return consolidate(system, start, evidence, thresholds, chain.context(number), parent)


def widths(chain: Learner, state: ChainState) -> list[int]:
    return [u.units for u in chain.system.of(state.state).backbone.unit_layers]


@pytest.mark.parametrize("members", [1, 3])
@heads
@pytest.mark.parametrize("model", MODELS)
def test_earlier_answers_are_the_same_bits_while_every_layer_grows(
    model: str, shared: bool, members: int
) -> None:
    layers = [u.name for u in chain_of(model, shared, {}).system.backbone.unit_layers]
    rules = {name: "auto" if i % 2 else 4 for i, name in enumerate(layers)}
    chain = chain_of(model, shared, rules)
    states: list[ChainState] = []
    remembered: dict[int, Tensor] = {}
    for number in range(1, TASKS + 1):
        states.append(learn(chain, states[-1] if states else None, number, 0.9, members))
        for earlier, logits in remembered.items():
            assert torch.equal(chain.logits(states[-1], earlier), logits), f"{earlier} forgotten"
        remembered[number] = chain.logits(states[-1], number)
    first, last = (widths(chain, states[i]) for i in (0, -1))
    assert all(a < b for a, b in zip(first[::2], last[::2], strict=True))
    assert sum(last[1::2]) >= sum(first[1::2])
    # The whole network, as wide as it has become, answers the same but for the order of sums.
    whole = chain.system.of(states[-1].state).backbone
    for number, logits in remembered.items():
        task = chain.tasks[number - 1].task
        gates = {
            name: pad(gate, (0, whole.unit_layers[-1].units - len(gate)))
            for name, gate in (chain.method.gates(states[-1].state, task) or {}).items()
        }
        x = task.transform.normalise(chain.tasks[number - 1].validation.inputs)
        torch.testing.assert_close(
            forward(whole, states[-1].params, x, task.head, gates)[0], logits
        )


@heads
def test_a_layer_grows_until_it_has_the_free_neurons_asked_for(shared: bool) -> None:
    chain = chain_of("relu", shared, {"fc1": 5})
    one = learn(chain, None, 1, 0.5)
    left = int((~one.state["active.fc1"]).sum())
    assert 0 < left < 5
    start = chain.begin(one, 2)
    assert chain.method.prunable(start.state)["fc1"].sum() == 5
    assert len(start.state["active.fc1"]) == 6 + 5 - left
    assert len(start.state["active.fc2"]) == 4
    assert torch.equal(start.state["active.fc1"][:6], one.state["active.fc1"])
    plenty = chain_of("relu", shared, {"fc1": left})
    assert torch.equal(plenty.begin(one, 2).state["active.fc1"], one.state["active.fc1"])


def test_auto_leaves_room_for_the_most_demanding_task_so_far() -> None:
    chain = chain_of("relu", False, {"fc1": "auto"})
    state, taken = None, []
    for number, keep in enumerate((0.5, 0.9, 0.2), start=1):
        before, state = state, learn(chain, state, number, keep)
        account = chain.capacity(before, state, number)
        assert account is not None
        taken.append(account[0].new)
        free = chain.method.prunable(chain.begin(state, number + 1).state)["fc1"]
        assert int(free.sum()) == max(*taken, account[0].free)
    assert len(set(taken)) == 3


@heads
def test_new_neurons_are_fresh_and_nothing_leads_from_them_to_old_ones(shared: bool) -> None:
    chain = chain_of("narrow", shared, {"conv4": 3, "fc1": 5})
    one = learn(chain, None, 1, 0.9)
    start = chain.begin(one, 2)
    backbone = chain.system.of(start.state).backbone
    fresh = initial_parameters(backbone, chain.context(2).generator("initial"))
    for name, old in (("conv4", 4), ("fc1", 6)):
        weight, on = start.params[f"{name}.weight"], start.state[f"active.{name}"]
        assert len(on) > old
        assert torch.equal(weight[~on], fresh[f"{name}.weight"][~on])
        kept = one.params[f"{name}.weight"][on[:old]]
        assert torch.equal(weight[on][:, : kept.shape[1]], kept)
        assert not weight[on][:, kept.shape[1] :].any()
        assert start.trainable[f"{name}.weight"].view(-1).equal(~on)
    # A channel gives 3 x 2 places to the dense layer, the new channels' behind all old ones'.
    assert backbone.unit_layers[3].fan == 6
    assert weight.shape[1] == 6 * len(start.state["active.conv4"])
    head, _ = head_names(0)
    if not shared:
        assert torch.equal(start.params[head][:, :6], one.params[head])
        assert not start.params[head][:, 6:].any()


def test_normalisation_of_new_channels_is_fresh() -> None:
    chain = chain_of("wide", False, {"conv2": 4})
    one = learn(chain, None, 1, 0.9)
    start = chain.begin(one, 2)
    on = start.state["active.conv2"]
    values = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    for part, value in values.items():
        found = start.params[f"conv2_norm.{part}"]
        assert torch.equal(found[~on], torch.full((int((~on).sum()),), value))
        assert torch.equal(found[on], one.params[f"conv2_norm.{part}"][on[:4]])


def test_the_pack_does_not_change_what_new_neurons_start_from() -> None:
    chain = chain_of("relu", False, {"fc1": 5})
    one = learn(chain, None, 1, 0.5)
    two = [learn(chain, one, 2, 0.5, members=1) for _ in range(2)]
    assert all(torch.equal(two[0].params[n], two[1].params[n]) for n in two[0].params)


def test_a_regularisers_memory_covers_new_neurons() -> None:
    """SLNI's importance of a neuron that no task has needed is 0."""
    chain = chain_of("relu", False, {"fc1": 4, "fc2": 4}, "slni")
    one = learn(chain, None, 1, 0.9)
    two = learn(chain, one, 2, 0.9)
    old, new = (s.regularizer_state["slni.alpha.fc1"] for s in (one, two))
    assert len(old) == 6 < len(new) == len(two.state["active.fc1"])
    assert (new[:6] >= old).all()
    assert new[6:].any()


@pytest.mark.parametrize(
    ("model", "grow", "field", "allowed"),
    [
        ("relu", {"fc9": 3}, "methods[0].options.grow.fc9", "one of fc1, fc2"),
        ("lwta", {"fc1": 3}, "methods[0].options.grow.fc1", "multiple of 2"),
        ("relu", {"fc1": 0}, "methods[0].options.grow.fc1", "auto.*at least 1"),
        ("relu", {"fc1": True}, "methods[0].options.grow.fc1", "auto"),
        ("relu", {"fc1": "wide"}, "methods[0].options.grow.fc1", "auto"),
        ("relu", {"fc1": 70000}, "methods[0].options.grow.fc1", "at most 65536"),
        ("relu", ["fc1"], "methods[0].options.grow", "mapping"),
    ],
)
def test_growth_that_cannot_be_is_refused_before_the_search(
    model: str, grow: Any, field: str, allowed: str
) -> None:
    entry = {"name": "clnp", "options": {"grow": grow}}
    config = tiny_config(entry, model=MODELS[model][0], scenario={"name": "permuted", "tasks": 2})
    scenario = build_scenario(config)
    with pytest.raises(InputError, match=allowed) as raised:
        check(config, scenario, [build_system(config, 0, (1, 8, 8))], scenario.tasks)
    assert raised.value.field == field


def test_growth_is_part_of_a_trials_key() -> None:
    chain, grown = (chain_of("relu", False, grow) for grow in ({}, {"fc1": 3}))
    keys = [
        trial_key(c.config, c.system, c.parts(1), None, 0, False, c.defaults)
        for c in (chain, grown)
    ]
    assert keys[0] != keys[1]


# --- every backbone in other widths --------------------------------------------------------------


def test_pretrained_weights_stay_where_they_are_in_a_wider_network(tmp_path: Path) -> None:
    options = {"channels": [3, 4, 3, 4, 3], "dense": [5, 6]}
    plain = AlexNet(AlexNetOptions(**options), (3, 64, 64))
    given = {
        f"{source}.{part}": torch.randn(plain.get_parameter(f"{u.name}.{part}").shape,
                                        generator=generator("alexnet", u.name, part))
        for u, source in zip(plain.unit_layers, plain.sources, strict=True)
        for part in ("weight", "bias")
    }  # fmt: skip
    save_file(given, tmp_path / "weights.safetensors")
    weights = str(tmp_path / "weights.safetensors")
    backbone = AlexNet(AlexNetOptions(**options, weights=weights), (3, 64, 64))
    wider = resized(backbone, {"conv5": 5, "fc2": 9})
    assert [u.units for u in wider.unit_layers] == [3, 4, 3, 4, 5, 5, 9]
    params = initial_parameters(wider, generator("fresh"))
    assert torch.equal(params["fc2.weight"][:6], given["classifier.4.weight"])
    assert torch.equal(params["fc1.weight"][:, : 3 * 36], given["classifier.1.weight"])
    assert params["fc1.weight"][:, 3 * 36 :].all()
    back = fitted(params, backbone)
    assert all(torch.equal(back[n], v) for n, v in backbone.initial().items())


# --- depletion, and the account of neurons -------------------------------------------------------


def test_a_task_without_free_neurons_in_the_last_layer_is_transfer() -> None:
    """Multi-head, CLNP §3.2: the features are fixed. With growth they are not."""
    chain, grown = (chain_of("relu", False, grow) for grow in ({}, {"fc2": 2}))
    one = learn(chain, None, 1, 1.1)
    system, start = chain.system.begin(one, chain.context(2))
    assert system.method.transfers(start)
    assert not system.method.transfers(chain.begin(None, 1))
    again = grown.system.begin(one, grown.context(2))
    assert not again[0].method.transfers(again[1])


def test_a_shared_head_without_free_neurons_goes_on_with_growth_alone() -> None:
    chain, grown = (chain_of("relu", True, grow) for grow in ({}, {"fc2": 2}))
    one = learn(chain, None, 1, 1.1)
    with pytest.raises(DepletedError, match="fc2"):
        chain.begin(one, 2)
    assert learn(grown, one, 2, 1.1).state["gate.2"].sum() == 2


def test_the_account_of_a_network_by_hand() -> None:
    """fc1 1 1 0 0 and fc2 1 0 0 after task 1; then task 2 took neuron 2 and neuron 1."""
    chain = chain_of("relu", False, {})
    net = chain.system.of({f"active.{n}": torch.ones(u) for n, u in (("fc1", 4), ("fc2", 3))})
    params = initial_parameters(net.backbone, generator("by hand"))
    params["fc2.weight"] = torch.tensor([[1.0, 1, 0, 0], [0.0, 3, 2, 0], [0.0, 0, 0, 0]])
    params["head.1.weight"] = torch.tensor([[0.0, 5, 0], [0.0, 6, 0]])
    on = {"fc1": [1, 1, 1, 0], "fc2": [1, 1, 0]}
    state = {f"active.{n}": torch.tensor(v).bool() for n, v in on.items()}
    before = {
        "active.fc1": torch.tensor([1, 1, 0, 0]).bool(),
        "active.fc2": torch.tensor([1]).bool(),
    }
    task = chain.tasks[1].task
    # The head reads fc2's own neuron alone, which reads the old neuron 1 of fc1, and not 0.
    assert net.method.capacity(before, ChainState(params, state), task) == (
        LayerCapacity("fc1", 4, used=3, new=1, reused=1),
        LayerCapacity("fc2", 3, used=2, new=1, reused=0),
    )
    params["head.1.weight"] = torch.tensor([[1e-9, 5, 0], [0.0, 6, 0]])
    fc1, fc2 = net.method.capacity(before, ChainState(params, state), task)
    assert (fc1.reused, fc2.reused, fc2.free) == (2, 1, 1)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("model", MODELS)
@heads
def test_a_task_reads_the_neurons_that_its_answers_depend_on(
    model: str, shared: bool, number: int
) -> None:
    """Silencing all others changes nothing; silencing one of the last layer that it reads does, if
    that is ever active."""
    chain = chain_of(model, shared, {})
    state = learn(chain, learn(chain, None, 1, 0.7), 2, 0.9)
    task = chain.tasks[number - 1]
    found = chain.system.model(state, task.task)
    assert found is not None
    x, last = task.task.transform.normalise(task.validation.inputs), found.backbone.unit_layers[-1]
    read = needed(found.backbone, found.params, found.head, found.gates)
    assert read[last.name].any()

    def answered(gates: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return forward(found.backbone, found.params, x, found.head, gates)

    wanted, activations = answered({**found.gates})
    assert torch.equal(answered(read)[0], wanted)
    for neuron in read[last.name].nonzero().flatten().tolist():
        off = torch.arange(last.units) != neuron
        ever = activations[last.name][:, neuron].any()
        assert torch.equal(answered({last.name: read[last.name] & off})[0], wanted) != bool(ever)


@pytest.mark.parametrize("suffix", [".pt2", ".safetensors"])
def test_an_earlier_tasks_model_is_exported_in_its_own_widths(suffix: str, tmp_path: Path) -> None:
    chain = chain_of("narrow", True, {"conv4": 3, "fc1": 5})
    one = learn(chain, None, 1, 0.9)
    two = learn(chain, one, 2, 0.9)
    for number in (1, 2):
        task, pixels = chain.tasks[number - 1].task, chain.tasks[number - 1].validation.inputs
        file = tmp_path / f"task-{number}{suffix}"
        save_export(file, model_of(chain.system.of(two.state), two, task), {})
        model, metadata = load_export(file)
        assert torch.equal(model(pixels.float()), chain.logits(two, number))
        grown = (one, two)[number - 1]
        found = metadata["architecture"]["units"]
        assert list(found.values()) == widths(chain, grown)
    assert widths(chain, one) != widths(chain, two)
