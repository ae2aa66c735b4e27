"""The contract of every method found in `clsearch.methods`, and their formulas by hand.

A new method file is picked up by being there: nothing has to be added here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import Learner, tiny_config, tiny_tasks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clsearch.errors import DepletedError, InputError
from clsearch.methods.base import ChainState, Method, Start
from clsearch.models.base import Params, head_names
from clsearch.plugins import discover
from clsearch.regularizers.base import Regularizer
from clsearch.store import dump_state, load_state
from clsearch.training.evidence import TrainingEvidence

METHODS: dict[str, type[Method]] = discover("clsearch.methods", Method)
REGULARIZERS = discover("clsearch.regularizers", Regularizer)
PLACES = [
    pytest.param(name, incremental == "domain_incremental", id=f"{name}-{incremental[:6]}")
    for name, kind in METHODS.items()
    for incremental in kind.scenarios
]
everywhere = pytest.mark.parametrize(("name", "shared"), PLACES)
each = pytest.mark.parametrize("name", METHODS)


def learner(name: str | dict[str, Any], shared: bool, tasks: int = 3, **sections: Any) -> Learner:
    return Learner(tiny_config(name, **sections), tiny_tasks(tasks, shared), shared)


def tensors(*parts: Any) -> list[Tensor]:
    """Every tensor within, in order."""
    found: list[Tensor] = []
    for part in parts:
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, dict):
            found += tensors(*part.values())
        elif isinstance(part, ChainState | Start):
            found += tensors(*vars(part).values())
    return found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """The same names, dtypes, shapes and bits."""
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a
    )


def unchanged(before: list[Tensor], after: list[Tensor]) -> bool:
    return len(before) == len(after) and all(map(torch.equal, before, after))


@dataclass(frozen=True)
class RecordedEvidence(TrainingEvidence):
    """Evidence that keeps what it gave away."""

    seen: list[Params] = field(default_factory=list)

    def importance(self, *arguments: Any, **options: Any) -> Params:
        self.seen.append(super().importance(*arguments, **options))
        return self.seen[-1]


# --- the contract --------------------------------------------------------------------------------


@each
def test_declares_itself(name: str) -> None:
    kind = METHODS[name]
    assert kind.__doc__
    assert kind.scenarios
    assert set(kind.scenarios) <= {"task_incremental", "domain_incremental"}
    assert set(kind.regularizers) <= set(REGULARIZERS)
    assert "lr" not in kind.space
    for hyper in kind.space.values():
        assert hyper.doc
        assert hyper.low <= hyper.high
        assert hyper.allows(hyper.default)
        assert hyper.grid
        assert len(set(hyper.grid)) == len(hyper.grid)
        assert all(map(hyper.allows, hyper.grid))


@each
def test_refuses_unknown_options_and_lists_the_known(name: str) -> None:
    with pytest.raises(InputError) as caught:
        learner({"name": name, "options": {"no_such": 1}}, False)
    assert caught.value.field == "methods[0].options.no_such"
    assert all(option in caught.value.allowed for option in METHODS[name].Options.model_fields)


@everywhere
def test_state_survives_the_store_bit_for_bit(name: str, shared: bool) -> None:
    chain = learner(name, shared)
    state = chain.learn(chain.learn(None, 1, 0.05), 2, 0.05)
    loaded = load_state(dump_state(state))
    assert same(loaded.params, state.params)
    assert same(loaded.state, state.state)
    a, b = chain.learn(state, 3, 0.05), chain.learn(loaded, 3, 0.05)
    assert same(a.params, b.params)
    assert same(a.state, b.state)


@everywhere
def test_same_inputs_give_the_same_bits(name: str, shared: bool) -> None:
    first, second = learner(name, shared), learner(name, shared)
    a = b = None
    for number in (1, 2):
        a, b = first.learn(a, number, 0.05), second.learn(b, number, 0.05)
        assert same(a.params, b.params)
        assert same(a.state, b.state)


@everywhere
def test_hooks_change_none_of_their_inputs(name: str, shared: bool) -> None:
    chain = learner(name, shared)
    parent = chain.learn(None, 1, 0.05)
    start = chain.begin(parent, 2)
    trained = chain.train(start, 2)[0]
    assert trained.params is not None
    params = {**start.params, **trained.params}
    evidence = chain.evidence(start, params, 2, trained.running)
    given = RecordedEvidence(**vars(evidence))
    activity = dict(given.activity())
    hyper = {n: torch.tensor(v) for n, v in chain.defaults.items()}
    inputs = (parent, start, params, activity, dict(given.running), hyper)
    before = [t.clone() for t in tensors(*inputs)]

    chain.begin(parent, 2)
    own = {n: params[n] for n in start.trainable}
    chain.method.penalty(own, start.state, hyper)
    stack = {n: v.unsqueeze(0).clone() for n, v in own.items()}
    kept = [v.clone() for v in stack.values()]
    grads = {n: torch.zeros_like(v) for n, v in stack.items()}
    if chain.method.analytic:
        chain.method.add_gradient(grads, stack, start.state, {n: v[None] for n, v in hyper.items()})
    assert unchanged(kept, list(stack.values()))
    chain.method.drift(params, start.state)
    chain.method.prunable(start.state)
    state = chain.consolidate(start, params, given, 0.05, 2)
    first = [[t.clone() for t in part.values()] for part in given.seen]
    after = [t.clone() for t in tensors(state)]
    chain.method.gates(state.state, chain.tasks[1].task)
    chain.capacity(parent, state, 2)
    assert unchanged(before, tensors(*inputs))
    again = chain.consolidate(start, params, given, 0.05, 2)
    assert unchanged(after, tensors(again))
    assert all(
        unchanged(old, list(new.values())) for old, new in zip(first, given.seen, strict=False)
    )


@everywhere
def test_zero_strength_of_everything_is_fine_tuning(name: str, shared: bool) -> None:
    """On task 1 for every method; on task 2 for those that go on from the parent unpruned."""
    plain, chain = learner("finetune", shared), learner(name, shared)
    zero = {
        n: 0.0 if n != "lr" and hyper.allows(0.0) else hyper.default
        for n, hyper in chain.system.space.items()
    }
    a, b = plain.learn(None, 1), chain.learn(None, 1, None, [zero])
    assert all(torch.equal(a.params[n], b.params[n]) for n in a.params)
    kind = METHODS[name]
    if not (kind.prunes or kind.independent or kind.uses_all_tasks):
        own = plain.train(plain.begin(a, 2), 2)[0].params or {}
        (other,) = chain.train(chain.begin(b, 2), 2, [zero])
        assert own
        assert all(torch.equal(value, (other.params or {})[n]) for n, value in own.items())


@everywhere
def test_analytic_gradient_is_autograds(name: str, shared: bool) -> None:
    chain, rng = learner(name, shared), torch.Generator().manual_seed(1)
    start = chain.begin(chain.learn(chain.learn(None, 1, 0.05), 2, 0.05), 3)
    if not chain.method.analytic:
        assert type(chain.method).add_gradient is Method.add_gradient
        return
    stack = {
        n: start.params[n] + torch.randn(3, *start.params[n].shape, generator=rng)
        for n in start.trainable
    }
    hyper = {n: torch.rand(3, generator=rng) * 10 for n in chain.defaults}
    # What is there already stays: gradients are added.
    grads = {n: torch.randn(v.shape, generator=rng) for n, v in stack.items()}
    already = {n: v.clone() for n, v in grads.items()}
    chain.method.add_gradient(grads, stack, start.state, hyper)
    for k in range(3):
        leaves = {n: v[k].clone().requires_grad_() for n, v in stack.items()}
        own = {n: v[k] for n, v in hyper.items()}
        value = chain.method.penalty(leaves, start.state, own)
        assert value.shape == ()
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        for n, wanted in zip(leaves, found, strict=True):
            right = torch.zeros_like(leaves[n]) if wanted is None else wanted
            torch.testing.assert_close(grads[n][k] - already[n][k], right, rtol=1e-4, atol=1e-5)
    if name in ("ewc", "mas"):
        assert any((grads[n] - already[n]).abs().max() > 1e-3 for n in grads)


@everywhere
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_member_trains_the_same_in_any_pack(name: str, shared: bool, optimizer: str) -> None:
    training = {"epochs": 2, "batch_size": 8, "optimizer": optimizer}
    chain = learner(name, shared, training=training)
    start = chain.begin(chain.learn(None, 1, 0.05), 2)
    hypers = [{n: v * (1 + k / 3) for n, v in chain.defaults.items()} for k in range(8)]
    hypers[5]["lr"] = hypers[0]["lr"]
    together = chain.train(start, 2, hypers)
    for k in (0, 5, 7):
        (alone,) = chain.train(start, 2, [hypers[k]])
        assert alone.params is not None
        assert together[k].params is not None
        assert same(alone.params, together[k].params)
        assert same(alone.running, together[k].running)
        assert alone.curve == together[k].curve
    assert not same(together[0].params or {}, together[7].params or {})


@everywhere
@pytest.mark.parametrize(
    ("optimizer", "rates"), [("sgd", (1e9, math.inf)), ("adam", (1e9, 1e30, math.nan))]
)
def test_broken_members_end_alone(
    name: str, shared: bool, optimizer: str, rates: tuple[float, ...]
) -> None:
    training = {"epochs": 3, "batch_size": 8, "optimizer": optimizer}
    chain = learner(name, shared, training=training)
    start = chain.begin(chain.learn(None, 1, 0.05), 2)
    sound = [{n: v * (1 + k) for n, v in chain.defaults.items()} for k in range(2)]
    wanted = chain.train(start, 2, sound)
    rest = [{**sound[0], "lr": rate} for rate in rates]
    first, *broken, last = chain.train(start, 2, [sound[0], *rest, sound[1]])
    for member in broken:
        assert member.params is None
        assert member.accuracy is None
        assert "not finite" in member.reason or "diverged" in member.reason
        assert "epoch" in member.reason
    for got, alone in zip((first, last), wanted, strict=True):
        assert got.params is not None
        assert alone.params is not None
        assert same(got.params, alone.params)
        assert got.curve == alone.curve


@everywhere
def test_a_nan_hyperparameter_breaks_its_member_alone(name: str, shared: bool) -> None:
    """Unless it has no part in the loss of this task, where it must change nothing."""
    chain = learner(name, shared)
    start = chain.begin(chain.learn(None, 1, 0.05), 2)
    (alone,) = chain.train(start, 2)
    for bad in chain.defaults:
        hypers = [chain.defaults, {**chain.defaults, bad: math.nan}]
        good, broken = chain.train(start, 2, hypers)
        assert same(good.params or {}, alone.params or {})
        assert broken.params is None
        assert "not finite" in broken.reason


@everywhere
def test_shapes_of_what_a_method_says(name: str, shared: bool) -> None:
    chain, state = learner(name, shared), None
    units = {u.name: u.units for u in chain.system.backbone.unit_layers}
    for number in (1, 2, 3):
        parent, start = state, chain.begin(state, number)
        assert set(start.trainable) <= set(start.params)
        assert start.trainable
        for n, mask in start.trainable.items():
            assert mask.dtype == torch.bool
            assert mask.expand(start.params[n].shape).any()
        assert set(start.gates) <= set(units)
        prunable = chain.method.prunable(start.state)
        assert prunable.keys() == units.keys()
        for layer, mask in [*start.gates.items(), *prunable.items()]:
            assert mask.dtype == torch.bool
            assert mask.shape == (units[layer],)
        state = chain.learn(state, number, 0.05)
        assert all(v.dtype == torch.float32 for v in state.params.values())
        assert isinstance(chain.method.drift(state.params, state.state), float)
        account = chain.capacity(parent, state, number)
        if account is not None:
            assert {c.layer: c.units for c in account} == units
            for c in account:
                assert all(type(n) is int and n >= 0 for n in (c.new, c.reused, c.free))
                assert c.new + c.reused <= c.used
        for task in chain.tasks[:number]:
            gates = chain.method.gates(state.state, task.task)
            if task is chain.tasks[number - 1]:
                assert gates is not None
            for layer, gate in (gates or {}).items():
                assert gate.dtype == torch.bool
                assert gate.shape == (units[layer],)


@everywhere
def test_learns_its_tasks(name: str, shared: bool) -> None:
    """Far above the chance of one in three, on each task as it comes."""
    chain = learner(
        name,
        shared,
        model={"name": "mlp", "hidden": [24, 24]},
        training={"epochs": 25, "batch_size": 8},
    )
    space = chain.system.space
    hyper = {n: 0.01 if n == "lr" else min(space[n].grid) for n in space}
    state = None
    for number in (1, 2):
        start = chain.begin(state, number)
        trained = chain.train(start, number, [hyper])[0]
        assert trained.params is not None
        assert trained.accuracy is not None
        assert trained.accuracy > 0.8
        params = {**start.params, **trained.params}
        evidence = chain.evidence(start, params, number, trained.running)
        state = chain.consolidate(start, params, evidence, 0.1, number)
        merged = not METHODS[name].prunes and not same(state.params, params)
        assert chain.accuracy(state, number) > (0.5 if merged else 0.8)


OPTIONS = {  # options under which frozen weights must stay frozen too, by regulariser
    "l1_param": [{"mode": "gradient"}, {"mode": "proximal"}],
}


@everywhere
@pytest.mark.parametrize(
    "regularizer",
    [{"name": n, **o} for n in REGULARIZERS for o in OPTIONS.get(n, [{}])],
    ids=lambda r: "-".join(map(str, r.values())),
)
def test_only_the_trainable_entries_move(
    name: str, shared: bool, regularizer: dict[str, Any]
) -> None:
    training = {"epochs": 1, "batch_size": 8}  # nothing moves back: a few steps show it
    chain = learner({"name": name, "regularizers": [regularizer]}, shared, training=training)
    hyper = {n: 0.01 if n in REGULARIZERS[regularizer["name"]].space else v
             for n, v in chain.defaults.items()}  # fmt: skip
    state = chain.learn(None, 1, 0.2, [hyper])
    start = chain.begin(state, 2)
    trained = chain.train(start, 2, [hyper, hyper])[0].params
    assert trained is not None
    assert trained.keys() == start.trainable.keys()
    moved = 0
    for n, mask in start.trainable.items():
        frozen = ~mask.expand(trained[n].shape)
        assert torch.equal(trained[n][frozen], start.params[n][frozen])
        moved += int((trained[n] != start.params[n]).sum())
    assert moved


@everywhere
def test_a_full_network_ends_the_chain_or_goes_on(name: str, shared: bool) -> None:
    """Nothing was pruned, so that a pruning method has nothing left."""
    chain = learner(name, shared)
    state = chain.learn(None, 1, None)
    try:
        start = chain.begin(state, 2)
    except DepletedError:
        assert METHODS[name].prunes
        return
    assert any(mask.any() for mask in start.trainable.values())
    chain.learn(state, 2, None)


# --- CLNP, algorithm 1 point by point ------------------------------------------------------------


def clnp(shared: bool, hidden: list[int] | None = None, tasks: int = 3, **training: Any) -> Learner:
    return Learner(
        tiny_config(
            "clnp",
            model={"name": "mlp", "hidden": hidden or [16, 12]},
            training={"epochs": 2, "batch_size": 8, **training},
        ),
        tiny_tasks(tasks, shared),
        shared,
    )


def splitting_threshold(
    chain: Learner, parent: ChainState | None, number: int, hyper: dict[str, float] | None = None
) -> float:
    """A θ that leaves some free neurons of every layer active and some not, after task `number`."""
    start = chain.begin(parent, number)
    trained = chain.train(start, number, [hyper or chain.defaults])[0].params or {}
    activity = chain.evidence(start, {**start.params, **trained}, number).activity()
    own = [activity[n][free] for n, free in chain.method.prunable(start.state).items()]
    both = [
        float(theta)
        for theta in torch.cat(own).sort().values
        if all(0 < int((layer > theta).sum()) < len(layer) for layer in own)
    ]
    assert both, "no threshold splits every layer: take a wider network"
    return both[len(both) // 2]


def active(state: ChainState, layer: str) -> Tensor:
    return state.state[f"active.{layer}"]


def free(chain: Learner, state: ChainState) -> dict[str, int]:
    """Free neurons by layer after the first task."""
    return {c.layer: c.free for c in chain.capacity(None, state, 1) or ()}


heads = pytest.mark.parametrize("shared", [True, False], ids=["shared", "multi"])


@heads
def test_clnp_active_neurons_are_those_above_the_threshold(shared: bool) -> None:
    chain = clnp(shared)
    theta = splitting_threshold(chain, None, 1)
    start = chain.begin(None, 1)
    trained = chain.train(start, 1)[0].params or {}
    activity = chain.evidence(start, {**start.params, **trained}, 1).activity()
    state = chain.learn(None, 1, theta)
    for layer in ("fc1", "fc2"):
        assert torch.equal(active(state, layer), activity[layer] > theta)
        assert 0 < int(active(state, layer).sum()) < len(active(state, layer))
    assert free(chain, state) == {n: int((activity[n] <= theta).sum()) for n in ("fc1", "fc2")}


@heads
def test_clnp_interference_is_zero_after_each_task_and_at_the_next_start(shared: bool) -> None:
    chain, state = clnp(shared), None
    for number in (1, 2, 3):
        state = chain.learn(state, number, splitting_threshold(chain, state, number))
        inside = active(state, "fc2")[:, None] & ~active(state, "fc1")[None, :]
        assert inside.any()
        assert not state.params["fc2.weight"][inside].any()
        if not shared:
            weight, _ = head_names(number - 1)
            assert not state.params[weight][:, ~active(state, "fc2")].any()
            assert state.params[weight][:, active(state, "fc2")].all()
        if number < 3:
            assert not chain.begin(state, number + 1).params["fc2.weight"][inside].any()


@heads
def test_clnp_free_weights_are_initialised_again_from_the_tasks_stream(shared: bool) -> None:
    chain = clnp(shared)
    state = chain.learn(None, 1, splitting_threshold(chain, None, 1))
    start = chain.begin(state, 2)
    fresh = chain.method.fresh_parameters(chain.context(2))
    for layer in ("fc1", "fc2"):
        free = ~active(state, layer)
        for kind in ("weight", "bias"):
            name = f"{layer}.{kind}"
            assert torch.equal(start.params[name][free], fresh[name][free])
            assert not torch.equal(start.params[name][free], state.params[name][free])
            assert torch.equal(start.params[name][~free], state.params[name][~free])
    first = chain.method.fresh_parameters(chain.context(1))
    assert not torch.equal(first["fc1.weight"], fresh["fc1.weight"])
    weight, bias = head_names(chain.tasks[1].task.head)
    head = chain.method.new_heads({}, chain.context(2))
    if shared:
        free = ~active(state, "fc2")
        assert torch.equal(start.params[weight][:, free], head[weight][:, free])
        assert torch.equal(start.params[weight][:, ~free], state.params[weight][:, ~free])
        assert torch.equal(start.params[bias], state.params[bias])
    else:
        assert torch.equal(start.params[weight], head[weight])
        assert torch.equal(start.params[bias], head[bias])


@heads
@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_clnp_only_free_weights_and_the_own_head_move(shared: bool, mode: str) -> None:
    entry = {"name": "clnp", "regularizers": [{"name": "l1_param", "mode": mode}]}
    chain = learner(entry, shared, model={"name": "mlp", "hidden": [16, 12]})
    hyper = {"lr": 0.01, "l1": 0.01}
    state = chain.learn(None, 1, splitting_threshold(chain, None, 1, hyper), [hyper])
    start = chain.begin(state, 2)
    trained = {**start.params, **(chain.train(start, 2, [hyper])[0].params or {})}
    for layer in ("fc1", "fc2"):
        on = active(state, layer)
        for kind in ("weight", "bias"):
            moved = trained[f"{layer}.{kind}"] != start.params[f"{layer}.{kind}"]
            assert not moved[on].any()
            assert moved[~on].any()
    own = set(head_names(chain.tasks[1].task.head))
    for name, value in trained.items():
        if name.startswith("head.") and name not in own:
            assert torch.equal(value, state.params[name])
    weight, bias = head_names(chain.tasks[1].task.head)
    moved = trained[weight] != start.params[weight]
    if shared:
        assert not moved[:, active(state, "fc2")].any()
        assert torch.equal(trained[bias], start.params[bias])
    assert moved.any()
    assert (trained[bias] != start.params[bias]).any() != shared


def test_clnp_shared_head_learns_its_bias_with_task_1_only() -> None:
    chain = clnp(True)
    start = chain.begin(None, 1)
    trained = chain.train(start, 1)[0].params or {}
    assert (trained["head.0.bias"] != start.params["head.0.bias"]).any()
    state = chain.learn(None, 1, 0.1)
    assert "head.0.bias" not in chain.begin(state, 2).trainable


@heads
def test_clnp_active_sets_only_grow(shared: bool) -> None:
    chain, states = clnp(shared, [24, 16], 4), [None]
    for number in (1, 2, 3, 4):
        theta = splitting_threshold(chain, states[-1], number)
        states.append(chain.learn(states[-1], number, theta))
    for before, after in pairwise(states[1:]):
        for layer in ("fc1", "fc2"):
            assert not (active(before, layer) & ~active(after, layer)).any()
    assert int(active(states[-1], "fc1").sum()) > int(active(states[1], "fc1").sum())
    if shared:
        gates = [states[-1].state[f"gate.{n}"] for n in (1, 2, 3, 4)]
        assert torch.equal(torch.stack(gates).sum(0) > 0, active(states[-1], "fc2"))
        assert int(torch.stack(gates).sum(0).max()) == 1  # no neuron has two owners
        assert chain.method.gates(states[2].state, chain.tasks[2].task) is None


def test_clnp_depleted_shared_head_ends_with_the_layers_name() -> None:
    chain = clnp(True)
    with pytest.raises(DepletedError, match="fc2"):
        chain.begin(chain.learn(None, 1, None), 2)


def test_clnp_depleted_with_heads_goes_on_as_last_layer_transfer() -> None:
    chain = clnp(False)
    one = chain.learn(None, 1, None)
    start = chain.begin(one, 2)
    assert set(start.trainable) == set(head_names(1))
    two = chain.learn(one, 2, None)
    for name in chain.method.body():
        assert torch.equal(one.params[name], two.params[name])
    assert torch.equal(chain.logits(one, 1), chain.logits(two, 1))


def test_clnp_prunes_everything_or_nothing() -> None:
    chain = clnp(False)
    nothing = chain.learn(None, 1, None)
    assert free(chain, nothing) == {"fc1": 0, "fc2": 0}
    everything = chain.learn(None, 1, 1e9)
    assert free(chain, everything) == {"fc1": 16, "fc2": 12}
    bias = everything.params["head.0.bias"]
    assert torch.equal(chain.logits(everything, 1), bias.expand(len(chain.tasks[0].validation), -1))


@given(
    shared=st.booleans(),
    hidden=st.lists(st.integers(3, 14), min_size=1, max_size=3),
    quantiles=st.lists(st.floats(0, 0.9), min_size=5, max_size=5),
    members=st.integers(1, 3),
    optimizer=st.sampled_from(["adam", "sgd"]),
    mode=st.sampled_from(["gradient", "proximal"]),
    l1=st.sampled_from([0.0, 1e-3, 1e-2]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_clnp_zero_forgetting_is_exact(
    shared: bool,
    hidden: list[int],
    quantiles: list[float],
    members: int,
    optimizer: str,
    mode: str,
    l1: float,
) -> None:
    """Logits of all earlier tasks are bit-equal after every later one, whatever was pruned."""
    config = tiny_config(
        {"name": "clnp", "regularizers": [{"name": "l1_param", "mode": mode}]},
        model={"name": "mlp", "hidden": hidden},
        training={"epochs": 1, "batch_size": 8, "optimizer": optimizer, "momentum": 0.0},
    )
    chain = Learner(config, tiny_tasks(5, shared), shared)
    hypers = [{"lr": 0.02 * (k + 1), "l1": l1} for k in range(members)]
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
        own = torch.cat([activity[n][free[n]].double() for n in free])
        theta = float(own.quantile(q)) if len(own) else 0.0
        state = chain.consolidate(start, params, evidence, theta, number)
        for earlier, logits in remembered.items():
            assert torch.equal(chain.logits(state, earlier), logits), f"task {earlier} forgotten"
        remembered[number] = chain.logits(state, number)
    assert remembered
