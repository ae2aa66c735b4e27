"""Importance adapted to what a network is used for, without training (MAS §5.1, §5.2)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from clsearch.errors import InputError
from clsearch.methods.base import ChainState
from clsearch.methods.mas import MAS
from clsearch.models.base import head_names
from clsearch.scenarios.base import Task
from clsearch.training.batch import DeviceData, Readout
from clsearch.training.importance import BATCH, mean_moment


def adapt(method: MAS, chain: ChainState, task: Task, images: Tensor) -> ChainState:
    """The chain with the importance of unlabelled images added to its Ω; nothing is trained.

    `images` uint8 `[N, C, H, W]` are those met in use, as `task` sees its own (pixels permuted if
    the task permutes them); the network answers them with the task's output layer. Weights that
    matter to them are protected when the next task is learned (MAS §5.1, §5.2). Raises
    `InputError` for images of another shape, and for a task the chain does not answer.
    """
    if images.ndim != 4 or not len(images) or tuple(images.shape[1:]) != task.shape:
        wanted = "x".join(map(str, task.shape))
        raise InputError("images", tuple(images.shape), f"one image or more of {wanted}")
    heads = head_names(task.head)
    gates = method.gates(chain.state, task)
    if gates is None or heads[0] not in chain.params:
        raise InputError("task", task.number, "a task the chain has learned")
    labels = torch.zeros(len(images), dtype=torch.int64)
    names = [name for name in [*method.body(), *heads] if f"importance.{name}" in chain.state]
    found = mean_moment(
        method.backbone,
        chain.params,
        DeviceData(images, labels, None, task.transform),
        Readout((task.head,)),
        gates,
        names,
        method.objective,
        BATCH,
    )
    added = {f"importance.{n}": chain.state[f"importance.{n}"] + v for n, v in found.items()}
    return replace(chain, state=chain.state | added)
