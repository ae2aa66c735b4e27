"""EWC, MAS, LwF and SI compared with Avalanche's, from the same weights on the same samples.

Both train by SGD without momentum, one epoch a task, the samples in the same order. They agree up
to rounding once this is accounted for:

- EWC, MAS: the penalty is λ·ΣΩΔ² there and λ/2·ΣΩΔ² here, so that the strength here is 2λ;
- importance is the mean over training batches there, of the gradient of each batch's mean, and the
  mean over samples here: its plug-ins are run with an estimation batch of one;
- EWC: `separate` there is `anchors: per_task` here; `online` with a decay of 1 is the running sum;
- MAS: Ω is α·old + (1 − α)·new there, with α = t/(t + 1) after t earlier tasks the running mean;
- LwF: the KL divergence there has the gradient of the cross-entropy here; both are means over the
  samples of a batch, and neither is scaled by T².

SI is another formula there: Ω is cut at 0.001 and takes in the gradient of the penalty. Only the
first task's Ω, before it is cut, and the forgetting are compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from helpers import SOURCES, Learner, load_source, tiny_config
from torch import Tensor, nn

from clsearch.data._torchvision import torchvision
from clsearch.methods.base import ChainState
from clsearch.models.base import Params, head_names
from clsearch.scenarios.base import TaskData
from clsearch.scenarios.split import Split, SplitOptions

if find_spec("avalanche") is None:
    reason = "Avalanche is not installed: pip install -e '.[comparison]'"
    pytest.skip(reason, allow_module_level=True)

torchvision()  # before Avalanche imports it
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "no QP solver found", UserWarning)
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.models import MultiTaskModule
    from avalanche.training.plugins import (
        EWCPlugin,
        LwFPlugin,
        MASPlugin,
        SupervisedPlugin,
        SynapticIntelligencePlugin,
    )
    from avalanche.training.supervised import Naive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning"),
]

TASKS = 3
SAMPLES, BATCH, LR, HIDDEN = 430, 4, 0.01, [24, 16]
"""With these no pre-activation in the runs compared comes within 1e-5 of ReLU's kink, ten times
what rounding moves it by: a neuron that rounding opened would take the runs 1e-3 apart."""

CLEARLY = 1e-3
"""A difference of weights that is no rounding: 100 times the tolerance of `agree`."""


@cache
def mnist(shared: bool) -> list[TaskData]:
    """Pairs of digits, with one output layer for all or one each."""
    kind = "domain_incremental" if shared else "task_incremental"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SOURCES["mnist"], "load", lambda *_: load_source("mnist"))
        scenario = Split(SplitOptions(source="mnist", tasks=TASKS, incremental=kind))
        tasks = [scenario.data(number) for number in range(1, TASKS + 1)]
    first = torch.arange(SAMPLES)
    return [replace(data, train=data.train[first]) for data in tasks]


def learner(method: dict[str, Any], shared: bool) -> Learner:
    config = tiny_config(
        method,
        model={"name": "mlp", "hidden": HIDDEN},
        training={"epochs": 1, "batch_size": BATCH, "optimizer": "sgd"},
    )
    return Learner(config, mnist(shared), shared)


def ours(chain: Learner, strength: float) -> list[ChainState]:
    """The chain after each task."""
    states: list[ChainState] = []
    for number in range(1, TASKS + 1):
        parent = states[-1] if states else None
        states.append(chain.learn(parent, number, hypers=[{"lr": LR, "strength": strength}]))
    return states


# --- Avalanche -----------------------------------------------------------------------------------


class Network(nn.Module):
    """Our network as a module, its parameters under our names."""

    def __init__(self, params: Params) -> None:
        super().__init__()
        self.head = nn.ModuleDict()
        for name in params:
            layer, _, part = name.rpartition(".")
            if part == "weight":
                group, _, own = layer.rpartition(".")
                outputs, inputs = params[name].shape
                dense = nn.Linear(inputs, outputs, device="meta")
                self.get_submodule(group).add_module(own, dense)
        self.load_state_dict({n: v.clone() for n, v in params.items()}, assign=True)

    def answer(self, x: Tensor, head: int) -> Tensor:
        logits: Tensor = self.head[str(head)](self.fc2(self.fc1(x).relu()).relu())
        return logits


class SharedHead(Network):
    def forward(self, x: Tensor) -> Tensor:
        return self.answer(x, 0)


class HeadPerTask(Network, MultiTaskModule):
    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        return self.answer(x, task_label)


class SampleEWC(EWCPlugin):
    """Squares gradients of samples, not of batches."""

    def compute_importances(self, *arguments: Any, **options: Any) -> Any:
        *given, _ = arguments  # the last is the batch size
        return super().compute_importances(*given, 1, **options)


class SampleMAS(MASPlugin):
    """Takes magnitudes of gradients of samples, not of batches; Ω is the mean over tasks."""

    def _get_importance(self, strategy: Any) -> Any:
        earlier = strategy.clock.train_exp_counter
        self.alpha = earlier / (earlier + 1)
        size, strategy.train_mb_size = strategy.train_mb_size, 1
        importance = super()._get_importance(strategy)
        strategy.train_mb_size = size
        return importance


@dataclass(frozen=True)
class Theirs:
    """The parameters, and their importance, after a task."""

    params: Params
    importance: Params


def theirs(chain: Learner, plugin: SupervisedPlugin | None = None) -> list[Theirs]:
    """Avalanche's network after each task, trained as the chain is."""
    numbers = range(1, TASKS + 1)
    samples = [in_our_order(chain, number) for number in numbers]
    params = chain.begin(None, 1).params
    for number in numbers:
        params = params | chain.method.new_heads(params, chain.context(number))
    network = (SharedHead if chain.shared else HeadPerTask)(params)
    strategy = Naive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=LR),
        train_mb_size=BATCH,
        plugins=[plugin] if plugin else [],
        evaluator=None,
    )
    heads = [data.task.head for data in chain.tasks]
    tasks = tensors_benchmark(train_tensors=samples, test_tensors=samples, task_labels=heads)
    found = []
    for experience in tasks.train_stream:
        strategy.train(experience, shuffle=False)
        weights = {name: value.detach().clone() for name, value in network.named_parameters()}
        found.append(Theirs(weights, importance_of(plugin, weights)))
    return found


