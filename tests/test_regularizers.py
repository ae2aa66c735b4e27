"""The contract of every regulariser found in `clsearch.regularizers`; their formulas by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Learner, tiny_config, tiny_tasks
from pydantic import ValidationError
from torch import Tensor

from clsearch.errors import InputError
from clsearch.methods.base import MethodOptions, Start
from clsearch.methods.finetune import Finetune
from clsearch.models.base import Backbone, forward, initial_head, initial_parameters
from clsearch.models.mlp import MLP, MLPOptions
from clsearch.plugins import discover
from clsearch.regularizers import _locality
from clsearch.regularizers.base import Regularizer
from clsearch.regularizers.l1_param import L1Param, L1ParamOptions
from clsearch.rng import generator
from clsearch.training import dense
from clsearch.training.batch import Batch, Readout
from clsearch.training.step import Gradient, Objective

REGULARIZERS: dict[str, type[Regularizer]] = discover("clsearch.regularizers", Regularizer)
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "l1_param": [{}, {"mode": "proximal"}, {"layers": [0.5, 0.0, 2.0]}],
    "slni": [{}, {"discount": "min"}, {"sigma_is": "scale"}, {"accumulate": "mean"}],
    "slni_no_discount": [{}, {"sigma_is": "scale"}],
}
OF_WEIGHTS = {"l1_param", "l2_wd"}
"""Those that a model without unit layers can have."""
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
    regularizer.after_update(params, hypers(regularizer))
    changed = any(not torch.equal(params[n], before[n]) for n in params)
    assert changed == regularizer.updates


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


class Pixels(Backbone):
    """A model that names no unit layers."""

    name = "pixels"
    unit_layers = ()

    def forward(self, x: Tensor, tap: Any) -> Tensor:
        return x.flatten(1)


@each
def test_refuses_a_model_without_unit_layers(name: str, options: dict[str, Any]) -> None:
    kind = REGULARIZERS[name]
    if name in OF_WEIGHTS:
        kind(kind.Options(), Pixels(None, (1, 2, 3)))
        return
    with pytest.raises(InputError, match="unit layers") as caught:
        kind(kind.Options(**options), Pixels(None, (1, 2, 3)))
    assert caught.value.field == "name"
    assert caught.value.value == name
    assert "pixels" in caught.value.allowed


WIDE_AND_NARROW = MLP(MLPOptions(hidden=[_locality.DENSE_UNITS + 9, 30]), (1, 2, 3))
"""One layer beyond the N×N product, one within it."""


def gradient_of(
    regularizer: Regularizer, members: list[dict[str, float]], spoil: int | None = None
) -> Gradient:
    """The gradient of a pack that starts from a seed's weights, all of whose neurons matter to
    tasks before; the weights of the member `spoil` are NaN."""
    rng = generator("test-regularizers", "pack")
    backbone = regularizer.backbone
    params = initial_parameters(backbone, rng) | initial_head(0, 3, 30, rng)
    state = {
        f"{regularizer.name}.alpha.{layer.name}": torch.rand(layer.units, generator=rng)
        for layer in backbone.unit_layers
    }
    start = Start(params, {}, Finetune.everything(params))
    method = Finetune(MethodOptions(), backbone)
    objective = Objective(backbone, method, [regularizer], start, Readout((0,)), state)
    stack = {n: v.expand(len(members), *v.shape).clone() for n, v in params.items()}
    if spoil is not None:
        for value in stack.values():
            value[spoil] = math.nan
    batch = Batch(torch.rand(9, 1, 2, 3, generator=rng), torch.arange(9) % 3)
    hyper = {n: torch.tensor([m[n] for m in members]) for n in members[0]}
    return objective.gradient()(stack, hyper, batch)


def eight(regularizer: Regularizer) -> list[dict[str, float]]:
    """Members that differ in every hyperparameter; σ from narrow to wide for its layer."""
    return [{n: (k + 1) * 2.5 for n in ["lr", *regularizer.space]} for k in range(8)]


@each
def test_a_member_has_its_gradient_in_any_pack(name: str, options: dict[str, Any]) -> None:
    """Bit for bit where dense layers have it (`training.dense`), else to 1e-6 of the largest entry
    of each tensor."""
    kind = REGULARIZERS[name]
    regularizer = kind(kind.Options(**options), WIDE_AND_NARROW)
    members = eight(regularizer)
    together = gradient_of(regularizer, members)
    for k in (0, 3, 7):
        alone = gradient_of(regularizer, [members[k]])
        for n, value in together.whole.items():
            near = 0.0 if dense.available() else 1e-6 * float(alone.whole[n].abs().max())
            torch.testing.assert_close(value[k], alone.whole[n][0], rtol=0, atol=near)
        torch.testing.assert_close(together.losses[k], alone.losses[0])


@each
def test_nan_in_one_member_does_not_reach_another(name: str, options: dict[str, Any]) -> None:
    kind = REGULARIZERS[name]
    regularizer = kind(kind.Options(**options), WIDE_AND_NARROW)
    members = eight(regularizer)[:3]
    sound = gradient_of(regularizer, members)
    for spoilt in [
        gradient_of(regularizer, members, spoil=1),
        *(
            gradient_of(regularizer, [members[0], {**members[1], bad: math.nan}, members[2]])
            for bad in regularizer.space
        ),
    ]:
        assert not all(v[1].isfinite().all() for v in spoilt.whole.values()) or (
            options.get("mode") == "proximal"  # acts after the step
        )
        for k in (0, 2):
            assert all(torch.equal(v[k], sound.whole[n][k]) for n, v in spoilt.whole.items())
            assert spoilt.losses[k] == sound.losses[k]


# --- by hand and by their definitions ------------------------------------------------------------

HALF = math.sqrt(1 / (2 * math.log(2)))
"""The σ at which the Gaussian is 1/2 between neighbours and 1/16 between their neighbours."""


@pytest.fixture(params=["dense", "band", "grid", "fft"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to sum over neighbours, whatever the size of the layer and σ."""
    kind: str = request.param
    monkeypatch.setattr(_locality, "DENSE_UNITS", 10**9 if kind == "dense" else 0)
    monkeypatch.setattr(_locality, "COARSE", _locality.DENSITY if kind == "grid" else 1e9)
    if kind == "fft":
        monkeypatch.setattr(
            _locality,
            "by_band",
            lambda h, sigma, discount: _locality.by_fft(h, torch.tensor(sigma), discount),
        )
    return kind


