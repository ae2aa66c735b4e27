"""The pack's dense layer against torch's own, and training where it is not there."""

from __future__ import annotations

import pytest
import torch
from helpers import Learner, tiny_config, tiny_tasks
from torch.func import vmap
from torch.nn.functional import linear

from clsearch.rng import generator
from clsearch.training import dense

needs = pytest.mark.skipif(not dense.available(), reason="this torch has no oneDNN product")


@needs
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("sizes", [(7, 5, 3), (64, 33, 17), (16, 20, 1)])
def test_values_and_gradients_are_those_of_linear(
    shared: bool, members: int, sizes: tuple[int, int, int]
) -> None:
    b, i, n = sizes
    source = generator("dense")
    x = torch.randn(*((b, i) if shared else (members, b, i)), generator=source)
    weight = torch.randn(members, n, i, generator=source)
    bias = torch.randn(members, n, generator=source)
    pull = torch.randn(members, b, n, generator=source)
    results = []
    for fast in (True, False):
        leaves = [v.clone().requires_grad_() for v in (x, weight, bias)]
        pack = vmap(linear, in_dims=(None if shared else 0, 0, 0))
        if fast:
            with dense.fast_linear(torch.device("cpu")):
                out = pack(*leaves)
        else:
            out = pack(*leaves)
        results.append([out.detach(), *torch.autograd.grad((out * pull).sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@needs
@pytest.mark.parametrize("units", [1, 2, 17, 256])
def test_a_member_has_the_bits_it_has_alone(units: int) -> None:
    source = generator("bits")
    x = torch.randn(64, 100, generator=source)
    weight, bias = torch.randn(5, units, 100, generator=source), torch.zeros(5, units)
    pull = torch.randn(5, 64, units, generator=source)

    def gradient(members: slice) -> list[torch.Tensor]:
        leaf = weight[members].clone().requires_grad_()
        with dense.fast_linear(torch.device("cpu")):
            out = vmap(linear, in_dims=(None, 0, 0))(x, leaf, bias[members])
        return [out.detach(), *torch.autograd.grad((out * pull[members]).sum(), [leaf])]

    whole = gradient(slice(5))
    for k in range(5):
        for all_members, alone in zip(whole, gradient(slice(k, k + 1)), strict=True):
            assert torch.equal(all_members[k], alone[0])


@needs
def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    weight = torch.randn(2, 3, 4, generator=generator("w")).requires_grad_()
    x = torch.randn(5, 4, generator=generator("x"))
    with dense.fast_linear(torch.device("cpu")):
        out = vmap(linear, in_dims=(None, 0, 0))(x, weight, torch.zeros(2, 3))
    (first,) = torch.autograd.grad(out.square().sum(), [weight], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.square().sum(), [weight])


def test_training_without_it_is_the_same_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """By plain descent: Adam makes a step of any gradient, rounding's too."""
    settings = {"epochs": 2, "batch_size": 8, "optimizer": "sgd"}
    chain = Learner(tiny_config("ewc", training=settings), tiny_tasks(1, True), True)
    start = chain.begin(None, 1)
    (fast,) = chain.train(start, 1)
    monkeypatch.setattr(dense, "available", lambda: False)
    (plain,) = chain.train(start, 1)
    assert fast.params is not None
    assert plain.params is not None
    for name, value in fast.params.items():
        torch.testing.assert_close(value, plain.params[name], rtol=1e-3, atol=1e-4)
