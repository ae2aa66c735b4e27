"""The methods that keep what they learned by penalties, distillation or merging: by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import Learner, tiny_config, tiny_tasks
from torch import Tensor
from torch.nn.functional import cross_entropy

from clsearch.errors import InputError
from clsearch.methods.base import ImportanceObjective, Start
from clsearch.methods.ewc import FISHER
from clsearch.methods.mas import MAS, MASOptions, every_output, squared_norm
from clsearch.models.base import Params, Tap, head_names
from clsearch.models.mlp import MLP, MLPOptions
from clsearch.scenarios.base import InputTransform
from clsearch.training import loop
from clsearch.training.adaptation import adapt
from clsearch.training.batch import DeviceData, Readout, answer
from clsearch.training.evidence import TrainingEvidence
from clsearch.training.importance import mean_moment

OBJECTIVES = {
    "ewc": FISHER["empirical"],
    "true": FISHER["true"],
    "mas": ImportanceObjective(squared_norm, "magnitude"),
    "vector": ImportanceObjective(every_output, "magnitude"),
}


def learner(name: str | dict[str, Any], shared: bool, tasks: int = 3, **sections: Any) -> Learner:
    return Learner(tiny_config(name, **sections), tiny_tasks(tasks, shared), shared)


class Given(TrainingEvidence):
    """Evidence of a given importance."""

    def __init__(self, found: Params) -> None:
        object.__setattr__(self, "found", found)

    def importance(self, *arguments: Any, **options: Any) -> Params:
        found: Params = vars(self)["found"]
        return found


# --- EWC and MAS, by hand ------------------------------------------------------------------------


def one_neuron(scale: float, head: list[float], bias: list[float]) -> tuple[MLP, Params]:
    """`h = relu(1·x + 0)`, `z = head·h + bias`."""
    params = {
        "fc1.weight": torch.ones(1, 1),
        "fc1.bias": torch.zeros(1),
        "head.0.weight": torch.tensor(head).unsqueeze(1),
        "head.0.bias": torch.tensor(bias),
    }
    return MLP(MLPOptions(hidden=[1]), (1, 1, 1)), params


def importance(
    method: str, backbone: MLP, params: Params, pixels: list[int], labels: list[int], scale: float
) -> Params:
    data = DeviceData(
        torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 1, 1),
        torch.tensor(labels),
        None,
        InputTransform(scale, (0.0,), (1.0,)),
    )
    return mean_moment(
        backbone, params, data, Readout((0,)), {}, list(params), OBJECTIVES[method], 2
    )


def test_ewc_fisher_by_hand() -> None:
    """`z = (x, −x)`. Sample A: x = ln3/2, y = 0: p = (3/4, 1/4), ∂/∂z = (−1/4, 1/4), ∂/∂h = −1/2.
    Sample B: x = ln3, y = 1: p = (9/10, 1/10), ∂/∂z = (9/10, −9/10), ∂/∂h = 9/5.
    A batch mean squared would give ((−1/2 + 9/5) / 2)² = 0.4225 for the bias, not 1.745."""
    x_a, x_b, scale = math.log(3) / 2, math.log(3), 2 / math.log(3)
    backbone, params = one_neuron(scale, [1.0, -1.0], [0.0, 0.0])
    fisher = importance("ewc", backbone, params, [1, 2], [0, 1], scale)
    weight = (0.25 * x_a**2 + 3.24 * x_b**2) / 2
    head = (0.0625 * x_a**2 + 0.81 * x_b**2) / 2
    wanted = {
        "fc1.weight": torch.tensor([[weight]]),
        "fc1.bias": torch.tensor([(0.25 + 3.24) / 2]),
        "head.0.weight": torch.tensor([[head], [head]]),
        "head.0.bias": torch.tensor([0.43625, 0.43625]),
    }
    torch.testing.assert_close(fisher, wanted)


def test_mas_omega_by_hand() -> None:
    """`z = (h − 1, −h)`, `‖z‖² = (h−1)² + h²`, `∂/∂h = 4h − 2`: −1 at h = 1/4, 2 at h = 1.
    The mean of magnitudes is 1.5; the magnitude of the mean would be 0.5."""
    backbone, params = one_neuron(4.0, [1.0, -1.0], [-1.0, 0.0])
    omega = importance("mas", backbone, params, [1, 4], [0, 1], 4.0)
    wanted = {
        "fc1.weight": torch.tensor([[1.125]]),  # (|−1·1/4| + |2·1|) / 2
        "fc1.bias": torch.tensor([1.5]),
        "head.0.weight": torch.tensor([[0.1875], [1.0625]]),
        "head.0.bias": torch.tensor([0.75, 1.25]),  # |2z|: (3/2, 1/2) and (0, 2)
    }
    torch.testing.assert_close(omega, wanted)
    torch.testing.assert_close(
        omega, importance("mas", backbone, params, [1, 4], [1, 0], 4.0)
    )  # labels play no part


@pytest.mark.parametrize("name", ["ewc", "mas"])
def test_quadratic_penalty_by_hand(name: str) -> None:
    """`λ/2 Σ Ω Δ²` with Ω = (1, 3), Δ = (2, −1): Σ = 4 + 3 = 7; gradient λ Ω Δ = λ (2, −3)."""
    method = learner(name, False).method
    state = {"importance.w": torch.tensor([1.0, 3.0]), "anchor.w": torch.tensor([1.0, 1.0])}
    params = {"w": torch.tensor([3.0, 0.0]), "new.head": torch.tensor([9.0])}
    hyper = {"lr": torch.tensor(1.0), "strength": torch.tensor(10.0)}
    assert float(method.penalty(params, state, hyper)) == 35.0
    assert method.drift(params, state) == 7.0
    stack = {n: v.repeat(2, 1) for n, v in params.items()}
    grads = {n: torch.ones_like(v) for n, v in stack.items()}
    method.add_gradient(grads, stack, state, {"strength": torch.tensor([10.0, 0.5])})
    assert grads["w"].tolist() == [[21.0, -29.0], [2.0, -0.5]]
    assert grads["new.head"].tolist() == [[1.0], [1.0]]
    assert float(method.penalty(params, {}, hyper)) == 0.0


def test_drift_of_exploded_weights_is_a_number() -> None:
    """(1e30)² overflows float32; the record of a trial must still be JSON."""
    method = learner("ewc", False).method
    state = {"importance.w": torch.tensor([2.0]), "anchor.w": torch.tensor([0.0])}
    assert method.drift({"w": torch.tensor([1e30])}, state) == pytest.approx(2e60)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [1.0, 5.0, 11.0]),  # the default: sum
        ({"accumulate": "sum"}, [1.0, 5.0, 11.0]),
        ({"accumulate": "mean"}, [1.0, 2.5, 11 / 3]),
        ({"accumulate": "decay", "decay": 0.5}, [1.0, 4.5, 8.25]),  # .5·1 + 4, .5·4.5 + 6
    ],
)
@pytest.mark.parametrize("name", ["ewc", "mas"])
def test_accumulated_importance_by_hand(
    name: str, options: dict[str, Any], wanted: list[float]
) -> None:
    """Tasks of importance 1, 4, 6; a head that comes with task 2 starts with its own."""
    chain = learner({"name": name, "options": options}, True)
    state: dict[str, Tensor] = {}
    for number, (new, total) in enumerate(zip([1.0, 4.0, 6.0], wanted, strict=True), start=1):
        params = {"w": torch.full((2,), float(number)), "b": torch.zeros(1)}
        found = {"w": torch.full((2,), new), **({"b": torch.tensor([7.0])} if number == 3 else {})}
        given = Given(found)
        start = Start(params, state, {})
        state = chain.method.consolidate(start, params, given, None, chain.context(1)).state
        torch.testing.assert_close(state["importance.w"], torch.full((2,), total))
        assert torch.equal(state["anchor.w"], params["w"])
        assert int(state["tasks"]) == number
    assert state["importance.b"].tolist() == [7.0]


def noisy(samples: int, heads: int = 1) -> tuple[MLP, Params, DeviceData, Readout]:
    rng = torch.Generator().manual_seed(3)
    backbone = MLP(MLPOptions(hidden=[4, 3]), (1, 2, 3))
    params = {n: torch.randn(p.shape, generator=rng) for n, p in backbone.named_parameters()}
    for h in range(heads):
        weight, bias = head_names(h)
        params |= {weight: torch.randn(2, 3, generator=rng), bias: torch.randn(2, generator=rng)}
    pixels = torch.randint(0, 256, (samples, 1, 2, 3), generator=rng, dtype=torch.uint8)
    labels = torch.randint(0, 2, (samples,), generator=rng)
    group = None
    readout = Readout(tuple(range(heads)))
    if heads > 1:
        group = torch.randint(0, heads, (samples,), generator=rng)
        labels = labels + 2 * group
        allowed = torch.eye(heads, dtype=torch.bool).repeat_interleave(2, dim=1)
        readout = Readout(tuple(range(heads)), allowed)
    return backbone, params, DeviceData(pixels, labels, group, InputTransform(255.0, (0.5,), (0.3,))), readout  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("name", "heads"), [("ewc", 1), ("ewc", 2), ("mas", 1), ("true", 1), ("true", 2), ("vector", 1)]
)
def test_importance_is_a_batch_of_one_loop_at_any_batch_size(
    name: str, gated: bool, heads: int
) -> None:
    backbone, params, data, readout = noisy(50, heads)
    gates = {"fc2": torch.tensor([True, False, True])} if gated else {}
    objective = OBJECTIVES[name]
    names = [n for n in params if n != "fc1.bias"]  # one is frozen
    naive = {n: torch.zeros(params[n].shape, dtype=torch.float64) for n in names}
    for batch in data.batches(1):
        leaves = {n: v.clone().requires_grad_() for n, v in params.items()}
        logits, _ = answer(backbone, leaves, batch.x, readout, gates, batch.group)
        values, own = objective.value(logits, batch.y), [leaves[n] for n in names]
        for value in values[values.isfinite()].flatten():
            for n, g in zip(names, torch.autograd.grad(value, own, retain_graph=True), strict=True):
                magnitude = objective.moment == "magnitude"
                naive[n] += (g.abs() if magnitude else g.square()).double() / len(data)
    for size in (1, 7, 64, 50):
        found = mean_moment(backbone, params, data, readout, gates, names, objective, size)
        assert found.keys() == naive.keys()
        for n in names:
            torch.testing.assert_close(found[n].double(), naive[n], rtol=1e-4, atol=1e-7)
    if gated:
        assert not found["fc2.weight"][1].any()


class Tied(MLP):
    """One dense layer called twice: its gradient is the sum of two outer products."""

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        x = tap("fc1", self.get_submodule("fc1")(x.flatten(1)).relu())
        return tap("fc2", self.get_submodule("fc2")(self.get_submodule("fc2")(x).relu()).relu())


class Folded(MLP):
    """A dense layer over the rows of an image, all images' rows beneath each other."""

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        rows = self.get_submodule("fc1")(x.reshape(-1, 3)).relu()
        x = tap("fc1", rows.view(len(x), -1, 3).mean(1))
        return tap("fc2", self.get_submodule("fc2")(x).relu())


