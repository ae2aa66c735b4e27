"""Which trials a task has, by what key, and how they are put into packs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from clsearch.config import Config
from clsearch.methods.base import Method
from clsearch.models.base import Backbone
from clsearch.records import SCHEMA, Selection, digest
from clsearch.regularizers.base import Regularizer
from clsearch.scenarios.base import TaskData
from clsearch.system import System, grid_of

Hyperparameters = Mapping[str, float]


def hyperparameters_of(
    config: Config, system: System, task: int, first: Selection | None
) -> list[dict[str, float]]:
    """The hyperparameters of every trial of a chain at a task.

    `current_task`: the whole grid at every task (CLNP §2.2). `first_task`: the grid at task 1, and
    from then on what was selected there, `first` (CLNP §3.1).
    """
    if config.search.protocol == "first_task" and task > 1 and first is not None:
        return [dict(first.hyperparameters)]
    return grid_of(config, system)


def planned(config: Config, system: System, task: int) -> int:
    """Trials of the grid that a chain has at a task."""
    if config.search.protocol == "first_task" and task > 1:
        return 1
    return len(grid_of(config, system))


def rounds(system: System) -> int:
    """Trials that fine-tuning adds to them, at most."""
    tune = system.config.fine_tune
    return tune.rounds if tune else 0


def trial_key(
    config: Config,
    system: System,
    parts: Sequence[TaskData],
    parent: str | None,
    seed: int,
    shared_head: bool,
    hyperparameters: Hyperparameters,
) -> str:
    """The content key of a trial: whatever can change its result is in it, and nothing else.

    That is: the experiment's name (it names the randomness), the seed, the chain's label, method,
    regularisers and backbone with their versions and options, training, the resolution of the
    scan, the task with the digest of its data and its head rule, the parent's commit and the
    version of the code's arithmetic. The margin, the rest of the grid, resources and tracking are
    not.
    """
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "name": config.name,
        "seed": seed,
        "label": system.label,
        "method": _part(system.method),
        "regularizers": [_part(r) for r in system.regularizers],
        "model": _model(system.backbone),
        "training": config.training.model_dump(),
        "thresholds": config.selection.thresholds,
        "tasks": [{"number": p.task.number, "head": p.task.head, "data": p.digest} for p in parts],
        "shared_head": shared_head,
        "parent": parent,
        "hyperparameters": dict(hyperparameters),
    }
    return digest(content)


def _part(plugin: Method | Regularizer | Backbone) -> dict[str, Any]:
    """What a plug-in contributes to a key."""
    options = plugin.options.model_dump(mode="json")
    return {"name": plugin.name, "version": plugin.version, "options": options}


def _model(backbone: Backbone) -> dict[str, Any]:
    """What a backbone contributes: initial weights by their content, wherever they lie."""
    part, digest = _part(backbone), backbone.initial_digest
    if digest is not None:
        part["options"]["weights"] = digest
    return part


def commit_key(
    trial: str,
    threshold: float | Sequence[float] | None,
    unlabelled: Mapping[str, str] | None = None,
) -> str:
    """The content key of a chain's state after a task: a trial, pruned at θ (by unit layer, or one
    for all; None: not pruned).

    `unlabelled` are the digests of the images, by source, that the method looked at beside.
    """
    content = {"schema": SCHEMA, "trial": trial, "threshold": threshold}
    return digest(content | ({"unlabelled": dict(unlabelled)} if unlabelled else {}))


def measurement_key(commit: str, tests: Mapping[int, str]) -> str:
    """The content key of what a commit was measured to be on test samples: `tests` are their
    digests by task."""
    return digest({"schema": SCHEMA, "commit": commit, "tests": {str(n): tests[n] for n in tests}})


def pruning_key(trial: str, start: float, floor: float) -> str:
    """The content key of a trial's pruning by layer, from θ = `start` down to an accuracy."""
    return digest({"schema": SCHEMA, "trial": trial, "start": start, "floor": floor})


def fine_tune_key(
    trial: str,
    thresholds: Mapping[str, float],
    hyperparameters: Hyperparameters,
    epochs: int,
    number: int,
) -> str:
    """The content key of the trial that round `number` of fine-tuning makes of a pruned one."""
    content = {
        "schema": SCHEMA,
        "fine_tuned": trial,
        "thresholds": dict(thresholds),
        "hyperparameters": dict(hyperparameters),
        "epochs": epochs,
        "round": number,
    }
    return digest(content)


CPU_PACKS = ((300, 16), (400, 8))
"""Largest pack by widest layer on a CPU core, from `python -m benchmarks.pack_size`: a step of
narrow layers is mostly the cost of calls, which a pack shares; wider layers fill a core alone, and
so do convolutions (`python -m benchmarks.conv_step`)."""

CUDA_PACK = 64
"""Largest pack on a GPU, from `python -m benchmarks.pack_size --device cuda`: a step is the cost of
its calls until then."""
CUDA_BYTES = 4 << 30
"""Memory of a GPU for the weights, gradients, moments and activations of a pack, at most."""


def pack_size(
    backbone: Backbone,
    wanted: int | Literal["auto"],
    device: str,
    batch_size: int,
    memory: int | None = None,
) -> int:
    """The most members to train together, from the architecture, the device and its memory.

    `memory` is what a pack may take of a GPU, in bytes; a share of it is left to the data.
    """
    if wanted != "auto":
        return wanted
    rows = [u.units * u.rows for u in backbone.unit_layers]
    if device == "cpu":
        if backbone.convolutional:
            return 1
        return next((k for widest, k in CPU_PACKS if max(rows) <= widest), 1)
    weights = sum(p.numel() for p in backbone.parameters())
    activations = batch_size * (math.prod(backbone.shape) + backbone.numbers)
    budget = CUDA_BYTES if memory is None else min(CUDA_BYTES, memory // 2)
    return max(1, min(CUDA_PACK, budget // (4 * (6 * weights + 4 * activations))))


def share(workers: int, chains: int) -> float:
    """The workers that each of so many chains can count on.

    Where there are more workers than chains, twice its part: one chain trains while another waits
    for the last of its trials.
    """
    even = workers / chains
    return even if even <= 1 else min(2 * even, float(workers))


def packs(trials: int, size: int, share: float, last: bool = False) -> list[range]:
    """Trials 0 … n-1 cut into packs of at most `size`.

    `share` is the number of workers this chain can count on: no pack is larger than what leaves
    every one of them something to do. Of the `last` task, after which workers find no more to do,
    a chain that has several has the second half of its trials in packs half as large: these begin
    after the larger ones, and all workers end at about the same time.
    """
    even = max(1, min(size, math.ceil(trials / max(share, 1.0))))
    whole = math.ceil(trials / 2) if last and share > 1 else trials
    cut = [range(i, min(i + even, whole)) for i in range(0, whole, even)]
    half = math.ceil(even / 2)
    return cut + [range(i, min(i + half, trials)) for i in range(whole, trials, half)]
