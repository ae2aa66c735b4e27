"""The epoch loop, the update and the readout, against plain torch."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Learner, tiny_config, tiny_tasks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clsearch.config import TrainingConfig
from clsearch.models.base import head_names
from clsearch.models.mlp import MLP, MLPOptions
from clsearch.rng import generator
from clsearch.search.plan import CPU_PACKS, CUDA_BYTES, CUDA_PACK, pack_size
from clsearch.training.batch import PackData, Readout
from clsearch.training.step import Objective
from clsearch.training.update import PackOptimizer

CPU = torch.device("cpu")


def learner(
    method: str = "finetune", shared: bool = True, tasks: int = 1, **sections: Any
) -> Learner:
    return Learner(tiny_config(method, **sections), tiny_tasks(tasks, shared), shared)


def plain_network(params: dict[str, Tensor], head: int = 0) -> nn.Sequential:
    """The tiny backbone and a head as an ordinary module."""
    names = ["fc1", "fc2", f"head.{head}"]
    layers: list[nn.Module] = [nn.Flatten()]
    for name in names:
        weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
        dense = nn.Linear(weight.shape[1], weight.shape[0])
        dense.weight.data, dense.bias.data = weight.clone(), bias.clone()
        layers += [dense, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def trained_plainly(chain: Learner, make: Any, epochs: int) -> tuple[nn.Sequential, list[float]]:
    """Task 1 with a hand-written loop over the same order of the same samples."""
    start, data = chain.begin(None, 1), chain.data(1)
    network = plain_network(start.params)
    optimizer = make(network.parameters())
    curve = []
    for epoch in range(1, epochs + 1):
        order = torch.randperm(
            len(data.train), generator=generator(chain.config.name, 0, 1, f"order-{epoch}")
        )
        for index in order.split(chain.config.training.batch_size):
            batch = data.train.batch(index)
            optimizer.zero_grad()
            cross_entropy(network(batch.x), batch.y).backward()
            optimizer.step()
        (batch,) = data.validation.batches(1000)
        curve.append(float((network(batch.x).argmax(1) == batch.y).float().mean()))
    return network, curve


@pytest.mark.parametrize(
    ("training", "make"),
    [
        ({"optimizer": "adam"}, lambda p: torch.optim.Adam(p, lr=0.01)),
        ({"optimizer": "sgd"}, lambda p: torch.optim.SGD(p, lr=0.01)),
        (
            {"optimizer": "sgd", "momentum": 0.9},
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        ),
    ],
    ids=["adam", "sgd", "momentum"],
)
def test_a_pack_trains_as_a_plain_loop_does(training: dict[str, Any], make: Any) -> None:
    """A batch size that leaves a rest of 4 samples, among members of other learning rates."""
    chain = learner(training={"epochs": 3, "batch_size": 10, **training})
    network, curve = trained_plainly(chain, make, 3)
    members = chain.train(chain.begin(None, 1), 1, [{"lr": 0.1}, {"lr": 0.01}, {"lr": 0.01}])
    got = members[1].params or {}
    for name, wanted in zip(
        ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", *head_names(0)],
        network.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(got[name], wanted.data, rtol=1e-4, atol=1e-5)
    assert members[1].curve == pytest.approx(curve)
    assert all(torch.equal(got[n], (members[2].params or {})[n]) for n in got)
    assert not torch.equal(got["fc1.weight"], (members[0].params or {})["fc1.weight"])


def test_members_share_initial_weights_and_order_and_so_do_methods() -> None:
    """Learning rate 0 is not allowed in a config; here it shows where members start."""
    started = []
    for method in ("finetune", "ewc", "clnp", "from_scratch"):
        chain = learner(method)
        hyper = {**chain.defaults, "lr": 0.0}
        a, b = chain.train(chain.begin(None, 1), 1, [hyper, hyper])
        started += [a.params or {}, b.params or {}]
    for params in started[1:]:
        assert all(torch.equal(params[n], started[0][n]) for n in started[0])
    streams = [learner().context(1).generator("order-1") for _ in range(2)]
    orders = [torch.randperm(24, generator=g) for g in streams]
    assert torch.equal(*orders)
    other = torch.randperm(24, generator=learner().context(1).generator("order-2"))
    assert not torch.equal(orders[0], other)


@pytest.mark.parametrize("hidden", [[5, 4], [130, 70], [300]])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_members_do_not_depend_on_the_pack_at_any_width(hidden: list[int], optimizer: str) -> None:
    """Bit for bit, with packs of 1, 2 and 8, wide enough for blocked matrix products."""
    config = tiny_config(
        "l1",
        model={"name": "mlp", "hidden": hidden},
        training={"epochs": 1, "batch_size": 33, "optimizer": optimizer},
    )
    chain = Learner(config, tiny_tasks(1, True, samples=120), True)
    start = chain.begin(None, 1)
    hypers = [{"lr": 0.01 * (1 + k % 3), "l1": 1e-4 * k} for k in range(8)]
    together = chain.train(start, 1, hypers)
    for pack in ([3], [7], [0, 7], [7, 6, 5]):
        for k, member in zip(pack, chain.train(start, 1, [hypers[k] for k in pack]), strict=True):
            wanted = together[k].params or {}
            assert all(torch.equal((member.params or {})[n], wanted[n]) for n in wanted)


# --- early stopping ------------------------------------------------------------------------------


class Scripted(Objective):
    """An objective whose members are right as often as a script says, whatever they learn."""

    script: dict[float, list[int]]

    def judge(self) -> Any:
        calls = 0

        def of(stack: dict[str, Tensor], batch: Any) -> Tensor:
            nonlocal calls
            calls += 1
            # A member is known by its learning rate, which it carries as a constant head bias.
            rates = stack["fc2.bias"][:, 0].tolist()
            right = torch.tensor([[self.script[round(r, 3)][calls - 1]] for r in rates])
            return torch.arange(len(batch.y)) < right

        return of


def scripted(script: dict[float, list[int]], patience: int | None, epochs: int) -> dict[float, Any]:
    """What becomes of members whose validation hits (of 12) follow a script."""
    from clsearch.training import loop

    chain = learner(training={"epochs": epochs, "batch_size": 24, "patience": patience})
    start, data = chain.begin(None, 1), chain.data(1)
    objective = Scripted(
        chain.system.backbone, chain.method, chain.system.regularizers, start, data.readout
    )
    object.__setattr__(objective, "script", script)
    moved = {rate: [] for rate in script}
    seen: dict[float, Any] = {}

    class Marked(loop._Pack):
        def validate(self, *args: Any) -> Any:
            for k, rate in enumerate(self.optimizer.rates):
                moved[rate].append({n: v[k].clone() for n, v in self.stack.items()})
                self.stack["fc2.bias"][k, 0] = rate
            found = list(super().validate(*args))
            for k, rate in enumerate(self.optimizer.rates):
                self.stack["fc2.bias"][k, 0] = moved[rate][-1]["fc2.bias"][0]
            return iter(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_Pack", Marked)
        hypers = [{"lr": rate} for rate in script]
        generators = chain.context(1).generator
        for t in loop.train_pack(objective, hypers, data, chain.config.training, generators):
            rate = list(script)[t.member]
            seen[rate] = t
            t.params = {n: v for n, v in (t.params or {}).items() if n != "fc2.bias"}
    for rate, t in seen.items():
        t.epochs_of_params = [
            epoch
            for epoch, then in enumerate(moved[rate], start=1)
            if all(torch.equal(v, then[n]) for n, v in t.params.items())
        ]
    return seen


def test_patience_stops_each_member_and_gives_back_its_best_weights() -> None:
    """Patience 2: stops after two epochs in a row without a better accuracy than the best."""
    script = {
        0.001: [3, 6, 6, 5, 9, 9],  # best at 2; 3 and 4 are no better: stops after 4
        0.002: [9, 3, 3, 12, 12, 12],  # best at 1, stops after 3
        0.004: [1, 2, 3, 4, 5, 6],  # better every time: runs to the end
        0.008: [0, 0, 1, 0, 2, 2],  # no hit at all is better than nothing: best at 5
    }
    seen = scripted(script, 2, 6)
    assert [len(seen[r].curve) for r in script] == [4, 3, 6, 6]
    assert seen[0.001].accuracy == 6 / 12
    assert seen[0.001].epochs_of_params == [2]
    assert seen[0.002].accuracy == 9 / 12
    assert seen[0.002].epochs_of_params == [1]
    assert seen[0.004].accuracy == 6 / 12
    assert seen[0.004].epochs_of_params == [6]
    assert seen[0.008].curve == [0, 0, 1 / 12, 0, 2 / 12, 2 / 12]
    assert seen[0.008].epochs_of_params == [5]
    for rate, t in seen.items():
        assert t.curve == [n / 12 for n in script[rate][: len(t.curve)]]


def test_without_patience_the_last_weights_count() -> None:
    seen = scripted({0.001: [9, 3, 2], 0.002: [1, 2, 3]}, None, 3)
    assert seen[0.001].accuracy == 2 / 12
    assert seen[0.001].epochs_of_params == [3]
    assert len(seen[0.001].curve) == 3


def test_early_stopping_does_not_disturb_the_others() -> None:
    training = {"epochs": 20, "batch_size": 8, "patience": 4}
    chain = learner(training=training)
    start = chain.begin(None, 1)
    hypers = [{"lr": r} for r in (1e-8, 0.01, 1e-8, 0.003, 0.03)]
    together = chain.train(start, 1, hypers)
    assert len({len(t.curve) for t in together}) > 1
    for k, hyper in enumerate(hypers):
        (alone,) = chain.train(start, 1, [hyper])
        assert alone.curve == together[k].curve
        assert alone.accuracy == together[k].accuracy == max(alone.curve)
        wanted = together[k].params or {}
        assert all(torch.equal((alone.params or {})[n], wanted[n]) for n in wanted)


# --- the optimiser -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [{"optimizer": "adam"}, {"optimizer": "sgd", "momentum": 0.9}], ids=["adam", "sgd"]
)
def test_keep_preserves_members_and_their_state(config: dict[str, Any]) -> None:
    rng = generator("test-training")
    rates = [0.1, 0.02, 0.1, 0.5]
    stack = {n: torch.randn(4, *s, generator=rng) for n, s in {"a": (3, 2), "b": (5,)}.items()}
    modules = [{n: v[k].clone().requires_grad_() for n, v in stack.items()} for k in range(4)]
    single = [
        torch.optim.Adam(m.values(), lr=r)
        if config["optimizer"] == "adam"
        else torch.optim.SGD(m.values(), lr=r, momentum=0.9)
        for m, r in zip(modules, rates, strict=True)
    ]
    optimizer = PackOptimizer(TrainingConfig(**config), stack, rates)
    alive = [0, 1, 2, 3]
    for keep in ([0, 1, 2, 3], [0, 2, 3], [1, 2], [1]):
        stack = optimizer.keep(keep)
        alive = [alive[k] for k in keep]
        for _ in range(3):
            grads = {n: torch.randn(v.shape, generator=rng) for n, v in stack.items()}
            optimizer.step(grads)
            for k, member in enumerate(alive):
                for n, value in modules[member].items():
                    value.grad = grads[n][k].clone()
                single[member].step()
        for k, member in enumerate(alive):
            for n, value in modules[member].items():
                torch.testing.assert_close(stack[n][k], value.data, rtol=1e-5, atol=1e-6)
    assert alive == [3]


@pytest.mark.parametrize(
    "config", [{}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.9}]
)
def test_a_member_moves_bit_for_bit_as_by_torchs_optimiser(config: dict[str, Any]) -> None:
    rng = generator("test-training")
    stack = {n: torch.randn(3, *s, generator=rng) for n, s in {"a": (7, 3), "b": (5,)}.items()}
    rates = [0.1, 0.02, 0.1]
    alone = [{n: v[k].clone().requires_grad_() for n, v in stack.items()} for k in range(3)]
    single = [
        torch.optim.SGD(m.values(), lr=r, momentum=config.get("momentum", 0.0), fused=True)
        if config
        else torch.optim.Adam(m.values(), lr=r, fused=True)
        for m, r in zip(alone, rates, strict=True)
    ]
    optimizer = PackOptimizer(TrainingConfig(**config), stack, rates)
    for _ in range(4):
        grads = {n: torch.randn(v.shape, generator=rng) for n, v in stack.items()}
        optimizer.step(grads)
        for k, one in enumerate(single):
            for n, value in alone[k].items():
                value.grad = grads[n][k].clone()
            one.step()
            assert all(torch.equal(stack[n][k], value) for n, value in alone[k].items())


def test_training_leaves_torchs_compiler_alone() -> None:
    """It takes every worker that starts two seconds and 77 MB to import."""
    program = """