@pytest.mark.parametrize(("kind", "shape"), [(Tied, (1, 2, 3)), (Folded, (1, 1, 3))])
def test_importance_of_shared_weights_is_not_taken_in_closed_form(
    kind: type[MLP], shape: tuple[int, int, int]
) -> None:
    rng = torch.Generator().manual_seed(5)
    backbone = kind(MLPOptions(hidden=[3, 3]), shape)
    params = {n: torch.randn(p.shape, generator=rng) for n, p in backbone.named_parameters()}
    weight, bias = head_names(0)
    params |= {weight: torch.randn(2, 3, generator=rng), bias: torch.randn(2, generator=rng)}
    pixels = torch.randint(0, 256, (9, 1, 2, 3), generator=rng, dtype=torch.uint8)
    data = DeviceData(pixels, torch.zeros(9).long(), None, InputTransform(255.0, (0.5,), (0.3,)))
    objective = OBJECTIVES["mas"]
    found = mean_moment(backbone, params, data, Readout((0,)), {}, list(params), objective, 4)
    for n in params:
        naive = torch.zeros(params[n].shape)
        for batch in data.batches(1):
            leaves = {m: v.clone().requires_grad_() for m, v in params.items()}
            logits, _ = answer(backbone, leaves, batch.x, Readout((0,)), {})
            (g,) = torch.autograd.grad(logits.square().sum(), [leaves[n]])
            naive += g.abs() / len(data)
        torch.testing.assert_close(found[n], naive, rtol=1e-4, atol=1e-6)