def in_our_order(chain: Learner, number: int) -> tuple[Tensor, Tensor]:
    """A task's training images `[N, pixels]` and labels, as our epoch takes them."""
    train = chain.data(number).train
    order = torch.randperm(len(train), generator=chain.context(number).generator("order-1"))
    batch = train.batch(order)
    return batch.x.flatten(1), batch.y


def importance_of(plugin: SupervisedPlugin | None, params: Params) -> Params:
    """Ω as the plug-in has it; SI's before it is cut."""
    if isinstance(plugin, EWCPlugin):
        kept = list(plugin.importances.values())  # of every task, or one that has added them up
        return {n: torch.stack([task[n].data for task in kept]).sum(0) for n in params}
    if isinstance(plugin, MASPlugin):
        return {n: plugin.importance[n].data.clone() for n in params}
    if isinstance(plugin, SynapticIntelligencePlugin):
        paths = plugin.syn_data["cum_trajectory"]
        return {n: (-paths[n].data).clamp(min=0).view_as(v) for n, v in params.items()}
    return {}


@cache
def fine_tuned(shared: bool) -> list[Params]:
    return [after.params for after in theirs(learner({"name": "finetune"}, shared))]


# --- the comparison ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A method, its strength, and Avalanche's plug-in for that strength."""

    method: dict[str, Any]
    strength: float
    plugin: Callable[[float], SupervisedPlugin]


PAIRS = {
    "ewc": Pair({"name": "ewc"}, 500.0, lambda s: SampleEWC(s / 2, "online", 1.0)),
    "ewc-per-task": Pair(
        {"name": "ewc", "options": {"anchors": "per_task"}}, 500.0, lambda s: SampleEWC(s / 2)
    ),
    "mas": Pair(
        {"name": "mas", "options": {"accumulate": "mean"}}, 4.0, lambda s: SampleMAS(s / 2)
    ),
    "lwf": Pair({"name": "lwf"}, 3.0, lambda s: LwFPlugin(s, temperature=2)),
}
SI: dict[str, Any] = {"name": "si", "options": {"damping": 0.01}}

