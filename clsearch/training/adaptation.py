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
from clsearch.scenarios.unlabelled import check_pixels
from clsearch.training.batch import DeviceData, Readout
from clsearch.training.importance import mean_moment


def adapt(method: MAS, chain: ChainState, task: Task, images: Tensor) -> ChainState:
    """The chain with the importance of unlabelled images added to its Ω; nothing is trained.

    Added, whatever the method's `accumulate`: that is a rule for tasks.
    `images` uint8 `[N, C, H, W]` are those met in use, as the data set stores its own: some classes
    of the task, or a stream that nobody labelled. The network answers them with the task's output
    layer, and weights that matter to them are protected when the next task is learned (MAS §5.1,
    §5.2). Raises `InputError` for images of another shape or type, for a task that the chain does
    not answer, and for a method or chain of another kind.
    """
    if not isinstance(method, MAS):
        raise InputError("method", getattr(method, "name", method), "a mas method")
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        found = getattr(images, "dtype", type(images).__name__)
        raise InputError("images", str(found), "a torch tensor of uint8 pixels")
    if images.ndim != 4 or not len(images) or tuple(images.shape[1:]) != task.shape:
        wanted = "x".join(map(str, task.shape))
        raise InputError("images", tuple(images.shape), f"one image or more of {wanted}")
    check_pixels(images, task, "images", tuple(images.shape))
    heads = head_names(task.head)
    gates = method.gates(chain.state, task)
    if gates is None or heads[0] not in chain.params:
        raise InputError("task", task.number, "a task the chain has learned")
    labels = torch.zeros(len(images), dtype=torch.int64)
    names = [name for name in [*method.body(), *heads] if f"importance.{name}" in chain.state]
    if not names:
        raise InputError("chain", "no importance", "a chain that a mas method has learned")
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