def test_mas_strength_is_twice_the_authors() -> None:
    """The authors' gradient is 2λΩΔ (their code has no ½), ours strength·ΩΔ (MAS eq. 3)."""
    method = MAS(MASOptions(), MLP(MLPOptions(hidden=[2]), (1, 1, 1)))
    params = {"w": torch.tensor([[3.0]])}
    state = {"importance.w": torch.tensor([5.0]), "anchor.w": torch.tensor([1.0])}
    grads = {"w": torch.zeros(1, 1)}
    method.add_gradient(grads, params, state, {"strength": torch.tensor([2.0 * 1.0])})
    assert grads["w"].item() == 2 * 1.0 * 5.0 * (3.0 - 1.0)


def test_old_heads_are_neither_pulled_nor_lost() -> None:
    chain = learner("ewc", False)
    one = chain.learn(None, 1)
    two = chain.learn(one, 2)
    for n in head_names(0):
        assert torch.equal(one.params[n], two.params[n])
        assert torch.equal(two.state[f"importance.{n}"], one.state[f"importance.{n}"])


# --- what else importance can be -----------------------------------------------------------------


def test_true_fisher_by_hand() -> None:
    """As above, over the model's own answers. A: 3/4·(1/2)² + 1/4·(3/2)² = 0.75 at h;
    B: 9/10·(1/5)² + 1/10·(9/5)² = 0.36. Labels play no part."""
    x_a, x_b, scale = math.log(3) / 2, math.log(3), 2 / math.log(3)
    backbone, params = one_neuron(scale, [1.0, -1.0], [0.0, 0.0])
    fisher = importance("true", backbone, params, [1, 2], [0, 1], scale)
    torch.testing.assert_close(fisher["fc1.bias"], torch.tensor([(0.75 + 0.36) / 2]))
    weight = (0.75 * x_a**2 + 0.36 * x_b**2) / 2
    torch.testing.assert_close(fisher["fc1.weight"], torch.tensor([[weight]]))
    again = importance("true", backbone, params, [1, 2], [1, 0], scale)
    torch.testing.assert_close(fisher, again)