import sys, torch
from test_training import learner
from clsearch.training import loop
from clsearch.training.step import Objective
chain = learner(training={"epochs": 1, "batch_size": 24})
start, data = chain.begin(None, 1), chain.data(1)
system = chain.system
objective = Objective(system.backbone, system.method, [], start, data.readout)
stream = chain.context(1).generator
(one,) = loop.train_pack(objective, [{"lr": 0.01}], data, chain.config.training, stream)
assert one.params is not None
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, check=True)


def test_every_learning_rate_takes_part_nan_too() -> None:
    """NaN is not equal to itself; a member with it must break, not stand still."""
    stack = {"a": torch.ones(3, 2)}
    optimizer = PackOptimizer(TrainingConfig(), stack, [0.1, math.nan, math.nan])
    optimizer.step({"a": torch.ones(3, 2)})
    assert torch.allclose(stack["a"][0], torch.tensor(0.9))
    assert stack["a"][1:].isnan().all()


# --- joint training over several heads -----------------------------------------------------------


def test_joint_loss_is_that_of_every_task_with_its_own_head() -> None:
    """A batch over three tasks: the mean of every sample's loss under its own head alone."""
    chain = learner("joint", shared=False, tasks=3)
    start, data = chain.begin(None, 3), chain.data(3)
    assert len(data.train) == 72
    assert data.train.group is not None
    objective = Objective(chain.system.backbone, chain.method, [], start, data.readout)
    index = torch.tensor([0, 30, 71, 25, 50, 2])
    batch = data.train.batch(index)
    hyper = {"lr": torch.tensor([0.1])}
    stack = {n: start.params[n].unsqueeze(0).clone() for n in start.trainable}
    gradient = objective.gradient()(stack, hyper, batch)
    grads, losses = gradient.whole, gradient.losses
    leaves = {n: v.clone().requires_grad_() for n, v in start.params.items()}
    total = torch.zeros(())
    for i in index.tolist():
        task, own = divmod(i, 24)
        samples = chain.tasks[task].train
        x = chain.tasks[task].task.transform.normalise(samples.inputs[own : own + 1]).flatten(1)
        h = (x @ leaves["fc1.weight"].T + leaves["fc1.bias"]).relu()
        h = (h @ leaves["fc2.weight"].T + leaves["fc2.bias"]).relu()
        weight, bias = head_names(task)
        total = total + cross_entropy(
            h @ leaves[weight].T + leaves[bias], samples.labels[own : own + 1]
        )
    total = total / len(index)
    assert float(losses[0]) == pytest.approx(float(total.detach()), rel=1e-5)
    wanted = torch.autograd.grad(total, [leaves[n] for n in grads])
    for n, right in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grads[n][0], right, rtol=1e-4, atol=1e-6)


