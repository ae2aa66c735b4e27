"""The model of one task as it is exported: pixels as the data set stores them to outputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clsearch import models
from clsearch.identity import without_folders
from clsearch.models.base import Backbone, Gates, Tap, head_names
from clsearch.models.widths import resized
from clsearch.plugins import find
from clsearch.pruning.compaction import compact
from clsearch.scenarios.base import InputTransform, Task

if TYPE_CHECKING:
    from clsearch.methods.base import ChainState
    from clsearch.system import System

FORMAT = "clsearch-export/1"


class StandaloneModel(nn.Module):
    """One task's model with its input transform and gates inside: pixels to logits.

    `params` hold the backbone and head number `head`. Its parameters are frozen copies on the CPU,
    running statistics, gates, mean, std and permutation buffers.
    """

    mean: Tensor
    std: Tensor
    permutation: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        params: Mapping[str, Tensor],
        head: int,
        gates: Gates | None,
        task: Task,
    ) -> None:
        super().__init__()
        self.task, self.head_number = task, head
        self.backbone = copy.deepcopy(backbone)
        own = {name: _copy(value) for name, value in backbone.values(params).items()}
        self.backbone.load_state_dict(own, strict=False, assign=True)
        weight, bias = (_copy(params[name]) for name in head_names(head))
        self.head = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        self.head.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        transform = task.transform
        for name in ("mean", "std"):
            value = torch.tensor(getattr(transform, name), dtype=torch.float32)
            self.register_buffer(name, value.view(1, -1, 1, 1))
        permutation = transform.permutation
        self.register_buffer("permutation", None if permutation is None else _copy(permutation))
        self.gated = tuple(gates or {})
        for layer in self.gated:
            self.register_buffer(_gate(layer), _copy((gates or {})[layer]))
        self.requires_grad_(False)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels `[N, C, H, W]`, uint8 or float from 0 to `scale`, to logits `[N, classes]`.

        The arithmetic of training: pixels in the task's order, then `InputTransform.normalise`.
        `scale` stays a plain number, because a GPU divides by a number and by a tensor differently.
        """
        x = pixels.to(torch.float32)
        if self.permutation is not None:
            x = x.flatten(2).index_select(2, self.permutation).view(x.shape)
        x = x.div(self.task.transform.scale).sub(self.mean).div(self.std)
        tap = Tap({layer: self.get_buffer(_gate(layer)) for layer in self.gated})
        logits: Tensor = self.head(self.backbone(x, tap))
        return logits

    def describe(self) -> dict[str, Any]:
        """What it takes to rebuild and to use the model, as JSON-able values."""
        task, transform = self.task, self.task.transform
        return {
            "format": FORMAT,
            "architecture": {
                "name": self.backbone.name,
                "options": without_folders(self.backbone.options.model_dump(mode="json")),
                "units": {unit.name: unit.units for unit in self.backbone.unit_layers},
                "gates": list(self.gated),
            },
            "task": {
                "number": task.number,
                "name": task.name,
                "classes": list(task.classes),
                "head": self.head_number,
            },
            "input": {
                "dtype": "float32",
                "shape": ["N", *task.shape],
                "low": 0.0,
                "high": transform.scale,
                "scale": transform.scale,
                "mean": list(transform.mean),
                "std": list(transform.std),
                "permuted": self.permutation is not None,
                "order": transform.order,
            },
            "output": {
                "dtype": "float32",
                "shape": ["N", self.head.out_features],
                "is": task.answers.outputs_are,
            },
        }


def model_of(
    system: System, state: ChainState, task: Task, compacted: bool = False
) -> StandaloneModel:
    """The model that answers `task` in a chain's state; `compacted`: what the task needs of it.

    Raises `ValueError` for a task that the chain has no answer for.
    """
    model = system.model(state, task)
    if model is None:
        raise ValueError(f"{system.label} has no model for task {task.number}")
    if compacted:
        own = compact(model.backbone, model.params, model.head, model.gates)
        return StandaloneModel(*own, model.head, None, task)
    return StandaloneModel(model.backbone, model.params, model.head, model.gates, task)


def example_of(model: StandaloneModel) -> Tensor:
    """Black images, float32 `[2, C, H, W]`."""
    return torch.zeros(2, *model.task.shape)


def rebuild(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> StandaloneModel:
    """The model that `describe` described, from its tensors by name."""
    architecture, info, given = metadata["architecture"], metadata["task"], metadata["input"]
    _, channels, height, width = given["shape"]
    shape = (channels, height, width)
    kind = find(models.__name__, Backbone, architecture["name"], "architecture.name")
    backbone = kind(kind.Options.model_validate(architecture["options"]), shape)
    backbone = resized(backbone, architecture.get("units", {}))
    transform = InputTransform(
        given["scale"],
        tuple(given["mean"]),
        tuple(given["std"]),
        tensors["permutation"] if given["permuted"] else None,
    )
    head = info["head"]
    task = Task(info["number"], info["name"], tuple(info["classes"]), head, shape, transform)
    params = {
        name.removeprefix("backbone."): tensor
        for name, tensor in tensors.items()
        if name.startswith("backbone.")
    }
    weight, bias = head_names(head)
    params |= {weight: tensors["head.weight"], bias: tensors["head.bias"]}
    gates = {layer: tensors[_gate(layer)] for layer in architecture["gates"]}
    return StandaloneModel(backbone, params, head, gates, task)


def _gate(layer: str) -> str:
    """The buffer of a layer's gate: a buffer's name holds no dot."""
    return f"gate_{layer.replace('.', '_')}"


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
