"""What trains on a GPU: every method and regulariser, as on a processor up to rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Learner, tiny_config, tiny_tasks
from test_methods import METHODS, PLACES, REGULARIZERS
from test_stored_images import stored
from torch import Tensor

from clsearch.config import Config
from clsearch.methods.base import ChainState
from clsearch.protocols import Job
from clsearch.records import Chain, TrialRecord
from clsearch.scenarios.base import TaskData
from clsearch.store import Store, TrainedModel, read_trained
from clsearch.trial import run_pack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RATES = (0.02, 0.05, 0.1)
SGD = {"optimizer": "sgd", "momentum": 0.9, "epochs": 3, "batch_size": 8}
"""Adam makes a step of what is zero but for rounding."""
NETWORK: dict[str, Any] = {"model": {"name": "mlp", "hidden": [16, 12]}}


def train(
    config: Config,
    tasks: list[TaskData],
    parent: ChainState | None,
    shared: bool,
    device: torch.device,
    store: Store,
    rates: tuple[float, ...] = RATES,
) -> dict[float, tuple[TrialRecord, TrainedModel]]:
    """A pack of the last of `tasks` through `run_pack`, by learning rate."""
    learner = Learner(config, tasks, shared)
    parts = learner.parts(len(tasks))
    where = f"{device.type}-{len(tasks)}-{len(rates)}"
    keys = tuple(f"{where}-rate-{rate:g}" for rate in rates)
    hypers = tuple({**learner.defaults, "lr": rate} for rate in rates)
    numbers = tuple(part.task.number for part in parts)
    alone = learner.method.independent or learner.method.uses_all_tasks
    before = None if alone else parent
    chain = Chain(learner.system.label, 0)
    job = Job(chain, 0, len(tasks), None, numbers, shared, keys, hypers)
    records = list(run_pack(config, job, parts, before, store, device))
    assert [(r.status, r.reason) for r in records] == [("COMPLETE", "")] * len(rates)
    assert {r.device == "cpu" for r in records} == {device.type == "cpu"}
    return {r.hyperparameters["lr"]: (r, read_trained(store, r.trial_key)) for r in records}


def close(a: TrainedModel, b: TrainedModel) -> None:
    """The same parameters, activities and running quantities, up to rounding."""
    for ours, theirs in zip(*(map(vars(m).get, vars(m)) for m in (a, b)), strict=True):
        assert isinstance(ours, dict)
        assert isinstance(theirs, dict)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=2e-3, atol=2e-4, msg=name)


def compare(config: Config, shared: bool, folder: Path, tasks: list[TaskData]) -> None:
    store = Store(str(folder))
    learner = Learner(config, tasks, shared)
    parent = learner.learn(None, 1, 0.4 if learner.method.prunes else None)
    here = train(config, tasks, parent, shared, CPU, store)
    there = train(config, tasks, parent, shared, CUDA, store)
    alone = train(config, tasks, parent, shared, CUDA, store, RATES[1:2])
    for rate in RATES:
        close(here[rate][1], there[rate][1])
    close(alone[RATES[1]][1], there[RATES[1]][1])


@pytest.mark.parametrize(("name", "shared"), PLACES)
def test_every_method_trains_as_on_a_processor(name: str, shared: bool, tmp_path: Path) -> None:
    compare(tiny_config(name, training=SGD, **NETWORK), shared, tmp_path, tiny_tasks(2, shared))


@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regulariser_trains_as_on_a_processor(name: str, tmp_path: Path) -> None:
    entry = {"name": "mas" if "mas" in METHODS else "finetune", "regularizers": [{"name": name}]}
    compare(tiny_config(entry, training=SGD, **NETWORK), True, tmp_path, tiny_tasks(2, True))


def larger(task: TaskData, pixels: Tensor) -> TaskData:
    """A task with other images, `pixels` uint8 `[N, C, H, W]` for training and as many as it needs
    of them for validation."""
    shape = tuple(pixels.shape[1:])
    means, deviations = (0.4,) * shape[0], (0.3,) * shape[0]
    transform = replace(task.task.transform, mean=means, std=deviations)
    own = replace(task.task, shape=shape, transform=transform)
    held = pixels[: len(task.validation.labels)]
    train, validation = replace(task.train, inputs=pixels), replace(task.validation, inputs=held)
    return replace(task, task=own, train=train, validation=validation)


def images() -> tuple[TaskData, Tensor]:
    task = tiny_tasks(1, True, samples=48)[0]
    source = torch.Generator().manual_seed(3)
    return task, torch.randint(0, 256, (48, 3, 32, 32), generator=source, dtype=torch.uint8)


def test_augmented_images_train_as_on_a_processor(tmp_path: Path) -> None:
    task, pixels = images()
    model = {"name": "clnp_narrow", "channels": [4, 4, 8, 8], "dense": 16}
    training = {**SGD, "epochs": 1, "augment": {"flip": True, "crop": 2}}
    config, store = tiny_config(model=model, training=training), Store(str(tmp_path))
    part = [larger(task, pixels)]
    here = train(config, part, None, True, CPU, store)
    there = train(config, part, None, True, CUDA, store)
    close(here[RATES[0]][1], there[RATES[0]][1])


def test_images_in_files_train_as_those_in_memory(tmp_path: Path) -> None:
    task, pixels = images()
    config = tiny_config(training={**SGD, "epochs": 2})
    memory, files = larger(task, pixels), larger(task, pixels)
    files = replace(files, train=replace(files.train, inputs=stored(tmp_path, pixels)))
    one = train(config, [memory], None, True, CUDA, Store(str(tmp_path / "memory")))
    two = train(config, [files], None, True, CUDA, Store(str(tmp_path / "files")))
    for rate in RATES:
        for name, value in one[rate][1].params.items():
            assert torch.equal(value, two[rate][1].params[name])


def test_the_published_narrow_network_learns_what_it_is_shown(tmp_path: Path) -> None:
    """CLNP table 2's network, whole: it knows 48 images of three brightnesses by heart."""
    task, pixels = images()
    shades = torch.tensor([30, 120, 220], dtype=torch.uint8)[task.train.labels]
    pixels = (pixels // 8 + shades[:, None, None, None]).to(torch.uint8)
    config = tiny_config(training={"epochs": 20, "batch_size": 16}, model={"name": "clnp_narrow"})
    found = train(
        config, [larger(task, pixels)], None, True, CUDA, Store(str(tmp_path)), (1e-3, 2e-3)
    )
    assert max(record.validation_accuracy or 0.0 for record, _ in found.values()) > 0.9
