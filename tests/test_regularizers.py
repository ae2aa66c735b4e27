"""The contract of every regulariser found in `clsearch.regularizers`, and L1 by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import Learner, tiny_config, tiny_tasks
from torch import Tensor

from clsearch.errors import InputError
from clsearch.models.base import forward, initial_head, initial_parameters
from clsearch.models.mlp import MLP, MLPOptions
from clsearch.plugins import discover
from clsearch.regularizers.base import Regularizer
from clsearch.regularizers.l1_param import L1Param, L1ParamOptions
from clsearch.rng import generator

REGULARIZERS: dict[str, type[Regularizer]] = discover("clsearch.regularizers", Regularizer)
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "l1_param": [{}, {"mode": "proximal"}, {"layers": [0.5, 0.0, 2.0]}]
}
each = pytest.mark.parametrize(
    ("name", "options"),
    [(n, o) for n in REGULARIZERS for o in VARIANTS.get(n, [{}])],
    ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())) or "default",
)
BACKBONE = MLP(MLPOptions(hidden=[5, 4]), (1, 2, 3))
MEMBERS = 3


def made(name: str, options: dict[str, Any]) -> Regularizer:
    kind = REGULARIZERS[name]
    regularizer: Regularizer = kind(kind.Options(**options), BACKBONE)
    return regularizer


def stack() -> dict[str, Tensor]:
    """Random parameters of three members, some of them exactly zero."""
    rng = generator("test-regularizers")
    params = initial_parameters(BACKBONE, rng) | initial_head(2, 3, 4, rng)
    wide = {n: torch.randn(MEMBERS, *v.shape, generator=rng) for n, v in params.items()}
    for value in wide.values():
        value[:, 0] = 0.0
    return wide


def hypers(regularizer: Regularizer) -> dict[str, Tensor]:
    rng = generator("test-regularizers", "hyper")
    names = ["lr", *regularizer.space]
    return {n: torch.rand(MEMBERS, generator=rng) for n in names}


def activations(params: dict[str, Tensor]) -> dict[str, Tensor]:
    x = torch.rand(7, 1, 2, 3, generator=generator("test-regularizers", "x"))
    return forward(BACKBONE, params, x, 2, None)[1]


@each
def test_declares_itself(name: str, options: dict[str, Any]) -> None:
    kind = REGULARIZERS[name]
    assert kind.__doc__
    assert kind.space
    assert "lr" not in kind.space
    for hyper in kind.space.values():
        assert hyper.doc
        assert hyper.allows(hyper.default)
        assert hyper.grid
        assert all(map(hyper.allows, hyper.grid))
    with pytest.raises(ValueError, match="no_such"):
        kind.Options(no_such=1)


@each
def test_analytic_gradient_is_autograds(name: str, options: dict[str, Any]) -> None:
    regularizer, params = made(name, options), stack()
    hyper = hypers(regularizer)
    if not regularizer.analytic:
        with pytest.raises(TypeError, match=name):
            regularizer.add_gradient({}, params, hyper)
        return
    already = {n: torch.randn(v.shape, generator=generator("g", n)) for n, v in params.items()}
    grads = {n: v.clone() for n, v in already.items()}
    regularizer.add_gradient(grads, params, hyper)
    for k in range(MEMBERS):
        leaves = {n: v[k].clone().requires_grad_() for n, v in params.items()}
        own = {n: v[k] for n, v in hyper.items()}
        value = regularizer.penalty(leaves, activations(leaves), {}, own)
        assert value.shape == ()
        found: Any = [None] * len(leaves)
        if value.requires_grad:
            found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        for n, wanted in zip(leaves, found, strict=True):
            right = torch.zeros_like(leaves[n]) if wanted is None else wanted
            torch.testing.assert_close(grads[n][k] - already[n][k], right, rtol=1e-4, atol=1e-6)


@each
def test_zero_strength_is_nothing(name: str, options: dict[str, Any]) -> None:
    regularizer, params = made(name, options), stack()
    hyper = {n: torch.zeros(MEMBERS) for n in regularizer.space} | {"lr": torch.ones(MEMBERS)}
    one = {n: v[0] for n, v in params.items()}
    value = regularizer.penalty(one, activations(one), {}, {n: v[0] for n, v in hyper.items()})
    assert float(value) == 0.0
    before = {n: v.clone() for n, v in params.items()}
    if regularizer.analytic:
        grads = {n: torch.full_like(v, 3.0) for n, v in params.items()}
        regularizer.add_gradient(grads, params, hyper)
        assert all((g == 3.0).all() for g in grads.values())
    regularizer.after_update(params, hyper)
    assert all(torch.equal(params[n], before[n]) for n in params)


@each
def test_changes_none_of_its_inputs(name: str, options: dict[str, Any]) -> None:
    regularizer, params = made(name, options), stack()
    hyper = hypers(regularizer)
    one = {n: v[0] for n, v in params.items()}
    seen = activations(one)
    parts = [params, hyper, seen]
    before = [{n: v.clone() for n, v in part.items()} for part in parts]
    regularizer.penalty(one, seen, {}, {n: v[0] for n, v in hyper.items()})
    if regularizer.analytic:
        regularizer.add_gradient({n: torch.zeros_like(v) for n, v in params.items()}, params, hyper)
    for part, old in zip(parts, before, strict=True):
        assert all(torch.equal(part[n], old[n]) for n in old)


@each
def test_says_whether_it_updates(name: str, options: dict[str, Any]) -> None:
    """The loop calls `after_update` only where `updates` says so."""
    regularizer = made(name, options)
    params = stack()
    before = {n: v.clone() for n, v in params.items()}
    if regularizer.updates:
        regularizer.after_update(params, hypers(regularizer))
        assert any(not torch.equal(params[n], before[n]) for n in params)


def test_an_overridden_update_is_called_unless_its_class_says_otherwise() -> None:
    class Shrink(Regularizer):
        name = "shrink"

        def penalty(
            self, params: Any, activations: Any, importance: Any, hyper: Any
        ) -> torch.Tensor:
            return torch.zeros(())

        def after_update(self, params: Any, hyper: Any) -> None:
            for value in params.values():
                value.mul_(0.5)

    assert Shrink(None, made("l1_param", {}).backbone).updates


@each
def test_makes_a_difference_in_training(name: str, options: dict[str, Any]) -> None:
    """A strong one changes the weights that training ends with; members keep apart."""
    config = tiny_config({"name": "finetune", "regularizers": [{"name": name, **options}]})
    chain = Learner(config, tiny_tasks(1, True), True)
    hyper = [{**chain.defaults, **dict.fromkeys(REGULARIZERS[name].space, s)} for s in (0.0, 10.0)]
    start = chain.begin(None, 1)
    weak, strong = chain.train(start, 1, hyper)
    (alone,) = chain.train(start, 1, hyper[:1])
    (plain,) = Learner(tiny_config(), tiny_tasks(1, True), True).train(start, 1)
    assert weak.params
    assert strong.params
    assert alone.params
    assert plain.params
    assert any(not torch.equal(weak.params[n], strong.params[n]) for n in weak.params)
    assert all(torch.equal(weak.params[n], alone.params[n]) for n in weak.params)
    assert all(torch.equal(weak.params[n], plain.params[n]) for n in weak.params)


# --- L1, by hand ---------------------------------------------------------------------------------

WEIGHTS = {
    "fc1.weight": torch.tensor([[1.0, -2.0], [0.0, 3.0]]),  # Σ|w| = 6
    "fc1.bias": torch.tensor([100.0, 100.0]),  # biases do not count
    "head.0.weight": torch.tensor([[0.5, -1.5]]),  # Σ|w| = 2
    "head.0.bias": torch.tensor([100.0]),
}


def l1(**options: Any) -> L1Param:
    return L1Param(L1ParamOptions(**options), MLP(MLPOptions(hidden=[2]), (1, 1, 2)))


def test_l1_penalty_and_gradient_by_hand() -> None:
    """0.1 · (2·6 + 0.5·2) = 1.3 with factors 2 and 0.5; 0.1 · (6 + 2) = 0.8 without."""
    hyper = {"l1": torch.tensor(0.1)}
    assert float(l1(layers=[2.0, 0.5]).penalty(WEIGHTS, {}, {}, hyper)) == pytest.approx(1.3)
    assert float(l1().penalty(WEIGHTS, {}, {}, hyper)) == pytest.approx(0.8)
    wide = {n: v.expand(2, *v.shape) for n, v in WEIGHTS.items()}
    grads = {n: torch.zeros(v.shape) for n, v in wide.items()}
    l1(layers=[2.0, 0.5]).add_gradient(grads, wide, {"l1": torch.tensor([0.1, 1.0])})
    assert grads["fc1.weight"][1].tolist() == [[2.0, -2.0], [0.0, 2.0]]
    torch.testing.assert_close(grads["fc1.weight"][0], torch.tensor([[0.2, -0.2], [0.0, 0.2]]))
    torch.testing.assert_close(grads["head.0.weight"][0], torch.tensor([[0.05, -0.05]]))
    assert not grads["fc1.bias"].any()
    assert not grads["head.0.bias"].any()


def test_l1_proximal_step_by_hand() -> None:
    """Cut by lr·l1·f = 0.5·2·(1.5, 0.5): 1.5 in the first layer, 0.5 in the head."""
    regularizer = l1(layers=[1.5, 0.5], mode="proximal")
    stacked = {n: v.expand(2, *v.shape).clone() for n, v in WEIGHTS.items()}
    hyper = {"lr": torch.tensor([0.5, 0.0]), "l1": torch.tensor([2.0, 2.0])}
    regularizer.after_update(stacked, hyper)
    assert stacked["fc1.weight"][0].tolist() == [[0.0, -0.5], [0.0, 1.5]]
    assert stacked["head.0.weight"][0].tolist() == [[0.0, -1.0]]
    assert stacked["fc1.bias"][0].tolist() == [100.0, 100.0]
    assert all(torch.equal(stacked[n][1], WEIGHTS[n]) for n in WEIGHTS)  # lr 0 cuts nothing
    assert float(regularizer.penalty(WEIGHTS, {}, {}, {"l1": torch.tensor(1.0)})) == 0.0


def test_l1_proximal_training_reaches_exact_zeros_and_gradient_does_not() -> None:
    """CLNP's frozen weights are covered in test_methods; here every weight may move."""
    zeros = {}
    for mode in ("gradient", "proximal"):
        entry = {"name": "l1", "regularizers": [{"name": "l1_param", "mode": mode}]}
        chain = Learner(tiny_config(entry), tiny_tasks(1, True), True)
        hyper = [{"lr": 0.01, "l1": 0.5}]
        params = chain.train(chain.begin(None, 1), 1, hyper)[0].params or {}
        zeros[mode] = int((params["fc1.weight"] == 0).sum())
    assert zeros["proximal"] > 0
    assert zeros["gradient"] == 0


@pytest.mark.parametrize(
    "layers", [[], [1.0], [1.0, 1.0, 1.0], [1.0, -1.0], [math.nan, 1.0], [1.0, math.inf]]
)
def test_l1_refuses_wrong_layer_factors(layers: list[float]) -> None:
    with pytest.raises(InputError) as caught:
        l1(layers=layers)
    assert "layers" in caught.value.field
    assert caught.value.value is layers or caught.value.value == layers
    assert "2 factors" in caught.value.allowed