def test_joint_hits_count_under_the_own_head_alone() -> None:
    chain = learner("joint", shared=False, tasks=2, training={"epochs": 4, "batch_size": 8})
    (trained,) = chain.train(chain.begin(None, 2), 2, [{"lr": 0.01}])
    state = chain.learn(None, 2, None, [{"lr": 0.01}])
    right = total = 0
    for number in (1, 2):
        labels = chain.tasks[number - 1].validation.labels
        right += int((chain.logits(state, number).argmax(1) == labels).sum())
        total += len(labels)
    assert trained.accuracy == pytest.approx(right / total)
    assert data_of_both_is_shifted(chain)


def data_of_both_is_shifted(chain: Learner) -> bool:
    """Labels count over the readout's classes: task 2's start after those of task 1."""
    train = chain.data(2).train
    assert train.group is not None
    return bool(((train.labels >= 3) == (train.group == 1)).all())


def test_readout_of_a_shared_head_masks_nothing() -> None:
    tasks = tiny_tasks(3, True)
    readout = Readout.of([t.task for t in tasks])
    assert readout == Readout((0,))
    data = PackData.of(tasks, CPU)
    assert data.train.group is None
    assert int(data.train.labels.max()) == 2


# --- pack sizes ----------------------------------------------------------------------------------