def of_layer(
    name: str,
    h: Tensor,
    alpha: Tensor | None = None,
    options: dict[str, Any] | None = None,
    **hyper: float,
) -> tuple[float, Tensor]:
    """A regulariser's value on one layer, and its gradient at the activations."""
    kind = REGULARIZERS[name]
    regularizer = kind(
        kind.Options(**(options or {})), MLP(MLPOptions(hidden=[h.shape[1]]), (1, 1, 2))
    )
    leaf = h.clone().requires_grad_()
    given = {n: torch.tensor(v) for n, v in {name: 1.0, **hyper}.items()}
    importance = {} if alpha is None else {"alpha.fc1": alpha}
    value = regularizer.penalty({}, {"fc1": leaf}, importance, given)
    assert value.shape == ()
    return value.item(), torch.autograd.grad(value, leaf)[0]


def test_slni_by_hand(path: str) -> None:
    """Pairs (0,1), (1,2), (0,2) weigh 1/2, 1/2, 1/16, each twice: 2·(2/2 + 8/2 + 4/16) = 10.5 for
    the sample (1, 2, 4), 2·(3/2) = 3 for (0, 1, 3); their mean is 6.75. ∂/∂h = 2/M Σ_j w_ij h_j."""
    h = torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, 3.0]])
    for name in ("slni", "slni_no_discount"):
        value, gradient = of_layer(name, h, sigma=HALF)
        assert value == pytest.approx(6.75)
        wanted = torch.tensor([[1.25, 2.5, 1.0625], [0.6875, 1.5, 0.5]])
        torch.testing.assert_close(gradient, wanted)
        value, gradient = of_layer(name, h, options={"sigma_is": "scale"}, sigma=3 / HALF)
        assert value == pytest.approx(6.75)
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize(("discount", "wanted"), [("product", 0.625), ("min", 41 / 24)])
def test_slni_discount_by_hand(path: str, discount: str, wanted: float) -> None:
    """α = (ln 2, ln 4, ln 3). Pairs (0,1), (1,2), (0,2) of both samples weigh 2, 8 + 3, 1/2
    without a discount. Products of e^−α are 1/8, 1/12, 1/6: 1/2 (2/8 + 11/12 + 1/12) = 0.625;
    minima are 1/4, 1/4, 1/3: 1/2 (2/4 + 11/4 + 1/6) = 41/24."""
    h = torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, 3.0]])
    alpha = torch.tensor([2.0, 4.0, 3.0]).log()
    value, _ = of_layer("slni", h, alpha, {"discount": discount}, sigma=HALF)
    assert value == pytest.approx(wanted)