def test_mas_of_every_output_by_hand() -> None:
    """`z = (h − 1, −h)`: both outputs have |∂z/∂h| = 1, and h is 1/4 and 1."""
    backbone, params = one_neuron(4.0, [1.0, -1.0], [-1.0, 0.0])
    omega = importance("vector", backbone, params, [1, 4], [0, 0], 4.0)
    wanted = {
        "fc1.weight": torch.tensor([[1.25]]),
        "fc1.bias": torch.tensor([2.0]),
        "head.0.weight": torch.tensor([[0.625], [0.625]]),
        "head.0.bias": torch.tensor([1.0, 1.0]),
    }
    torch.testing.assert_close(omega, wanted)


LOCAL = ImportanceObjective(squared_norm, "magnitude", local=True)


def test_local_mas_is_hebbs_rule() -> None:
    """`2·y_i·y_j` (MAS eq. 6): 2·(1/16 + 1)/2 for the weight; the output layer as globally."""
    backbone, params = one_neuron(4.0, [1.0, -1.0], [-1.0, 0.0])
    data = DeviceData(
        torch.tensor([1, 4], dtype=torch.uint8).view(-1, 1, 1, 1),
        torch.zeros(2).long(), None, InputTransform(4.0, (0.0,), (1.0,)),
    )  # fmt: skip
    omega = mean_moment(backbone, params, data, Readout((0,)), {}, list(params), LOCAL, 2)
    torch.testing.assert_close(omega["fc1.weight"], torch.tensor([[1.0625]]))
    torch.testing.assert_close(omega["fc1.bias"], torch.tensor([1.25]))
    torch.testing.assert_close(omega["head.0.weight"], torch.tensor([[0.1875], [1.0625]]))


@pytest.mark.parametrize(
    ("kind", "stages"), [(MLP, (("fc1",), ("fc2",))), (Tied, (("fc1",), ("fc2", "fc2")))]
)
def test_local_mas_is_a_loop_over_layers(
    kind: type[MLP], stages: tuple[tuple[str, ...], ...]
) -> None:
    """In closed form, and sample by sample where a layer is called twice."""
    _, _, data, readout = noisy(20)
    backbone, rng = kind(MLPOptions(hidden=[4, 4]), (1, 2, 3)), torch.Generator().manual_seed(2)
    params = {n: torch.randn(p.shape, generator=rng) for n, p in backbone.named_parameters()}
    weight, bias = head_names(0)
    params |= {weight: torch.randn(2, 4, generator=rng), bias: torch.randn(2, generator=rng)}
    found = mean_moment(backbone, params, data, readout, {}, list(params), LOCAL, 7)
    naive = {n: torch.zeros_like(v) for n, v in params.items()}
    for batch in data.batches(1):
        leaves = {n: v.clone().requires_grad_() for n, v in params.items()}
        h, norms = batch.x.flatten(1), []
        for stage in stages:
            h = h.detach()
            for layer in stage:
                h = (h @ leaves[f"{layer}.weight"].T + leaves[f"{layer}.bias"]).relu()
            norms.append(h.square().sum())
        norms.append((h.detach() @ leaves[weight].T + leaves[bias]).square().sum())
        for n, g in zip(
            leaves, torch.autograd.grad(sum(norms), list(leaves.values())), strict=True
        ):
            naive[n] += g.abs() / len(data)
    torch.testing.assert_close(found, naive, rtol=1e-4, atol=1e-6)


def given_images(method: str, **options: Any) -> tuple[Learner, TrainingEvidence, Start, Params]:
    chain = learner({"name": method, "options": options}, False)
    start = chain.begin(None, 1)
    params = {**start.params, **(chain.train(start, 1)[0].params or {})}
    return chain, chain.evidence(start, params, 1), start, params


def test_mas_on_a_subset_of_classes_sees_those_alone() -> None:
    chain, evidence, start, params = given_images(
        "mas", adapt=[{"task": 1, "classes": ["class-0", "class-2"]}]
    )
    train = chain.data(1).train
    kept = (train.labels != 1).nonzero().squeeze(1)
    own = DeviceData(train.inputs[kept], train.labels[kept], None, train.transform)
    wanted = mean_moment(
        chain.system.backbone, params, own, Readout((0,)), {}, list(start.trainable),
        OBJECTIVES["mas"], 5,
    )  # fmt: skip
    state = chain.method.consolidate(start, params, evidence, None, chain.context(1)).state
    for name, value in wanted.items():
        torch.testing.assert_close(state[f"importance.{name}"], value)


