"""Random shifts and flips of training images: what they do, and who draws them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Learner, SerialSearcher, SilentProgress, SilentTracker, tiny_config, tiny_tasks

from clsearch.config import AugmentConfig, parse_config
from clsearch.errors import InputError
from clsearch.folder import open_store, records_of
from clsearch.methods.base import MethodOptions, Start
from clsearch.methods.finetune import Finetune
from clsearch.models.base import initial_head, initial_parameters
from clsearch.models.cnn_narrow import CLNPNarrow, NarrowOptions
from clsearch.records import digest
from clsearch.rng import generator
from clsearch.sequence import Search
from clsearch.system import resolve
from clsearch.training.augment import Views
from clsearch.training.batch import Batch, Readout
from clsearch.training.step import Objective

CPU = torch.device("cpu")
BOTH = {"flip": True, "crop": 1}
IMAGE = torch.tensor([[[[1, 2, 3], [4, 5, 6]]]], dtype=torch.uint8)  # [1, 1, 2, 3]


def views(crop: int, *draws: tuple[bool, int, int]) -> Views:
    """Of one sample, by (flip, row, column) for each member."""
    flips = torch.tensor([[flip] for flip, _, _ in draws])
    return Views(crop, flips, torch.tensor([[[row, column]] for _, row, column in draws]))


@pytest.mark.parametrize(
    ("draw", "seen"),
    [
        ((False, 1, 1), [[1, 2, 3], [4, 5, 6]]),
        ((True, 1, 1), [[3, 2, 1], [6, 5, 4]]),
        ((False, 0, 1), [[0, 0, 0], [1, 2, 3]]),
        ((False, 2, 1), [[4, 5, 6], [0, 0, 0]]),
        ((False, 1, 0), [[0, 1, 2], [0, 4, 5]]),
        ((False, 1, 2), [[2, 3, 0], [5, 6, 0]]),
        ((True, 2, 2), [[0, 6, 5], [0, 0, 0]]),
    ],
)
def test_shifts_and_flips_by_hand(draw: tuple[bool, int, int], seen: list[list[int]]) -> None:
    found = views(1, draw).of(IMAGE)
    assert found.dtype == torch.uint8
    assert found.tolist() == [[[seen]]]


def test_channels_move_together_and_members_by_themselves() -> None:
    image = torch.cat([IMAGE, IMAGE + 10], 1)
    first, second = views(1, (False, 0, 1), (True, 1, 1)).of(image)
    assert first.tolist() == [[[[0, 0, 0], [1, 2, 3]], [[0, 0, 0], [11, 12, 13]]]]
    assert second.tolist() == [[[[3, 2, 1], [6, 5, 4]], [[13, 12, 11], [16, 15, 14]]]]


def test_a_batch_has_its_own_part_of_the_draws() -> None:
    sources = [generator("augment", k) for k in range(2)]
    whole = Views.draw(AugmentConfig(**BOTH), sources, 5, CPU)
    images = torch.randint(0, 256, (5, 1, 4, 4), generator=generator("x"), dtype=torch.uint8)
    parts = [v.of(x) for v, x in zip(whole.split(2), images.split(2), strict=True)]
    assert torch.equal(torch.cat(parts, 1), whole.of(images))


def test_draws_are_even() -> None:
    """Every one of the 2 · 5 · 5 ways, each within five deviations of its share."""
    sources = [generator("even", k) for k in range(2)]
    found = Views.draw(AugmentConfig(flip=True, crop=2), sources, 50_000, CPU)
    ways = found.flips * 25 + found.shifts[..., 0] * 5 + found.shifts[..., 1]
    counts = torch.bincount(ways.flatten(), minlength=50)
    assert len(counts) == 50
    deviation = math.sqrt(100_000 / 50 * (1 - 1 / 50))
    assert (counts - 100_000 / 50).abs().max() < 5 * deviation
    assert not torch.equal(ways[0], ways[1])


@pytest.mark.parametrize("augment", [{"flip": True}, {"crop": 1}])
def test_what_is_not_asked_for_is_not_done(augment: dict[str, Any]) -> None:
    found = Views.draw(AugmentConfig(**augment), [generator("one")], 100, CPU)
    assert bool(found.flips.any()) == ("flip" in augment)
    assert set(found.shifts.unique().tolist()) == ({0, 1, 2} if "crop" in augment else {0})


# --- in training ---------------------------------------------------------------------------------

HYPERS = [{"lr": 0.01}, {"lr": 0.02}, {"lr": 0.03}]


def learner(**training: Any) -> Learner:
    config = tiny_config(training={"epochs": 3, "batch_size": 7, **training})
    return Learner(config, tiny_tasks(1, True), True)


def test_training_sees_augmented_images_and_validation_does_not() -> None:
    chain, plain = learner(augment=BOTH), learner()
    (trained,) = chain.train(chain.begin(None, 1), 1, HYPERS[:1])
    (other,) = plain.train(plain.begin(None, 1), 1, HYPERS[:1])
    assert trained.params is not None
    assert other.params is not None
    assert not torch.equal(trained.params["fc1.weight"], other.params["fc1.weight"])
    state = chain.learn(None, 1, hypers=HYPERS[:1])
    assert trained.accuracy == pytest.approx(chain.accuracy(state, 1))


def test_a_step_is_that_of_plain_torch_on_the_drawn_images() -> None:
    """One epoch of one step: what the loop draws, drawn again here by its names."""
    chain = learner(augment=BOTH, epochs=1, batch_size=1000, optimizer="sgd")
    start, data = chain.begin(None, 1), chain.data(1).train
    stream = chain.context(1).generator
    order = torch.randperm(len(data), generator=stream("order-1"))
    source = stream(f"augment-1-{digest(HYPERS[0])}")
    drawn = Views.draw(AugmentConfig(**BOTH), [source], len(data), CPU)
    pixels = drawn.of(data.inputs[order])[0].float()
    params = {n: v.clone().requires_grad_() for n, v in start.params.items()}
    x = ((pixels / 255 - 0.4) / 0.3).flatten(1)
    for layer in ("fc1", "fc2", "head.0"):
        x = torch.nn.functional.linear(x, params[f"{layer}.weight"], params[f"{layer}.bias"])
        x = x if layer == "head.0" else x.relu()
    torch.nn.functional.cross_entropy(x, data.labels[order]).backward()
    (trained,) = chain.train(start, 1, HYPERS[:1])
    assert trained.params is not None
    for name, value in params.items():
        assert value.grad is not None
        wanted = start.params[name] - 0.01 * value.grad
        torch.testing.assert_close(trained.params[name], wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("vmapped", [False, True])
def test_members_of_a_convolutional_pack_see_their_own_images(
    vmapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one as on a CPU, and under `vmap` as on a GPU: each has the gradient of its images."""
    backbone = CLNPNarrow(NarrowOptions(channels=[2, 3, 4, 5], dense=6), (1, 8, 8))
    monkeypatch.setitem(backbone.__dict__, "convolutional", not vmapped)
    rng = generator("own-images")
    params = initial_parameters(backbone, rng) | initial_head(0, 3, 6, rng)
    start = Start(params, {}, Finetune.everything(params))
    objective = Objective(backbone, Finetune(MethodOptions(), backbone), [], start, Readout((0,)))
    x, y = torch.rand(2, 5, 1, 8, 8, generator=rng), torch.arange(5) % 3
    stack = {n: torch.stack([v, v * 1.1]) for n, v in params.items()}
    hyper = {"lr": torch.ones(2)}
    together = objective.gradient()(stack, hyper, Batch(x, y))
    for k in range(2):
        own = {n: v[k : k + 1] for n, v in stack.items()}
        alone = objective.gradient()(own, {"lr": torch.ones(1)}, Batch(x[k], y))
        torch.testing.assert_close(together.losses[k], alone.losses[0])
        for n, value in together.whole.items():
            torch.testing.assert_close(value[k], alone.whole[n][0], rtol=1e-4, atol=1e-6)