def test_inhibition_by_hand() -> None:
    """(1 + 2 + 4)² − 21 = 28 and (1 + 3)² − 10 = 6, mean 17; ∂/∂h_i = 2/M Σ_{j≠i} h_j."""
    value, gradient = of_layer("inhibition", torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, 3.0]]))
    assert value == pytest.approx(17.0)
    assert gradient.tolist() == [[6.0, 5.0, 3.0], [4.0, 3.0, 1.0]]


def test_l1_rep_by_hand() -> None:
    """(1 + 2 + 0 + 3) / 2 samples."""
    value, gradient = of_layer("l1_rep", torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
    assert value == pytest.approx(3.0)
    assert gradient.tolist() == [[0.5, -0.5], [0.0, 0.5]]


def test_decov_by_hand() -> None:
    """C = (1 2; 2 4): ½ (1 + 4 + 4 + 16 − 1 − 16) = 4. A batch of one has no covariance."""
    value, gradient = of_layer("decov", torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    assert value == pytest.approx(4.0)
    # ½·2·C₁₂² = C₁₂², C₁₂ = mean of (h₁ − μ₁)(h₂ − μ₂): 2·C₁₂/2 · the other's deviation
    assert gradient.tolist() == [[-4.0, -2.0], [4.0, 2.0]]
    value, gradient = of_layer("decov", torch.tensor([[3.0, 4.0]]))
    assert value == 0.0
    assert not gradient.any()


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([[1.0, 0.0], [0.0, 2.0]], 2 * math.log1p(math.exp(-10))),  # a right angle
        ([[1.0, 0.0], [3.0, 0.0]], 2 * math.log(2)),  # the same direction
        ([[1.0, 0.0], [-3.0, 0.0]], 2 * math.log1p(math.exp(-20))),
        ([[1.0, 0.0], [0.0, 0.0]], 2 * math.log1p(math.exp(-10))),  # no direction
        ([[3.0, 4.0], [4.0, 3.0]], 2 * math.log1p(math.exp(-0.4))),  # cos = 24/25
    ],
)
def test_orthreg_by_hand(rows: list[list[float]], wanted: float) -> None:
    """Each unordered pair counts twice; lengths do not count."""
    kind = REGULARIZERS["orthreg"]
    regularizer = kind(kind.Options(), MLP(MLPOptions(hidden=[2]), (1, 1, 2)))
    params = {"fc1.weight": torch.tensor(rows).requires_grad_(), "head.0.weight": torch.ones(3, 2)}
    value = regularizer.penalty(params, {}, {}, {"orthreg": torch.tensor(1.0)})
    assert value.item() == pytest.approx(wanted, rel=1e-5)
    (gradient,) = torch.autograd.grad(value, params["fc1.weight"])
    assert gradient.isfinite().all()
    assert not gradient[params["fc1.weight"].norm(dim=1) == 0].any()
    along = (gradient * params["fc1.weight"]).sum(1)
    torch.testing.assert_close(along, torch.zeros(2), atol=1e-6, rtol=0)
    assert float(regularizer.penalty({}, {}, {}, {"orthreg": torch.tensor(1.0)})) == 0.0


def test_l2_wd_by_hand() -> None:
    """0.1/2 · ((1 + 4 + 9) + (0.25 + 2.25)); the gradient is λ w."""
    kind = REGULARIZERS["l2_wd"]
    regularizer = kind(kind.Options(), MLP(MLPOptions(hidden=[2]), (1, 1, 2)))
    value = regularizer.penalty(WEIGHTS, {}, {}, {"l2_wd": torch.tensor(0.1)})
    assert float(value) == pytest.approx(0.825)
    wide = {n: v.expand(2, *v.shape) for n, v in WEIGHTS.items()}
    grads = {n: torch.ones(v.shape) for n, v in wide.items()}
    regularizer.add_gradient(grads, wide, {"l2_wd": torch.tensor([0.5, 0.0])})
    assert grads["fc1.weight"][0].tolist() == [[1.5, 0.0], [1.0, 2.5]]
    assert (grads["fc1.weight"][1] == 1).all()
    assert (grads["fc1.bias"] == 1).all()