@pytest.mark.parametrize("source", ["train", "test-inputs", "both", "some.npy"])
def test_mas_measures_importance_on_the_images_it_is_told(source: str) -> None:
    """Here the unlabelled images are those of the validation samples."""
    chain, evidence, start, params = given_images("mas", source=source)
    data = chain.data(1)
    parts = {"train": [data.train.inputs], "both": [data.train.inputs, data.validation.inputs]}
    images = torch.cat(parts.get(source, [data.validation.inputs]))
    own = DeviceData(images, torch.zeros(len(images)).long(), None, data.train.transform)
    wanted = mean_moment(
        chain.system.backbone, params, own, Readout((0,)), {}, list(start.trainable),
        OBJECTIVES["mas"], 5,
    )  # fmt: skip
    state = chain.method.consolidate(start, params, evidence, None, chain.context(1)).state
    for name, value in wanted.items():
        torch.testing.assert_close(state[f"importance.{name}"], value)


@pytest.mark.parametrize("replace", [True, False])
def test_an_adaptation_replaces_importance_or_adds_to_it(replace: bool) -> None:
    options = {"task": 1, "source": "test-inputs", "replace": replace}
    chain, evidence, start, params = given_images("mas", adapt=[options])
    method = chain.method
    assert isinstance(method, MAS)
    state = method.consolidate(start, params, evidence, None, chain.context(1)).state
    own = evidence.importance(method.objective)
    other = evidence.importance(method.objective, "test-inputs")
    for name in own:
        wanted = other[name] if replace else other[name] + own[name]
        torch.testing.assert_close(state[f"importance.{name}"], wanted)


def test_adapt_adds_importance_and_trains_nothing() -> None:
    chain = learner("mas", False)
    method, before = chain.method, chain.learn(chain.learn(None, 1), 2)
    assert isinstance(method, MAS)
    task, images = chain.tasks[0].task, chain.data(1).validation.inputs
    after = adapt(method, before, task, images)
    assert all(torch.equal(after.params[n], v) for n, v in before.params.items())
    data = DeviceData(images, torch.zeros(len(images)).long(), None, task.transform)
    names = [*method.body(), *head_names(0)]
    new = mean_moment(
        chain.system.backbone, before.params, data, Readout((0,)), {}, names, method.objective, 3
    )
    for name, value in before.state.items():
        part, _, own = name.partition(".")
        added = new.get(own, torch.zeros(())) if part == "importance" else torch.zeros(())
        torch.testing.assert_close(after.state[name], value + added, check_dtype=False)
    with pytest.raises(InputError, match="1x2x3"):
        adapt(method, before, task, images[:, :, :1])
    with pytest.raises(InputError, match="has learned"):
        adapt(method, before, chain.tasks[2].task, images)
    with pytest.raises(InputError, match="uint8"):
        adapt(method, before, task, images.float())


def test_adapt_takes_images_as_the_data_set_stores_them() -> None:
    """A task that permutes pixels permutes these too."""
    chain = learner("mas", False)
    method, before = chain.method, chain.learn(None, 1)
    assert isinstance(method, MAS)
    task, images = chain.tasks[0].task, chain.data(1).validation.inputs
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuting = replace(task, transform=replace(task.transform, permutation=order))
    found = adapt(method, before, permuting, images)
    wanted = adapt(method, before, task, images.flatten(2)[..., order].view_as(images))
    torch.testing.assert_close(found.state, wanted.state, rtol=0, atol=0)
    assert not torch.equal(
        found.state["importance.fc1.weight"],
        adapt(method, before, task, images).state["importance.fc1.weight"],
    )


@pytest.mark.parametrize(
    ("method", "options", "field"),
    [
        ("mas", {"adapt": [{"task": 4}]}, "adapt[0].task"),
        ("mas", {"adapt": [{"task": 1, "classes": ["class-9"]}]}, "adapt[0].classes"),
        (
            "mas",
            {"adapt": [{"task": 1, "classes": ["class-1"], "source": "both"}]},
            "adapt[0].source",
        ),
        ("mas", {"scope": "local", "output": "vector"}, "output"),
        ("ewc", {"anchors": "per_task", "accumulate": "mean"}, "accumulate"),
        ("imm", {"merge": "mode"}, "importance"),
        ("imm", {"weights": "searched", "shares": [0.5, 1.0]}, "shares"),
        ("imm", {"importance": "mas"}, "importance"),
        ("imm", {"shares": [0.2]}, "shares"),
        ("lwf", {"warm_up": 2}, "warm_up"),
        ("ebll", {"warm_up": 9}, "warm_up"),
        ("ebll", {"code": 4}, "code"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(
    method: str, options: dict[str, Any], field: str
) -> None:
    chain = learner({"name": method, "options": options}, False)
    with pytest.raises(InputError) as caught:
        chain.method.check([data.task for data in chain.tasks], 2)
    assert caught.value.field == field


# --- anchors -------------------------------------------------------------------------------------


def test_per_task_anchors_are_one_penalty_a_task() -> None:
    """Kirkpatrick et al.: `λ Σ_t F_t (θ − θ_t)` is the gradient; a weight no task needs is free."""
    chain = learner({"name": "ewc", "options": {"anchors": "per_task"}}, True)
    state: dict[str, Tensor] = {}
    fishers = [torch.tensor([1.0, 0.0, 0.5]), torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.5, 0.0, 2.0])]  # fmt: skip  # noqa: E501
    anchors = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2.0, 5.0, 3.0]), torch.tensor([-1.0, 7.0, 4.0])]  # fmt: skip  # noqa: E501
    for fisher, anchor in zip(fishers, anchors, strict=True):
        start, given = Start({"w": anchor}, state, {}), Given({"w": fisher})
        state = chain.method.consolidate(start, {"w": anchor}, given, None, chain.context(1)).state
    theta = torch.tensor([0.3, -2.0, 1.5])
    grads = {"w": torch.zeros(1, 3)}
    hyper = {"strength": torch.tensor([7.0])}
    chain.method.add_gradient(grads, {"w": theta[None]}, state, hyper)
    wanted = sum(7.0 * f * (theta - a) for f, a in zip(fishers, anchors, strict=True))
    torch.testing.assert_close(grads["w"][0], torch.as_tensor(wanted))