def test_pack_size_follows_width_and_device() -> None:
    def size(hidden: list[int], wanted: Any = "auto", device: str = "cpu") -> int:
        return pack_size(MLP(MLPOptions(hidden=hidden), (1, 28, 28)), wanted, device, 64)

    assert size([9999], 5) == 5
    assert size([9999], 5, "cuda") == 5
    for units, packed in CPU_PACKS:
        assert size([units]) == packed
        assert size([1, units, 1]) == packed
    assert size([max(units for units, _ in CPU_PACKS) + 1]) == 1
    assert size([10], "auto", "cuda") == CUDA_PACK
    wide = 60_000
    weights = 784 * wide + wide + wide * wide + wide
    assert 4 * 6 * weights > CUDA_BYTES  # one member alone is over the limit
    assert size([wide, wide], "auto", "cuda") == 1


def test_pack_size_follows_the_memory_of_a_gpu() -> None:
    """785,000 weights and 64·(784 + 1000) activations, four bytes each."""
    member = 4 * (6 * 785_000 + 4 * 64 * 1784)
    network = MLP(MLPOptions(hidden=[1000]), (1, 28, 28))
    for fitting in (1, 3, 7):
        memory = 2 * fitting * member  # half of it is for the data
        assert pack_size(network, "auto", "cuda", 64, memory) == fitting
        assert pack_size(network, "auto", "cuda", 64, memory - 2) == max(1, fitting - 1)