def slni_definition(
    sigma: float, alpha: Tensor | None = None, discount: str = "product"
) -> Callable[[Tensor], Tensor]:
    """Eq. 6 as an N×N matrix, in float64."""

    def of(h: Tensor) -> Tensor:
        place = torch.arange(h.shape[1]).double()
        weight = (-((place.unsqueeze(1) - place) ** 2) / (2 * sigma**2)).exp()
        if alpha is not None:
            own = (-alpha.double()).exp()
            by = {"product": own.unsqueeze(1) * own, "min": torch.minimum(own.unsqueeze(1), own)}
            weight = weight * by[discount]
        weight.fill_diagonal_(0)
        return (weight * (h.T @ h)).sum() / len(h)

    return of


def inhibition_definition(h: Tensor) -> Tensor:
    pairs = permutations(range(h.shape[1]), 2)
    return torch.stack([(h[:, i] * h[:, j]).mean() for i, j in pairs]).sum()


def decov_definition(h: Tensor) -> Tensor:
    covariance = torch.cov(h.T, correction=0)
    return (covariance.square().sum() - covariance.diag().square().sum()) / 2


def agrees(
    definition: Callable[[Tensor], Tensor], h: Tensor, value: float, gradient: Tensor
) -> None:
    """The value to a relative 1e-5, the gradient to 1e-5 of its largest entry."""
    leaf = h.double().requires_grad_()
    wanted = definition(leaf)
    assert value == pytest.approx(wanted.item(), rel=1e-5, abs=1e-12)
    (expected,) = torch.autograd.grad(wanted, leaf)
    size = float(expected.abs().max())
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=1e-5 * size + 1e-12)


def random_activations(count: int, units: int) -> Tensor:
    return torch.randn(count, units, generator=generator("test-regularizers", "h", units)).relu()


@pytest.mark.parametrize("units", [2, 37, 64, 130])
@pytest.mark.parametrize("sigma", [0.9, 1.8, 3.0, 20.0, 1e4])
def test_slni_is_its_definition(path: str, units: int, sigma: float) -> None:
    h = random_activations(7, units)
    alpha = 2 * torch.rand(units, generator=generator("test-regularizers", "alpha"))
    agrees(slni_definition(sigma), h, *of_layer("slni_no_discount", h, alpha, sigma=sigma))
    agrees(slni_definition(sigma), h, *of_layer("slni", h, sigma=sigma))
    for discount in ("product", "min"):
        found = of_layer("slni", h, alpha, {"discount": discount}, sigma=sigma)
        agrees(slni_definition(sigma, alpha, discount), h, *found)
    found = of_layer("slni", h, alpha, {"sigma_is": "scale"}, sigma=units / sigma)
    agrees(slni_definition(sigma, alpha), h, *found)


@pytest.mark.parametrize("sigma", [0.1, 2.0, 7.9, 8.0, 25.0, 333.0, 1990.0])
@pytest.mark.parametrize("units", [_locality.DENSE_UNITS, _locality.DENSE_UNITS + 1, 2000])
def test_slni_of_large_layers_is_its_definition(units: int, sigma: float) -> None:
    h = random_activations(5, units)
    alpha = torch.rand(units, generator=generator("test-regularizers", "alpha"))
    agrees(slni_definition(sigma, alpha), h, *of_layer("slni", h, alpha, sigma=sigma))


def test_slni_in_a_pack_without_members_apart() -> None:
    """As a device other than a CPU takes it: one FFT for all members."""
    h = torch.stack([random_activations(5, n)[:, :37] for n in (37, 40, 50)])
    sigma, discount = torch.tensor([0.9, 3.0, 20.0]), torch.rand(37)
    together = torch.func.vmap(_locality.by_fft, in_dims=(0, 0, None))(h, sigma, discount)
    for k in range(3):
        torch.testing.assert_close(together[k], _locality.by_fft(h[k], sigma[k], discount))


@pytest.mark.parametrize("sigma", [0.0, math.inf, math.nan])
def test_sigma_at_its_limits(path: str, sigma: float) -> None:
    """0 inhibits nobody, infinity everybody; NaN stays NaN."""
    h = random_activations(4, 5)
    value, gradient = of_layer("slni", h, sigma=sigma)
    if sigma == 0:
        assert value == pytest.approx(0.0, abs=1e-6)
    elif math.isnan(sigma):
        assert math.isnan(value)
        assert gradient.isnan().all()
    else:
        agrees(inhibition_definition, h, value, gradient)