def augmented(**sections: Any) -> dict[str, Any]:
    return {
        "name": "augmented",
        "scenario": {"name": "split", "source": "digits", "tasks": 2},
        "model": {"name": "mlp", "hidden": [8]},
        "methods": [{"name": "finetune"}],
        "training": {"epochs": 2, "batch_size": 64, "augment": {"flip": True, "crop": 2}},
        "search": {"grid": {"lr": [0.001, 0.01]}},
        **sections,
    }


def run(out: Path, searcher: SerialSearcher) -> dict[str, Any]:
    """Every trial's curve by its key."""
    search = Search(resolve(parse_config(augmented())), out, open_store(out))
    search.run(searcher, SilentTracker(), SilentProgress())
    return {r.trial_key: (r.curve, r.scan) for r in records_of(out)}


def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", SerialSearcher())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", SerialSearcher(stop_after=1))
    assert run(tmp_path / "part", SerialSearcher()) == whole
    assert len(whole) == 4


@pytest.mark.parametrize(
    ("sections", "field", "value", "words"),
    [
        ({"scenario": {"name": "permuted"}}, "", {"flip": True, "crop": 2}, "permuted-2"),
        ({"training": {"augment": {"crop": 8}}}, ".crop", 8, "less than 8"),
        ({"methods": [{"name": "lwf"}]}, "", {"flip": True, "crop": 2}, "lwf"),
        ({"methods": [{"name": "ebll"}]}, "", {"flip": True, "crop": 2}, "ebll"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(
    sections: dict[str, Any], field: str, value: object, words: str, tmp_path: Path
) -> None:
    config = resolve(parse_config(augmented(**sections)))
    with pytest.raises(InputError, match=words) as caught:
        Search(config, tmp_path, open_store(tmp_path))
    assert caught.value.field == f"training.augment{field}"
    assert caught.value.value == value


@pytest.mark.parametrize("augment", [{}, {"flip": False, "crop": 0}])
def test_an_empty_section_is_refused(augment: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="flip, crop or both"):
        parse_config(augmented(training={"augment": augment}))
