"""Convolutional backbones: as published, and what dropout, batch-norm and packs do to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Learner, tiny_config
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clsearch.data.base import Samples
from clsearch.errors import InputError
from clsearch.exports.files import load_export, save_export
from clsearch.exports.standalone import StandaloneModel
from clsearch.methods.base import ImportanceObjective
from clsearch.models._convnet import BatchNorm
from clsearch.models.base import Params, Tap, forward, initial_head, initial_parameters
from clsearch.models.cnn_narrow import CLNPNarrow, NarrowOptions
from clsearch.models.cnn_wide import CLNPWide, WideOptions
from clsearch.models.mlp import MLP, MLPOptions
from clsearch.pruning.activity import mean_activity
from clsearch.pruning.scan import threshold_scan
from clsearch.rng import generator
from clsearch.scenarios.base import InputTransform, Task, TaskData
from clsearch.search.plan import pack_size
from clsearch.training import dense, loop
from clsearch.training.batch import DeviceData, Readout
from clsearch.training.evidence import TrainingEvidence
from clsearch.training.importance import mean_moment
from clsearch.training.step import Objective
from clsearch.training.tap import Noise, TrainingTap

CIFAR = (3, 32, 32)
NARROW = {"name": "clnp_narrow", "channels": [6, 5, 7, 6], "dense": 12}
WIDE = {"name": "clnp_wide", "channels": [5, 6, 4, 7, 9]}
SHAPES = {"clnp_narrow": (2, 9, 8), "clnp_wide": (1, 26, 27)}
each = pytest.mark.parametrize("model", [NARROW, WIDE], ids=["narrow", "wide"])
heads = pytest.mark.parametrize("shared", [True, False], ids=["shared", "multi"])


def tasks(
    count: int, shared: bool, shape: tuple[int, int, int], samples: int = 16
) -> list[TaskData]:
    """Tasks of three classes of noise around a mean image each."""
    found = []
    for number in range(1, count + 1):
        source = generator("convolutions", number)
        transform = InputTransform(255.0, (0.4,) * shape[0], (0.3,) * shape[0])
        head = 0 if shared else number - 1
        task = Task(number, f"noise-{number}", ("a", "b", "c"), head, shape, transform)
        means = torch.randint(60, 190, (3, *shape), generator=source)
        parts = []
        for n in (samples, samples // 2):
            labels = torch.arange(n) % 3
            pixels = means[labels] + torch.randint(-40, 40, (n, *shape), generator=source)
            parts.append(Samples(pixels.to(torch.uint8), labels))
        found.append(TaskData(task, parts[0], parts[1], str(number)))
    return found


def learner(
    model: dict[str, Any], method: Any = "clnp", shared: bool = True, **training: Any
) -> Learner:
    config = tiny_config(method, model=model, training={"epochs": 2, "batch_size": 7, **training})
    return Learner(config, tasks(5, shared, SHAPES[model["name"]]), shared)


def network(model: dict[str, Any], seed: int = 0) -> tuple[Any, Params, DeviceData]:
    """A backbone with weights that no statistic is trivial for, and samples for it."""
    kind = {"clnp_narrow": CLNPNarrow, "clnp_wide": CLNPWide}[model["name"]]
    options = {name: value for name, value in model.items() if name != "name"}
    backbone = kind(kind.Options(**options), SHAPES[model["name"]])
    source = generator("convolutions", "network", seed)
    params = initial_parameters(backbone, source)
    params |= initial_head(0, 3, backbone.features, source)
    for name in params:
        if "_norm" in name:
            params[name] = 0.5 + torch.rand(params[name].shape, generator=source)
    (task,) = tasks(1, True, SHAPES[model["name"]], 40)
    data = DeviceData(task.train.inputs, task.train.labels, None, task.task.transform)
    return backbone, params, data


def ranked(evidence: TrainingEvidence) -> TrainingEvidence:
    """Activity by its rank within the layer, from 0 to 1: a threshold then cuts in every layer."""
    ranks = {n: v.argsort().argsort() / len(v) for n, v in evidence.activity().items()}
    return replace(evidence, mean_activity=ranks)


# --- as published --------------------------------------------------------------------------------


def test_the_narrow_network_is_table_2() -> None:
    """Against torch's own layers, written down from the table."""
    backbone = CLNPNarrow(NarrowOptions(), CIFAR)
    source = generator("table-2")
    params = initial_parameters(backbone, source) | initial_head(0, 10, 512, source)
    table = nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1), nn.Dropout(0.25),
        nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(64 * 8 * 8, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 10),
    ).eval()  # fmt: skip
    table.load_state_dict(dict(zip(table.state_dict(), params.values(), strict=True)))
    x = torch.randn(4, *CIFAR, generator=source)
    logits, _ = forward(backbone, params, x, 0, None)
    torch.testing.assert_close(logits, table(x), rtol=1e-4, atol=1e-5)
    rates = [layer.p for layer in table if isinstance(layer, nn.Dropout)]
    assert [layer.rate for n, layer in backbone.layers if n.startswith("drop")] == rates
    assert [u.units for u in backbone.unit_layers] == [32, 32, 64, 64, 512]
    assert [u.fan for u in backbone.unit_layers] == [1, 1, 1, 64, 1]