@pytest.mark.parametrize(("count", "units"), [(6, 4), (4, 4), (3, 9), (1, 3), (40, 90)])
def test_others_are_their_definitions(count: int, units: int) -> None:
    """DeCov through the samples' products where there are fewer samples than neurons."""
    h = random_activations(count, units) + 0.5
    agrees(inhibition_definition, h, *of_layer("inhibition", h))
    agrees(lambda x: x.abs().sum() / len(x), h, *of_layer("l1_rep", h))
    value, gradient = of_layer("decov", h)
    if count > 1:
        agrees(decov_definition, h, value, gradient)
    else:
        assert value == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("shape", [(4, 5), (6, 3, 2, 2)])
def test_orthreg_is_its_definition(shape: tuple[int, ...]) -> None:
    """A filter is one vector."""
    kind = REGULARIZERS["orthreg"]
    regularizer = kind(kind.Options(), MLP(MLPOptions(hidden=[4]), (1, 1, 5)))
    weight = torch.randn(shape, generator=generator("test-regularizers", "filters"))
    leaf = weight.clone().requires_grad_()
    value = regularizer.penalty({"fc1.weight": leaf}, {}, {}, {"orthreg": torch.tensor(0.5)})

    def definition(w: Tensor) -> Tensor:
        flat = w.flatten(1)
        cosines = [
            torch.nn.functional.cosine_similarity(flat[i], flat[j], dim=0)
            for i, j in permutations(range(len(flat)), 2)
        ]
        return 0.5 * (1 + (10 * (torch.stack(cosines) - 1)).exp()).log().sum()

    agrees(definition, weight, value.item(), torch.autograd.grad(value, leaf)[0])


@pytest.mark.parametrize("name", ["slni", "slni_no_discount", "inhibition", "l1_rep", "decov"])
def test_every_position_in_space_is_a_sample(name: str) -> None:
    h = torch.randn(3, 6, 4, 2, generator=generator("test-regularizers", "space")).relu()
    rows = h.permute(0, 2, 3, 1).reshape(-1, 6)
    alpha = torch.rand(6)
    value, gradient = of_layer(name, h, alpha, sigma=2.0)
    flat, at_rows = of_layer(name, rows, alpha, sigma=2.0)
    assert value == pytest.approx(flat, rel=1e-5)
    torch.testing.assert_close(gradient.permute(0, 2, 3, 1).reshape(-1, 6), at_rows)


@pytest.mark.parametrize("name", ["slni", "slni_no_discount", "inhibition", "l1_rep", "decov"])
def test_layers_add_up(name: str) -> None:
    kind = REGULARIZERS[name]
    regularizer = kind(kind.Options(), BACKBONE)
    first, second = random_activations(3, 5), random_activations(3, 4)
    hyper = {name: torch.tensor(2.0), "sigma": torch.tensor(1.5)}
    both = regularizer.penalty({}, {"fc1": first, "fc2": second}, {}, hyper)
    apart = [of_layer(name, h, sigma=1.5)[0] for h in (first, second)]
    assert both.item() == pytest.approx(2 * sum(apart), rel=1e-5)


@pytest.mark.parametrize(
    ("accumulate", "wanted"), [("sum", [1.0, 5.0, 11.0]), ("mean", [1.0, 2.5, 11 / 3])]
)
def test_slni_accumulates_importance(accumulate: str, wanted: list[float]) -> None:
    """Tasks of α = 1, 4, 6."""
    regularizer = made("slni", {"accumulate": accumulate})
    memory: dict[str, Tensor] = {}
    for number, (alpha, total) in enumerate(zip([1.0, 4.0, 6.0], wanted, strict=True), start=1):
        new = {"fc1": torch.full((5,), alpha), "fc2": torch.full((4,), 2 * alpha)}
        before = {n: v.clone() for n, v in memory.items()}
        after = regularizer.consolidate(memory, lambda new=new: new)  # type: ignore[misc]
        assert all(torch.equal(memory[n], before[n]) for n in before)
        memory = after
        assert int(memory["tasks"]) == number
        torch.testing.assert_close(memory["alpha.fc1"], torch.full((5,), total))
        torch.testing.assert_close(memory["alpha.fc2"], torch.full((4,), 2 * total))