def test_l2_pulls_every_weight_alike_to_the_latest_weights() -> None:
    chain = learner("l2", True)
    two = chain.learn(chain.learn(None, 1), 2)
    for name, value in two.params.items():
        assert two.state[f"importance.{name}"].item() == 1.0
        assert torch.equal(two.state[f"anchor.{name}"], value)
    moved = {n: v + 2.0 for n, v in two.params.items()}
    hyper = {"lr": torch.tensor(1.0), "strength": torch.tensor(0.5)}
    count = sum(v.numel() for v in two.params.values())
    penalty = chain.method.penalty(moved, two.state, hyper)
    assert float(penalty) == pytest.approx(0.25 * 4.0 * count, rel=1e-5)


# --- SI ------------------------------------------------------------------------------------------


def test_si_by_hand() -> None:
    """ω = −Σ g δ = −(2·(−1) + 1·(−0.5)) = 2.5; Δ = −1.5; Ω = 2.5 / (2.25 + 0.25) = 1."""
    chain = learner({"name": "si", "options": {"damping": 0.25}}, True)
    method = chain.method
    stack = {"w": torch.tensor([[3.0, 0.0]])}
    running = method.running(stack)
    steps = [([2.0, 1.0], [2.0, 1.0]), ([1.0, 1.0], [1.5, 2.0])]
    before = stack["w"]
    for gradient, to in steps:
        after = torch.tensor([to])
        method.after_step(running, {"w": torch.tensor([gradient])}, {"w": before}, {"w": after})
        before = after
    assert running["path.w"].tolist() == [[2.5, -2.0]]
    given = Given({})
    object.__setattr__(given, "running", {"path.w": running["path.w"][0]})
    start = Start({"w": stack["w"][0]}, {}, {"w": torch.ones((), dtype=torch.bool)})
    end = {"w": before[0]}
    state = method.consolidate(start, end, given, None, chain.context(1)).state
    torch.testing.assert_close(state["importance.w"], torch.tensor([1.0, 0.0]))
    hyper = {"lr": torch.tensor(1.0), "strength": torch.tensor(3.0)}
    moved = {"w": end["w"] + torch.tensor([2.0, 9.0])}
    assert float(method.penalty(moved, state, hyper)) == pytest.approx(3.0 * 1.0 * 4.0)
    grads = {"w": torch.zeros(1, 2)}
    method.add_gradient(grads, {"w": moved["w"][None]}, state, {"strength": torch.tensor([3.0])})
    torch.testing.assert_close(grads["w"][0], torch.tensor([12.0, 0.0]))


def loss_of(chain: Learner, params: Params, number: int) -> float:
    data, task = chain.data(number), chain.tasks[number - 1].task
    (batch,) = data.train.batches(len(data.train))
    logits, _ = answer(chain.system.backbone, params, batch.x, Readout((task.head,)), {})
    return float(cross_entropy(logits, batch.y))


@pytest.mark.parametrize("regularizers", [[], [{"name": "l1_param"}], [{"name": "l1_rep"}]])
def test_si_path_integrals_add_up_to_the_fall_of_the_task_loss(
    regularizers: list[dict[str, Any]],
) -> None:
    """By small steps on the whole task; the penalty and regularisers move weights, and are no part
    of the loss whose fall is counted."""
    training = {"epochs": 60, "batch_size": 24, "optimizer": "sgd"}
    chain = learner({"name": "si", "regularizers": regularizers}, True, training=training)
    hyper = chain.defaults | {"lr": 0.01, "strength": 0.3}
    hyper |= {name: 0.01 for name in ("l1", "l1_rep") if name in hyper}
    parent = chain.learn(None, 1, None, [hyper])
    start = chain.begin(parent, 2)
    (trained,) = chain.train(start, 2, [hyper], parent.regularizer_state)
    fall = loss_of(chain, start.params, 2) - loss_of(
        chain, {**start.params, **(trained.params or {})}, 2
    )
    total = sum(float(v.sum()) for v in trained.running.values())
    assert fall > 0.01
    assert total == pytest.approx(fall, rel=0.02)