every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
both_heads = pytest.mark.parametrize("shared", [True, False], ids=["one-head", "head-per-task"])


def agree(found: Params, wanted: Mapping[str, Tensor]) -> None:
    """That parameters are the same up to rounding; output layers to come are left out."""
    known = {name: wanted[name] for name in found}
    torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-5)


def distance(found: Params, wanted: Mapping[str, Tensor]) -> float:
    """The largest difference of a weight."""
    return max(float((value - wanted[name]).abs().max()) for name, value in found.items())


def compared(chain: Learner, state: ChainState, after: Theirs) -> tuple[Params, Params]:
    """Both importances of the body, and of the one head where tasks share it, relative to the
    largest of each parameter. MAS averages a task's own head over all tasks there."""
    names = [*chain.method.body(), *(head_names(0) if chain.shared else ())]
    largest = {name: after.importance[name].max() for name in names}
    return (
        {name: state.state[f"importance.{name}"] / largest[name] for name in names},
        {name: after.importance[name] / largest[name] for name in names},
    )


@both_heads
@every_pair
def test_weights_and_importance_agree(pair: Pair, shared: bool) -> None:
    chain = learner(pair.method, shared)
    found = ours(chain, pair.strength)
    wanted = theirs(chain, pair.plugin(pair.strength))
    for state, after in zip(found, wanted, strict=True):
        agree(state.params, after.params)
        if after.importance:
            agree(*compared(chain, state, after))
    for state, unprotected in zip(found[1:], fine_tuned(shared)[1:], strict=True):
        assert distance(state.params, unprotected) > CLEARLY


@both_heads
@every_pair
def test_without_strength_both_fine_tune(pair: Pair, shared: bool) -> None:
    chain = learner(pair.method, shared)
    results = zip(
        ours(chain, 0.0), theirs(chain, pair.plugin(0.0)), fine_tuned(shared), strict=True
    )
    for state, after, wanted in results:
        agree(state.params, wanted)
        agree(after.params, wanted)


@pytest.mark.parametrize(
    ("name", "plugin"),
    [("ewc-per-task", EWCPlugin), ("mas", MASPlugin)],
)
def test_importance_of_batches_is_told_apart(
    name: str, plugin: Callable[[float], SupervisedPlugin]
) -> None:
    """Avalanche's own estimate, from means over training batches: gradients of samples cancel."""
    pair = PAIRS[name]
    chain = learner(pair.method, shared=True)
    found = ours(chain, pair.strength)
    wanted = theirs(chain, plugin(pair.strength / 2))
    agree(found[0].params, wanted[0].params)
    assert distance(*compared(chain, found[0], wanted[0])) > 0.1
    for state, after in zip(found[1:], wanted[1:], strict=True):
        assert distance(state.params, after.params) > CLEARLY


def test_si_weighs_the_first_task_alike_and_forgets_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU what Avalanche notes of the weights shares their memory, so that they never seem to
    move and nothing is protected: here the notes are copies."""
    note = SynapticIntelligencePlugin.extract_weights

    def note_copies(model: nn.Module, target: dict[str, Any], excluded: Any) -> None:
        note(model, target, excluded)
        for noted in target.values():
            noted.data = noted.data.clone()

    monkeypatch.setattr(SynapticIntelligencePlugin, "extract_weights", staticmethod(note_copies))
    chain = learner(SI, shared=True)
    found = ours(chain, 5.0)
    wanted = theirs(chain, SynapticIntelligencePlugin(5000.0, eps=SI["options"]["damping"]))
    agree(*compared(chain, found[0], wanted[0]))

    def kept(params: Params) -> float:
        return chain.accuracy(ChainState(params), 1)

    unprotected = kept(fine_tuned(True)[-1])
    assert kept(found[0].params) - unprotected > 0.4
    assert kept(found[-1].params) - unprotected > 0.15
    assert kept(wanted[-1].params) - unprotected > 0.15
