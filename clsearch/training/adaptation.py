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
from clsearch.training.importance import mean_moment


def adapt(method: MAS, chain: ChainState, task: Task, images: Tensor) -> ChainState:
    """The chain with the importance of unlabelled images added to its Ω; nothing is trained.

    `images` uint8 `[N, C, H, W]` are those met in use, as the data set stores its own: some classes
    of the task, or a stream that nobody labelled. The network answers them with the task's output
    layer, and weights that matter to them are protected when the next task is learned (MAS §5.1,
    §5.2). Raises `InputError` for images of another shape or type, and for a task that the chain
    does not answer.
    """
    if images.ndim != 4 or not len(images) or tuple(images.shape[1:]) != task.shape:
        wanted = "x".join(map(str, task.shape))
        raise InputError("images", tuple(images.shape), f"one image or more of {wanted}")
    if images.dtype != torch.uint8:
        allowed = f"uint8 pixels from 0 to {task.transform.scale:g}"
        raise InputError("images", str(images.dtype), allowed)
    heads = head_names(task.head)
    gates = method.gates(chain.state, task)
    if gates is None or heads[0] not in chain.params:
        raise InputError("task", task.number, "a task the chain has learned")
    labels = torch.zeros(len(images), dtype=torch.int64)
    names = [name for name in [*method.body(), *heads] if f"importance.{name}" in chain.state]
    found = mean_moment(
        method.backbone,
        chain.params,
        DeviceData(task.transform.permute(images), labels, None, task.transform),
        Readout((task.head,)),
        gates,
        names,
        method.objective,
        method.backbone.evaluation_batch,
    )
    added = {f"importance.{n}": chain.state[f"importance.{n}"] + v for n, v in found.items()}
    return replace(chain, state=chain.state | added)
