"""What a search would do, and about what it would take, without training a trial."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from clsearch.config import Config
from clsearch.data._stored import StoredImages
from clsearch.messages import duration
from clsearch.protocols import Job
from clsearch.records import Chain
from clsearch.report.tables import Sheet
from clsearch.scenarios.base import TaskData
from clsearch.search.plan import pack_size, packs, planned, rounds
from clsearch.sequence import Search
from clsearch.system import System, grid_of
from clsearch.training.batch import PackData
from clsearch.training.loop import train_pack
from clsearch.training.step import Objective
from clsearch.trial import Bench

if TYPE_CHECKING:
    from rich.console import Console

FLOAT = 4
"""Bytes of a number in training."""

STEPS, TURNS = 4, 3
"""Steps of a pack that its time is measured on, so many times: the fastest counts."""


@dataclass(frozen=True)
class Forecast:
    """What one method comes to over the whole sequence and all seeds.

    `trials` are at most so many; `pack` is how many train together at a task; `weights` counts the
    network's numbers, `memory` is what a worker holds of a pack, in bytes, `seconds` the time of
    one worker for all trials.
    """

    label: str
    trials: int
    pack: int
    packs: int
    weights: int
    memory: int
    seconds: float


def forecast(search: Search, workers: int) -> list[Forecast]:
    """Each method of a search, measured on a CPU of this machine by some steps of its packs.

    Steps start from task 1, so that penalties and distillation of later tasks are not in them.
    """
    sizes, kept = [], []
    for task in search.tasks:
        train = search.scenario.data(task.number).train
        sizes.append(len(train))
        kept.append(0 if isinstance(train.inputs, StoredImages) else len(train))
    first = search.scenario.data(1)
    return [_method(search, i, first, sizes, kept, workers) for i in range(len(search.systems))]


def _method(
    search: Search,
    index: int,
    first: TaskData,
    sizes: Sequence[int],
    kept: Sequence[int],
    workers: int,
) -> Forecast:
    config, system = search.config, search.systems[index]
    chains = len(search.systems) * len(config.seeds)
    size = pack_size(system.backbone, config.resources.pack, "cpu", config.training.batch_size)
    grid = grid_of(config, system)
    cut = packs(len(grid), size, workers / chains)
    step = _step_seconds(config, search.shared_head, index, first, grid[: len(cut[0])])
    trials = seconds = count = 0.0
    tune = system.config.fine_tune
    for task, samples in zip(search.tasks, _seen(system, sizes), strict=True):
        own = planned(config, system, task.number)
        steps = math.ceil(samples / config.training.batch_size) * config.training.epochs
        trials += own
        count += len(packs(own, size, workers / chains))
        seconds += own * steps * step
        trials += rounds(system)
        count += rounds(system)
        if tune is not None:
            seconds += tune.rounds * steps / config.training.epochs * tune.epochs * step
    seeds = len(config.seeds)
    weights = sum(p.numel() for p in system.backbone.parameters())
    return Forecast(
        system.label,
        int(trials) * seeds,
        len(cut[0]),
        int(count) * seeds,
        weights,
        _memory(config, system, weights, len(cut[0]), max(_seen(system, kept))),
        seconds * seeds,
    )


def _seen(system: System, sizes: Sequence[int]) -> list[int]:
    """Training samples of a trial at each task."""
    if not system.method.uses_all_tasks:
        return list(sizes)
    return [sum(sizes[: i + 1]) for i in range(len(sizes))]


def _memory(config: Config, system: System, weights: int, members: int, samples: int) -> int:
    """Bytes of a pack on its worker: weights, gradients and moments, activations and theirs, and
    the images of its task that are kept in memory. What a method remembers comes on top."""
    moments = 2 if config.training.optimizer == "adam" else int(config.training.momentum > 0)
    pixels = math.prod(system.backbone.shape)
    own = members if config.training.augment else 1
    batch = config.training.batch_size * (own * pixels + 3 * members * system.backbone.numbers)
    return FLOAT * (members * weights * (2 + moments) + batch) + samples * pixels


def _step_seconds(
    config: Config,
    shared_head: bool,
    index: int,
    first: TaskData,
    hypers: Sequence[dict[str, float]],
) -> float:
    """Seconds of one member's step in a pack, at task 1: the whole loop over a few batches, less
    that over one; where other load blurs the two, the whole loop's."""
    chain = Chain(config.methods[index].chain_name, config.seeds[0])
    keys = tuple(map(str, range(len(hypers))))
    job = Job(chain, index, 1, None, (1,), shared_head, keys, tuple(hypers))
    bench = Bench.set_up(config, job, [first], None, torch.device("cpu"))
    training = config.training.model_copy(update={"epochs": 1, "patience": None})

    def loop(batches: int) -> float:
        samples = torch.arange(batches * training.batch_size) % len(bench.data.train)
        data = PackData(
            bench.data.train.part(samples),
            bench.data.validation.part(samples[:1]),
            bench.data.readout,
        )
        objective = Objective(
            bench.system.backbone, bench.system.method, bench.system.regularizers, bench.start,
            data.readout, bench.regularizer_state,
        )  # fmt: skip
        begun = time.perf_counter()
        list(train_pack(objective, hypers, data, training, bench.context.generator))
        return time.perf_counter() - begun

    loop(1)
    one, more = (min(loop(n) for _ in range(TURNS)) for n in (1, 1 + STEPS))
    step = (more - one) / STEPS if more > one else more / (1 + STEPS)
    return step / len(hypers)


def print_forecast(search: Search, workers: int, console: Console) -> None:
    """Prints the tasks of a search, the trials and packs of each method, and what they take."""
    config = search.config
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = forecast(search, workers)
    finally:
        torch.set_num_threads(threads)
    for sheet in (_tasks_sheet(search), _methods_sheet(found)):
        sheet.print(console)
    total = sum(f.seconds for f in found)
    console.print(
        f"{config.name}: {sum(f.trials for f in found)} trials at most, about "
        f"{duration(total)} of one CPU core, {duration(total / workers)} with {workers} workers "
        f"like this machine's. Nothing was trained and nothing written.",
        soft_wrap=True,
        highlight=False,
    )


def _tasks_sheet(search: Search) -> Sheet:
    rows = []
    for task in search.tasks:
        data = search.scenario.data(task.number)
        shape = "x".join(map(str, task.shape))
        sizes = (len(data.train), len(data.validation), data.test_size)
        classes = str(len(task.classes))
        rows.append((str(task.number), task.name, shape, classes, str(task.head), *map(str, sizes)))
    header = ("task", "name", "image", "classes", "head", "training", "validation", "test")
    return Sheet("Tasks", header, tuple(rows), frozenset({1, 2}))


def _methods_sheet(found: Sequence[Forecast]) -> Sheet:
    rows = tuple(
        (
            f.label,
            f"{f.trials:,}",
            str(f.pack),
            f"{f.packs:,}",
            f"{f.weights:,}",
            f"{f.memory / 2**20:,.0f}",
            duration(f.seconds),
        )
        for f in found
    )
    header = ("method", "trials", "pack", "packs", "weights", "MiB a pack", "core time")
    note = (
        "Core time: some steps of each method's pack on this machine, times the steps of all "
        "its trials; penalties and growth of later tasks, scans and the search itself come on top."
    )
    return Sheet("Methods, over all tasks and seeds", header, rows, frozenset({0}), note)