def test_slni_discounts_from_the_second_task_on() -> None:
    chain = Learner(
        tiny_config({"name": "finetune", "regularizers": [{"name": "slni"}]}),
        tiny_tasks(2, True),
        True,
    )
    hyper = [{"lr": 0.01, "slni": 1.0, "sigma": 2.0}]
    state = chain.learn(None, 1, hypers=hyper)
    assert {n.removeprefix("slni.") for n in state.regularizer_state} == {
        "tasks",
        "alpha.fc1",
        "alpha.fc2",
    }
    start = chain.begin(state, 2)
    important, forgotten = (
        chain.train(start, 2, hyper, before)[0].params or {}
        for before in (state.regularizer_state, {})
    )
    assert any(not torch.equal(important[n], forgotten[n]) for n in important)
    state = chain.learn(state, 2, hypers=hyper)
    assert int(state.regularizer_state["slni.tasks"]) == 2


@pytest.mark.parametrize("name", ["slni", "slni_no_discount"])
def test_slni_refuses_what_it_cannot_take(name: str) -> None:
    assert not REGULARIZERS[name].space["sigma"].allows(0.0)
    assert not REGULARIZERS[name].space["sigma"].allows(-1.0)
    for bad in ({"sigma_is": "pixels"}, {"discount": "max"}, {"accumulate": "decay"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            REGULARIZERS[name].Options(**bad)


def test_hyperparameters_have_names_of_their_own() -> None:
    """σ alone is in two, which say the same with and without a discount."""
    seen: dict[str, str] = {}
    for name, kind in REGULARIZERS.items():
        for hyper in kind.space:
            assert hyper not in seen or {name, seen[hyper]} == {"slni", "slni_no_discount"}
            seen[hyper] = name


def test_the_benchmark_runs() -> None:
    command = [sys.executable, "-m", "benchmarks.regularizers", "--quick"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    for name in REGULARIZERS:
        assert f"+ {name}" in done.stdout
    assert "reached" in done.stdout


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


def test_l1_of_a_layer_stands_in_place_of_the_whole_times_its_factor() -> None:
    """0.1·2·6 + 3·2 with a head of its own, 5·6 + 0.1·0.5·2 with a first layer of its own."""
    regularizer = l1(layers=[2.0, 0.5])
    for own, value in ({"l1.head": 3.0}, 7.2), ({"l1.fc1": 5.0}, 30.1), ({"l1.fc1": 0.0}, 0.1):
        hyper = {n: torch.tensor(v) for n, v in {"l1": 0.1, **own}.items()}
        assert float(regularizer.penalty(WEIGHTS, {}, {}, hyper)) == pytest.approx(value)
    silent = l1(layers=[0.0, 0.5], mode="proximal")
    stacked = {n: v.expand(1, *v.shape).clone() for n, v in WEIGHTS.items()}
    hyper = {"lr": torch.tensor([0.5]), "l1": torch.tensor([2.0]), "l1.fc1": torch.tensor([5.0])}
    silent.after_update(stacked, hyper)
    assert stacked["fc1.weight"][0].tolist() == [[0.0, 0.0], [0.0, 0.5]]  # cut by 0.5·5
    assert stacked["head.0.weight"][0].tolist() == [[0.0, -1.0]]  # cut by 0.5·2·0.5


def test_l1_gradient_of_layers_of_their_own_is_autograds() -> None:
    regularizer, params = made("l1_param", {"layers": [0.5, 0.0, 2.0]}), stack()
    assert [*regularizer.axes] == ["l1", "l1.fc1", "l1.fc2", "l1.head"]
    rng = generator("l1-layers")
    hyper = {n: torch.rand(MEMBERS, generator=rng) for n in ("l1", "l1.fc2", "l1.head")}
    grads = {n: torch.zeros_like(v) for n, v in params.items()}
    regularizer.add_gradient(grads, params, hyper)
    for k in range(MEMBERS):
        leaves = {n: v[k].clone().requires_grad_() for n, v in params.items()}
        regularizer.penalty(leaves, {}, {}, {n: v[k] for n, v in hyper.items()}).backward()
        for n, leaf in leaves.items():
            wanted = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            torch.testing.assert_close(grads[n][k], wanted)


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


@pytest.mark.parametrize("layers", [[], [1.0], [1.0, 1.0, 1.0], [1.0, -1.0]])
def test_l1_refuses_wrong_layer_factors(layers: list[float]) -> None:
    with pytest.raises(InputError) as caught:
        l1(layers=layers)
    assert "layers" in caught.value.field
    assert caught.value.value is layers or caught.value.value == layers
    assert "2 factors" in caught.value.allowed


@pytest.mark.parametrize("layers", [[math.nan, 1.0], [1.0, math.inf]])
def test_l1_refuses_factors_that_are_not_finite(layers: list[float]) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        L1ParamOptions(layers=layers)