def test_the_wide_network_is_table_3() -> None:
    """Its sixth convolution and the average are the head. The table's widths are the default."""
    assert WideOptions().channels == [128, 256, 512, 1024, 2048]
    backbone = CLNPWide(WideOptions(channels=[4, 5, 6, 7, 8]), CIFAR)
    source = generator("table-3")
    params = initial_parameters(backbone, source) | initial_head(0, 10, 72, source)
    for name in params:
        if "_norm" in name:
            params[name] = 0.5 + torch.rand(params[name].shape, generator=source)
    places, layers, inputs = [(1, 1), (2, 0), (1, 0), (2, 1), (1, 0)], [], 3
    for i, (stride, padding) in enumerate(places, start=1):
        conv = nn.Conv2d(inputs, i + 3, 3, stride, padding, bias=False)
        norm = nn.BatchNorm2d(i + 3)
        conv.load_state_dict({"weight": params[f"conv{i}.weight"]})
        own = {n: params[f"conv{i}_norm.{n}"] for n in
               ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
        norm.load_state_dict(own, strict=False)
        layers += [conv, norm, nn.ReLU()]
        inputs = i + 3
    sixth = nn.Conv2d(8, 10, 3, 1, 0)
    weight, bias = params["head.0.weight"].view(10, 8, 3, 3), params["head.0.bias"]
    sixth.load_state_dict({"weight": weight, "bias": bias})
    table = nn.Sequential(*layers, sixth, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.randn(4, *CIFAR, generator=source)
    logits, activations = forward(backbone, params, x, 0, None)
    torch.testing.assert_close(logits, table(x), rtol=1e-4, atol=1e-5)
    assert activations["conv5"].shape == (4, 8, 5, 5)
    assert backbone.unit_layers[-1].fan == 9


@pytest.mark.parametrize("side", [1, 12, 16])
def test_images_too_small_for_the_wide_network_are_refused(side: int) -> None:
    with pytest.raises(InputError) as caught:
        CLNPWide(WideOptions(channels=[2] * 5), (3, side, side))
    assert (caught.value.field, caught.value.value) == ("model.name", "clnp_wide")


# --- dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.1])
def test_dropout_drops_its_rate_and_keeps_the_mean(rate: float) -> None:
    mask = Noise(generator("mask")).mask("a", (50, 8, 20, 20), rate, torch.device("cpu"))
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
    assert float((mask == 0).float().mean()) == pytest.approx(rate, abs=0.005)
    assert float((mask == 0).float().mean((0, 2, 3)).std()) < 0.01
    assert mask.permute(0, 2, 3, 1).is_contiguous()


def test_dropout_draws_once_a_place_and_step() -> None:
    source, cpu = generator("mask"), torch.device("cpu")
    noise = Noise(source)
    first = noise.mask("a", (9, 30), 0.5, cpu)
    assert noise.mask("a", (9, 30), 0.5, cpu) is first
    assert not torch.equal(noise.mask("b", (9, 30), 0.5, cpu), first)
    assert not torch.equal(Noise(source).mask("a", (9, 30), 0.5, cpu), first)
    assert torch.equal(Noise(generator("mask")).mask("a", (9, 30), 0.5, cpu), first)


def test_dropout_is_on_in_training_alone() -> None:
    backbone, params, data = network(NARROW)
    (batch,) = data.batches(40)
    wanted, _ = forward(backbone, params, batch.x, 0, None)
    still = TrainingTap(None, {}, None)
    assert torch.equal(forward(backbone, params, batch.x, 0, None, still)[0], wanted)
    tap = TrainingTap(None, {}, Noise(generator("noise")))
    assert not torch.equal(forward(backbone, params, batch.x, 0, None, tap)[0], wanted)
    assert [*tap.noise.masks] == ["drop1", "drop2", "drop3"]
    for activation in tap.activations.values():  # dropped after the tap: gates see all of it
        assert activation.isfinite().all()


def test_each_step_and_epoch_of_training_draws_anew() -> None:
    """A rate of 0 for learning moves no weight: what differs between losses is the noise."""
    chain = learner(NARROW, "finetune", epochs=1)
    start, data = chain.begin(None, 1), chain.data(1)
    objective = Objective(chain.system.backbone, chain.method, [], start, data.readout)
    stack = {n: start.params[n].repeat(2, *[1] * start.params[n].ndim) for n in start.trainable}
    hyper, source = {"lr": torch.zeros(2)}, generator("steps")
    index = torch.arange(16)
    losses = [
        objective.losses(stack, hyper, data.train.batch(index, Noise(source)))[0] for _ in range(3)
    ]
    assert all(torch.equal(one[0], one[1]) for one in losses)  # members share the masks
    assert len({float(one[0].detach()) for one in losses}) == 3


# --- batch-norm ----------------------------------------------------------------------------------


def test_batch_norm_is_torchs() -> None:
    ours, theirs = BatchNorm("n", 6), nn.BatchNorm2d(6)
    source = generator("norm")
    x = torch.randn(5, 6, 4, 3, generator=source) * 3 + 1
    own = {n: torch.rand(6, generator=source) for n in
           ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
    theirs.load_state_dict(own, strict=False)
    call = torch.func.functional_call
    torch.testing.assert_close(call(ours, own, (x, Tap())), theirs.eval()(x))
    free = {f"n.{part}": torch.tensor(True) for part in ("running_mean", "running_var")}
    tap = TrainingTap(None, free, None)
    torch.testing.assert_close(call(ours, own, (x, tap)), theirs.train()(x))
    for part in ("running_mean", "running_var"):
        moved = own[part].lerp(tap.found[f"n.{part}"], 0.1)
        torch.testing.assert_close(moved, theirs.get_buffer(part))


def test_a_frozen_channel_is_normalised_by_its_running_statistics() -> None:
    norm, source = BatchNorm("n", 4), generator("norm")
    own = {n: torch.rand(4, generator=source) for n in
           ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
    x = torch.randn(5, 4, 3, 3, generator=source)
    mask = torch.tensor([True, False, True, False])
    free = {f"n.{part}": mask for part in ("running_mean", "running_var")}
    call = torch.func.functional_call
    mixed = call(norm, own, (x, TrainingTap(None, free, None)))
    batch = {n: torch.tensor(True) for n in free}
    assert torch.equal(mixed[:, ~mask], call(norm, own, (x, Tap()))[:, ~mask])
    whole = call(norm, own, (x, TrainingTap(None, batch, None)))
    assert torch.equal(mixed[:, mask], whole[:, mask])
    assert not torch.equal(mixed, whole)


def test_running_statistics_follow_the_batches_of_training() -> None:
    """Three steps by hand."""
    chain = learner(WIDE, "finetune", epochs=1, batch_size=6)
    start = chain.begin(None, 1)
    assert set(start.statistics) == set(chain.system.backbone.statistics)
    assert not set(start.statistics) & set(start.trainable)
    (still,) = chain.train(start, 1, [{"lr": 1e-30}])
    data = chain.data(1).train
    order = torch.randperm(16, generator=chain.context(1).generator("order-1"))
    wanted = {n: start.params[n].clone() for n in start.statistics}
    for index in torch.split(order, 6):
        tap = TrainingTap(None, start.statistics, None)
        forward(chain.system.backbone, start.params, data.batch(index).x, 0, None, tap)
        wanted = {n: 0.9 * v + 0.1 * tap.found[n] for n, v in wanted.items()}
    assert still.params is not None
    for name, value in wanted.items():
        torch.testing.assert_close(still.params[name], value, rtol=1e-4, atol=1e-6)


def test_a_warm_up_holds_the_statistics_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, dict[str, Tensor]] = {}
    validate = loop._Pack.validate

    def looking(pack: Any, data: Any, epoch: int) -> Any:
        seen[epoch] = {name: value[0].clone() for name, value in pack.statistics.items()}
        yield from validate(pack, data, epoch)

    entry = {"name": "lwf", "options": {"warm_up": 1}}
    chain = learner(WIDE, entry, shared=False)
    start = chain.begin(chain.learn(None, 1), 2)
    monkeypatch.setattr(loop._Pack, "validate", looking)
    (trained,) = chain.train(start, 2)
    assert trained.params is not None
    for name in chain.system.backbone.statistics:
        assert torch.equal(seen[1][name], start.params[name])
        assert not torch.equal(trained.params[name], start.params[name])


# --- packs, measures, files ----------------------------------------------------------------------


@each
@pytest.mark.skipif(not dense.available(), reason="MKL's last bits depend on the place in memory")
def test_any_pack_gives_the_same_bits(model: dict[str, Any]) -> None:
    chain = learner(model)
    hypers = [{"lr": 1e-2 * (1 + i), "l1": 1e-3 * i} for i in range(4)]
    for parent in (None, chain.learn(None, 1, 0.1)):
        number = 1 if parent is None else 2
        start = chain.begin(parent, number)
        alone = [chain.train(start, number, [hyper])[0] for hyper in hypers]
        for members in ([0, 1, 2, 3], [3, 1]):
            together = chain.train(start, number, [hypers[i] for i in members])
            for i, one in zip(members, together, strict=True):
                assert one.params is not None
                assert alone[i].params is not None
                assert one.curve == alone[i].curve
                assert one.params.keys() == alone[i].params.keys()
                assert all(torch.equal(v, alone[i].params[n]) for n, v in one.params.items())


@each
def test_a_pack_of_grouped_convolutions_is_the_same_up_to_rounding(model: dict[str, Any]) -> None:
    """As a GPU trains it: under `vmap`. By plain descent: Adam makes a step of rounding too."""
    chain = learner(model, optimizer="sgd")
    hypers = [{"lr": 1e-2 * (1 + i), "l1": 1e-3 * i} for i in range(3)]
    start = chain.begin(chain.learn(None, 1, 0.1), 2)
    one_by_one = chain.train(start, 2, hypers)
    vars(chain.system.backbone)["convolutional"] = False
    for grouped, wanted in zip(chain.train(start, 2, hypers), one_by_one, strict=True):
        assert grouped.params is not None
        assert wanted.params is not None
        assert grouped.params.keys() == wanted.params.keys()
        for name, value in grouped.params.items():
            torch.testing.assert_close(value, wanted.params[name], rtol=1e-3, atol=1e-4)


@each
def test_a_broken_member_ends_alone(model: dict[str, Any]) -> None:
    chain = learner(model)
    start = chain.begin(None, 1)
    (wanted,) = chain.train(start, 1)
    broken, sound = chain.train(start, 1, [{**chain.defaults, "lr": 1e30}, chain.defaults])
    assert broken.params is None
    assert sound.params is not None
    assert wanted.params is not None
    assert all(torch.equal(v, wanted.params[n]) for n, v in sound.params.items())


@each
def test_importance_is_that_of_single_samples_whatever_the_batch(model: dict[str, Any]) -> None:
    backbone, params, data = network(model)
    names = [n for n, _ in backbone.named_parameters()]

    def value(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, reduction="none")

    objective = ImportanceObjective(value, "square")
    found = [
        mean_moment(backbone, params, data, Readout((0,)), None, names, objective, size)
        for size in (9, 40)
    ]
    total = {n: torch.zeros_like(params[n]) for n in names}
    for one in data.batches(1):
        leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
        logits, _ = forward(backbone, leaves, one.x, 0, None)
        grads = torch.autograd.grad(value(logits, one.y).sum(), [leaves[n] for n in names])
        for n, grad in zip(names, grads, strict=True):
            total[n] += grad.square() / len(data)
    for n in names:
        torch.testing.assert_close(found[0][n], total[n], rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(found[1][n], found[0][n], rtol=1e-4, atol=1e-8)


@each
def test_the_scan_is_that_of_networks_with_channels_cut_out(model: dict[str, Any]) -> None:
    """Silencing channels and setting all that reads them to zero is the same."""
    backbone, params, data = network(model)
    prunable = {u.name: torch.ones(u.units, dtype=torch.bool) for u in backbone.unit_layers}
    activity = mean_activity(backbone, params, data, None, 11)
    readout = Readout((0,))
    scan = threshold_scan(backbone, params, readout, None, prunable, activity, data, 6, 13)
    assert len({p.free for p in scan}) > 3
    (batch,) = data.batches(40)
    for point in scan:
        cut = dict(params)
        for u in backbone.unit_layers:
            dead = activity[u.name] <= point.threshold
            reader = u.outgoing or "head.0.weight"
            cut[reader] = cut[reader].clone()
            cut[reader][:, u.by_input(dead)] = 0
        logits, _ = forward(backbone, cut, batch.x, 0, None)
        assert abs(point.accuracy - float((logits.argmax(1) == batch.y).float().mean())) <= 1 / 40


@each
@pytest.mark.parametrize("suffix", [".pt2", ".safetensors"])
def test_an_exported_model_answers_the_same(
    model: dict[str, Any], suffix: str, tmp_path: Path
) -> None:
    backbone, params, data = network(model)
    task = Task(1, "one", ("a", "b", "c"), 0, backbone.shape, data.transform)
    last = backbone.unit_layers[-1]
    gates = {last.name: torch.arange(last.units) % 2 == 0}
    save_export(tmp_path / f"m{suffix}", StandaloneModel(backbone, params, 0, gates, task), {})
    answer, metadata = load_export(tmp_path / f"m{suffix}")
    assert metadata["architecture"]["name"] == model["name"]
    for count in (1, 2, 17):
        part = data.part(torch.arange(count))
        (batch,) = part.batches(count)
        expected, _ = forward(backbone, params, batch.x, 0, gates)
        torch.testing.assert_close(answer(part.inputs.float()), expected, rtol=1e-5, atol=1e-6)


@each
@pytest.mark.parametrize("method", ["ewc", "mas", "si", "imm", "lwf", "ebll", "l2", "joint"])
def test_every_method_trains_them(model: dict[str, Any], method: str) -> None:
    chain = learner(model, method, shared=False, epochs=1)
    state = chain.learn(chain.learn(None, 1), 2)
    assert not [n for n in state.state if "running" in n]  # statistics follow, unremembered
    assert all(value.isfinite().all() for value in state.params.values())
    assert chain.logits(state, 1).shape == (8, 3)


def test_packs_of_convolutions() -> None:
    """A CPU takes the members one by one; a GPU as many as their feature maps leave room for."""
    backbone = CLNPNarrow(NarrowOptions(), CIFAR)
    assert pack_size(backbone, "auto", "cpu", 256) == 1
    assert pack_size(backbone, 3, "cpu", 256) == 3
    assert 1 <= pack_size(backbone, "auto", "cuda", 256) < pack_size(backbone, "auto", "cuda", 16)


def test_feature_maps_are_evaluated_in_batches_that_fit() -> None:
    backbone = CLNPNarrow(NarrowOptions(), CIFAR)
    assert backbone.numbers == 2 * 32 * 32 * 32 + 2 * 64 * 16 * 16 + 512
    assert backbone.evaluation_batch == 2**26 // backbone.numbers
    assert MLP(MLPOptions(hidden=[2000, 2000]), CIFAR).evaluation_batch == 1000


# --- zero forgetting -----------------------------------------------------------------------------


@each
@heads
def test_clnp_moves_free_channels_and_nothing_else(model: dict[str, Any], shared: bool) -> None:
    chain = learner(model, shared=shared)
    hyper = {"lr": 0.02, "l1": 1e-3}
    first = chain.begin(None, 1)
    params = {**first.params, **(chain.train(first, 1, [hyper])[0].params or {})}
    evidence = ranked(chain.evidence(first, params, 1))
    state = chain.consolidate(first, params, evidence, 0.5, 1)
    start = chain.begin(state, 2)
    trained = {**start.params, **(chain.train(start, 2, [hyper])[0].params or {})}
    for unit in chain.system.backbone.unit_layers:
        on = state.state[f"active.{unit.name}"]
        assert on.any()
        assert not on.all()
        for name in (unit.weight, *unit.vectors):
            moved = (trained[name] != start.params[name]).flatten(1 if name == unit.weight else 0)
            moved = moved.any(1) if moved.ndim > 1 else moved
            assert not moved[on].any(), name
            assert moved[~on].any(), name
            assert torch.equal(start.params[name][on], state.params[name][on])


@each
@heads
def test_clnp_zero_forgetting_is_exact(model: dict[str, Any], shared: bool) -> None:
    """Over five tasks, the last member of a pack going on."""
    chain = learner(model, shared=shared, epochs=1)
    hypers = [{"lr": 0.01 * (k + 1), "l1": 1e-3} for k in range(2)]
    state, remembered = None, {}
    for number in range(1, 6):
        start = chain.begin(state, number)
        params = {**start.params, **(chain.train(start, number, hypers)[-1].params or {})}
        evidence = ranked(chain.evidence(start, params, number))
        state = chain.consolidate(start, params, evidence, 0.75, number)
        for earlier, logits in remembered.items():
            assert torch.equal(chain.logits(state, earlier), logits), f"task {earlier} forgotten"
        remembered[number] = chain.logits(state, number)
        assert remembered[number].std() > 0