def test_si_keeps_the_path_of_the_weights_it_keeps() -> None:
    """With early stopping: what a member did after its best epoch is not part of its path."""
    short = {"epochs": 2, "batch_size": 8, "patience": 1}
    chain = learner("si", True, training=short)
    start = chain.begin(None, 1)
    (kept,) = chain.train(start, 1)
    epochs = 1 + kept.curve.index(max(kept.curve))
    chain = learner("si", True, training={"epochs": epochs, "batch_size": 8})
    (wanted,) = chain.train(chain.begin(None, 1), 1)
    for name, value in wanted.running.items():
        assert torch.equal(kept.running[name], value)


# --- IMM -----------------------------------------------------------------------------------------


def merged(options: dict[str, Any], found: list[Params], values: list[float]) -> list[float]:
    """The merges of a scalar weight after each task."""
    chain = learner({"name": "imm", "options": options}, True)
    state: dict[str, Tensor] = {}
    results = []
    for importance, value in zip(found, values, strict=True):
        params = {"w": torch.tensor([value])}
        start = Start(params, state, {"w": torch.ones((), dtype=torch.bool)})
        chained = chain.method.consolidate(start, params, Given(importance), None, chain.context(1))
        state = chained.state
        assert torch.equal(state["anchor.w"], params["w"])
        results.append(float(chained.params["w"]))
    return results


def test_imm_merges_by_hand() -> None:
    values = [1.0, 3.0, 8.0]
    assert merged({}, [{}] * 3, values) == pytest.approx([1.0, 2.0, 4.0])
    fisher = [{"w": torch.tensor([f])} for f in (2.0, 1.0, 3.0)]
    mode = {"merge": "mode", "importance": "fisher"}
    wanted = [1.0, (2 * 1 + 1 * 3) / 3, (2 * 1 + 1 * 3 + 3 * 8) / 6]
    assert merged(mode, fisher, values) == pytest.approx(wanted)
    dead = [{"w": torch.zeros(1)}] * 3
    assert merged(mode, dead, values) == pytest.approx([1.0, 2.0, 4.0])


def test_imm_goes_on_from_unmerged_weights_and_pulls_to_them() -> None:
    chain = learner("imm", False)
    one = chain.learn(None, 1)
    start = chain.begin(one, 2)
    for name in chain.method.body():
        assert torch.equal(start.params[name], one.state[f"anchor.{name}"])
    two = chain.learn(one, 2)
    third = chain.begin(two, 3)
    assert any(not torch.equal(two.params[n], third.params[n]) for n in chain.method.body())
    for name in chain.method.body():
        assert torch.equal(third.params[name], two.state[f"anchor.{name}"])
        mean = (one.state[f"anchor.{name}"] + two.state[f"anchor.{name}"]) / 2
        torch.testing.assert_close(two.params[name], mean)
    for name in head_names(0):
        assert torch.equal(two.params[name], one.params[name])


def test_imm_searches_the_share_on_validation_samples() -> None:
    options = {"weights": "searched", "shares": [0.2, 0.9]}
    chain = learner({"name": "imm", "options": options}, True)
    one = chain.learn(None, 1)
    start = chain.begin(one, 2)
    (trained,) = chain.train(start, 2)
    params = {**start.params, **(trained.params or {})}
    evidence = chain.evidence(start, params, 2)
    tried: dict[float, float] = {}
    for share in (0.5, 0.2, 0.9):
        candidate = {n: (1 - share) * one.params[n] + share * params[n] for n in params}
        found = evidence.validation(candidate, {})
        tried[share] = sum(found) / len(found)
    two = chain.method.consolidate(start, params, evidence, None, chain.context(2))
    best = max(tried, key=lambda share: tried[share])
    for name, value in params.items():
        wanted = (1 - best) * one.params[name] + best * value
        torch.testing.assert_close(two.params[name], wanted)


# --- LwF and EBLL --------------------------------------------------------------------------------


def test_lwf_distillation_by_hand() -> None:
    """T = 2: before, z = (2·ln3, 0) gives y' = (3/4, 1/4); now z = (0, 0) gives ŷ' = (1/2, 1/2):
    −Σ y' log ŷ' = log 2."""
    chain = learner("lwf", False)
    weight, bias = head_names(0)
    old = {weight: torch.tensor([[2 * math.log(3)], [0.0]]), bias: torch.zeros(2)}
    start = Start(old, {"heads": torch.tensor([0])}, {})
    features = torch.ones(5, 1)
    targets = chain.method.targets(start, features)
    torch.testing.assert_close(targets["answer.0"], torch.tensor([[0.75, 0.25]]).repeat(5, 1))
    now = {weight: torch.zeros(2, 1), bias: torch.zeros(2)}
    hyper = {"strength": torch.tensor(3.0)}
    value = chain.method.distillation(now, features, targets, start, hyper)
    assert float(value) == pytest.approx(3.0 * math.log(2))


