"""CLNP's zero forgetting over random architectures and sequences, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import pytest
import torch
from helpers import same_theta, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clsearch.data.base import Samples
from clsearch.errors import DepletedError
from clsearch.methods.base import ChainState, Context
from clsearch.methods.clnp import CLNP, CLNPOptions
from clsearch.models._convnet import AveragePool, Conv, ConvNet, Dense, Dropout, Layer, MaxPool
from clsearch.models.base import BackboneOptions
from clsearch.pruning.activity import mean_activity
from clsearch.regularizers.l1_param import L1Param, L1ParamOptions
from clsearch.rng import generator
from clsearch.scenarios.base import InputTransform, Task, TaskData
from clsearch.system import System
from clsearch.training.batch import PackData, Readout, answer
from clsearch.training.evidence import TrainingEvidence
from clsearch.training.loop import train_pack
from clsearch.training.step import Objective
from clsearch.trial import start_on

SHAPE = (2, 9, 8)
TASKS = 5
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


class AnyNetwork(ConvNet):
    """Whatever layers it is given."""

    name: ClassVar[str] = "test-any"
    Options: ClassVar = BackboneOptions


@st.composite
def architectures(draw: st.DrawFn) -> list[Layer]:
    """Convolutions, with and without batch-norm, pools, dropouts and dense layers, 1 to 5 deep."""
    layers: list[Layer] = []
    for _ in range(draw(st.integers(0, 3))):
        layers.append(
            Conv(
                draw(st.integers(3, 9)),
                kernel=draw(st.sampled_from([1, 3])),
                stride=draw(st.sampled_from([1, 1, 2])),
                padding=1,
                norm=draw(st.booleans()),
            )
        )
        if draw(st.booleans()):
            layers.append(MaxPool(3, draw(st.sampled_from([1, 2])), padding=1))
        if draw(st.booleans()):
            layers.append(Dropout(draw(st.sampled_from([0.25, 0.5]))))
    if draw(st.booleans()):
        layers.append(AveragePool(2))
    least = 0 if any(isinstance(layer, Conv) for layer in layers) else 1
    for _ in range(draw(st.integers(least, 2))):
        layers.append(Dense(draw(st.integers(3, 12))))
        if draw(st.booleans()):
            layers.append(Dropout(0.5))
    return layers


def sequence(shared: bool, seed: int) -> list[TaskData]:
    """Noise around mean images of three classes."""
    tasks = []
    for number in range(1, TASKS + 1):
        source = generator("any", seed, number)
        head = 0 if shared else number - 1
        transform = InputTransform(255.0, (0.4, 0.5), (0.3, 0.2))
        task = Task(number, f"any-{number}", ("a", "b", "c"), head, SHAPE, transform)
        means = torch.randint(60, 190, (3, *SHAPE), generator=source)
        labels = torch.arange(12) % 3
        pixels = means[labels] + torch.randint(-50, 50, (12, *SHAPE), generator=source)
        samples = Samples(pixels.to(torch.uint8), labels)
        tasks.append(TaskData(task, samples, samples, str(number)))
    return tasks


class Chain:
    """A chain of one architecture on one device, driven by hand."""

    def __init__(
        self,
        layers: list[Layer],
        shared: bool,
        seed: int,
        device: str,
        grow: Sequence[int | Literal["auto"] | None] = (),
    ) -> None:
        self.backbone = AnyNetwork(BackboneOptions(), SHAPE, layers)
        rules = zip([u.name for u in self.backbone.unit_layers], grow, strict=False)
        options = CLNPOptions(grow={name: rule for name, rule in rules if rule is not None})
        entry = tiny_config("clnp").methods[0]
        regularizers = (L1Param(L1ParamOptions(), self.backbone),)
        self.system = System(entry, self.backbone, CLNP(options, self.backbone), regularizers, {})
        self.shared, self.seed, self.device = shared, seed, torch.device(device)
        self.tasks = sequence(shared, seed)

    def learn(
        self, parent: ChainState | None, number: int, hypers: list[Any], keep: float
    ) -> ChainState:
        """Trains a pack on a task and prunes its last member to a share of its free neurons."""
        part = self.tasks[number - 1]

        def streams(name: str) -> torch.Generator:
            return generator("any", self.seed, number, name)

        context = Context(part.task, (part.task,), self.shared, streams)
        system, start = self.system.begin(parent, context)
        start, backbone = start_on(start, self.device), system.backbone
        data = PackData.of([part], self.device)
        objective = Objective(backbone, system.method, system.regularizers, start, data.readout)
        config = tiny_config(training={"epochs": 1, "batch_size": 5}).training
        members = list(train_pack(objective, hypers, data, config, streams))
        trained = next(m for m in members if m.member == len(hypers) - 1)
        assert trained.params is not None, trained.reason
        params = {n: v.cpu() for n, v in {**start.params, **trained.params}.items()}
        start, data = start_on(start, torch.device("cpu")), PackData.of([part], torch.device("cpu"))
        activity = mean_activity(backbone, params, data.train, start.gates, 7)
        ranks = {n: v.argsort().argsort() / len(v) for n, v in activity.items()}
        evidence = TrainingEvidence(
            backbone, start, params, data, part.task, 7, ranks, {},
            lambda source: data.train.inputs, lambda params, state: [],
        )  # fmt: skip
        thresholds = same_theta(backbone, 1 - keep)
        return system.method.consolidate(start, params, evidence, thresholds, context)

    def logits(self, state: ChainState, number: int) -> Tensor:
        """The answers to a task's stored inputs."""
        task = self.tasks[number - 1].task
        data = PackData.of([self.tasks[number - 1]], self.device).validation
        model = self.system.model(state, task)
        assert model is not None
        gates = {n: v.to(self.device) for n, v in model.gates.items()}
        params = {n: v.to(self.device) for n, v in model.params.items()}
        (batch,) = data.batches(len(data))
        with torch.no_grad():
            logits, _ = answer(model.backbone, params, batch.x, Readout((task.head,)), gates)
        return logits


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "multi"])
@given(
    layers=architectures(),
    keeps=st.lists(st.floats(0.1, 0.6), min_size=TASKS, max_size=TASKS),
    members=st.integers(1, 3),
    l1=st.sampled_from([0.0, 1e-3]),
    seed=st.integers(0, 99),
    grow=st.lists(st.sampled_from([None, None, "auto", 2, 5]), max_size=5),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_zero_forgetting_is_exact(
    device: str,
    shared: bool,
    layers: list[Layer],
    keeps: list[float],
    members: int,
    l1: float,
    seed: int,
    grow: list[int | Literal["auto"] | None],
) -> None:
    """Logits of every earlier task are the same bits after every later one."""
    chain = Chain(layers, shared, seed, device, grow)
    hypers = [{"lr": 0.01 * (k + 1), "l1": l1} for k in range(members)]
    state: ChainState | None = None
    remembered: dict[int, Tensor] = {}
    for number, keep in enumerate(keeps, start=1):
        try:
            state = chain.learn(state, number, hypers, keep)
        except DepletedError:
            assert shared
            break
        for earlier, logits in remembered.items():
            assert torch.equal(chain.logits(state, earlier), logits), f"task {earlier} forgotten"
        remembered[number] = chain.logits(state, number)
    assert remembered


@pytest.mark.parametrize("norm", [True, False])
def test_later_tasks_do_move_the_network(norm: bool) -> None:
    """The exactness above is not that of a network in which nothing moves."""
    layers = [Conv(8, padding=1, norm=norm), MaxPool(3, 2, 1), Dropout(0.25), Dense(10)]
    chain = Chain(layers, True, 0, "cpu")
    states = [chain.learn(None, 1, [{"lr": 0.01, "l1": 0.0}], 0.3)]
    for number in range(2, TASKS + 1):
        states.append(chain.learn(states[-1], number, [{"lr": 0.01, "l1": 0.0}], 0.3))
    for before, after in itertools.pairwise(states[:3]):
        for unit in chain.backbone.unit_layers:
            on = before.state[f"active.{unit.name}"]
            for name in (unit.weight, *unit.vectors):
                assert torch.equal(after.params[name][on], before.params[name][on])
                assert not torch.equal(after.params[name], before.params[name]), name
    layers = [u.name for u in chain.backbone.unit_layers]
    assert len({tuple(int(s.state[f"active.{n}"].sum()) for n in layers) for s in states}) > 2


def test_what_is_not_frozen_would_be_noticed() -> None:
    """Moving one active channel's running mean changes an earlier task's logits."""
    layers = [Conv(8, padding=1, norm=True), Dense(10)]
    chain = Chain(layers, False, 0, "cpu")
    state = chain.learn(None, 1, [{"lr": 0.01, "l1": 0.0}], 0.5)
    wanted = chain.logits(state, 1)
    for name in ("running_mean", "running_var", "weight", "bias"):
        moved = state.params[f"conv1_norm.{name}"] + 0.1 * state.state["active.conv1"]
        other = replace(state, params=state.params | {f"conv1_norm.{name}": moved})
        assert not torch.equal(chain.logits(other, 1), wanted)
        still = state.params[f"conv1_norm.{name}"] + 0.1 * ~state.state["active.conv1"]
        other = replace(state, params=state.params | {f"conv1_norm.{name}": still})
        assert torch.equal(chain.logits(other, 1), wanted)