@pytest.mark.parametrize("name", ["lwf", "ebll"])
@pytest.mark.parametrize("shared", [True, False])
def test_nothing_is_distilled_before_the_second_task(name: str, shared: bool) -> None:
    options = {"code": 3} if name == "ebll" else {}
    chain = learner({"name": name, "options": options}, shared)
    start = chain.begin(None, 1)
    assert chain.method.targets(start, torch.ones(2, 4)) == {}
    one = chain.learn(None, 1)
    start = chain.begin(one, 2)
    assert "answer.0" in chain.method.targets(start, torch.ones(2, 4))
    assert set(head_names(0)) <= start.trainable.keys()


def test_strong_distillation_keeps_old_answers() -> None:
    training = {"epochs": 30, "batch_size": 8}
    chain = learner("lwf", False, training=training)
    one = chain.learn(None, 1)
    (before,) = chain.data(2).train.batches(1000)

    def answers(params: Params) -> Tensor:
        return answer(chain.system.backbone, params, before.x, Readout((0,)), {})[0].softmax(1)

    drifts = []
    for strength in (0.0, 100.0):
        two = chain.learn(one, 2, None, [{"lr": 0.01, "strength": strength}])
        drifts.append(float((answers(two.params) - answers(one.params)).abs().mean()))
    assert drifts[1] < drifts[0] / 3


def test_a_new_head_warms_up_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience waits for its end: the body has moved, however the head did before."""
    seen: dict[int, Params] = {}
    validate = loop._Pack.validate

    def looking(pack: Any, data: DeviceData, epoch: int) -> Any:
        seen[epoch] = {name: value[0].clone() for name, value in pack.stack.items()}
        yield from validate(pack, data, epoch)

    lwf = {"name": "lwf", "options": {"warm_up": 5}}
    chain = learner(lwf, False, training={"epochs": 20, "batch_size": 8, "patience": 2})
    one = chain.learn(None, 1)
    assert chain.begin(None, 1).warm_up == 0
    start = chain.begin(one, 2)
    monkeypatch.setattr(loop._Pack, "validate", looking)
    (trained,) = chain.train(start, 2)
    assert trained.params is not None
    assert len(trained.curve) > 5
    for name, value in start.params.items():
        assert torch.equal(seen[5][name], value) == (name not in head_names(1))
        assert not torch.equal(seen[6][name], value)
        assert not torch.equal(trained.params[name], value)


def test_ebll_code_loss_by_hand() -> None:
    """Codes σ(0) = 1/2 before and σ(ln 3) = 3/4 now: α/2 · (1/4)²."""
    chain = learner({"name": "ebll", "options": {"code": 1}}, False)
    state = {
        "heads": torch.tensor([0]),
        "encoders.weight": torch.tensor([[1.0]]),
        "encoders.bias": torch.zeros(1),
    }
    weight, bias = head_names(0)
    head = {weight: torch.zeros(2, 1), bias: torch.zeros(2)}
    start = Start(head, state, {})
    targets = chain.method.targets(start, torch.zeros(4, 1))
    hyper = {"strength": torch.tensor(0.0), "code_strength": torch.tensor(6.0)}
    now = torch.full((4, 1), math.log(3))
    value = chain.method.distillation(head, now, targets, start, hyper)
    assert float(value) == pytest.approx(6.0 / 2 / 16)


def test_ebll_keeps_an_encoder_a_task_that_keeps_what_the_task_needs() -> None:
    training = {"epochs": 25, "batch_size": 8}
    options = {"code": 2, "code_epochs": 100}
    chain = learner({"name": "ebll", "options": options}, False, training=training,
                    model={"name": "mlp", "hidden": [16, 12]})  # fmt: skip
    one = chain.learn(None, 1, None, [chain.defaults | {"lr": 0.01}])
    assert one.state["encoders.weight"].shape == (2, 12)
    assert one.state["encoders.bias"].shape == (2,)
    two = chain.learn(one, 2)
    assert two.state["encoders.weight"].shape == (4, 12)
    assert torch.equal(two.state["encoders.weight"][:2], one.state["encoders.weight"])
    assert two.state["heads"].tolist() == [0, 1]
    # The classes of the task can be told from two numbers.
    start = chain.begin(one, 2)
    evidence = chain.evidence(start, one.params, 1)
    features, labels = evidence.features()
    codes = chain.method.targets(start, features)["codes"][:, :2]
    centres = torch.stack([codes[labels == c].mean(0) for c in range(3)])
    nearest = torch.cdist(codes, centres).argmin(1)
    assert float((nearest == labels).float().mean()) > 0.8
