"""Selected models as files that answer raw pixels: `.pt2` programs and `.safetensors` weights.

Both take pixels as the data set stores them, `[N, C, H, W]` from 0 to `scale`, and give logits
`[N, classes]` of one task. A `.pt2` takes float32 and runs without clsearch; a `.safetensors` is
rebuilt by clsearch. Beside either stands `<name>.json`, written last, which says what it holds.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clsearch import models
from clsearch.archive import check_archive
from clsearch.errors import DamagedError, InputError, StoreError
from clsearch.models.base import Backbone, Gates, Tap, head_names
from clsearch.models.widths import resized
from clsearch.plugins import find
from clsearch.pruning.compaction import compact
from clsearch.pruning.measure import compare
from clsearch.rng import generator
from clsearch.scenarios.base import InputTransform, Task

if TYPE_CHECKING:
    from clsearch.config import Config
    from clsearch.methods.base import ChainState
    from clsearch.records import TaskResult
    from clsearch.system import System

FORMAT = "clsearch-export/1"
SUFFIXES = (".pt2", ".safetensors")
_EMBEDDED = "metadata.json"
_OWN = ("format", "file", "sha256", "architecture", "task", "input", "output")


class StandaloneModel(nn.Module):
    """One task's model with its input transform and gates inside: pixels to logits.

    Its parameters are frozen copies on the CPU, running statistics, gates, mean, std and
    permutation buffers.
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
                "options": self.backbone.options.model_dump(mode="json"),
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
            },
            "output": {
                "dtype": "float32",
                "shape": ["N", self.head.out_features],
                "is": task.answers.outputs_are,
            },
        }


def standalone(
    backbone: Backbone,
    params: Mapping[str, Tensor],
    head: int,
    gates: Gates | None,
    task: Task,
) -> StandaloneModel:
    """The model that answers `task`: `params` hold the backbone and head number `head`."""
    return StandaloneModel(backbone, params, head, gates, task)


def export_program(model: StandaloneModel, example: Tensor) -> torch.export.ExportedProgram:
    """The model as a program for any batch size; `example` float32 `[≥ 2, C, H, W]`.

    Raises `InputError` for another example: the program takes what it was traced with, and a batch
    of one would be traced as a constant.
    """
    shape = tuple(model.task.shape)
    fits = example.ndim == 4 and example.shape[0] >= 2 and tuple(example.shape[1:]) == shape
    if not fits or example.dtype != torch.float32:
        found = f"{str(example.dtype).removeprefix('torch.')} {list(example.shape)}"
        allowed = f"float32 pixels [N, {', '.join(map(str, shape))}] with N of at least 2"
        raise InputError("example", found, allowed)
    batch = {0: torch.export.Dim("batch", min=1)}
    return torch.export.export(model, (example,), dynamic_shapes=(batch,), strict=False)


def description_of(path: Path) -> Path:
    """The JSON file that stands beside an exported model and says what it is."""
    return path.with_name(f"{path.name}.json")


def check_target(path: Path, force: bool) -> None:
    """Raises `InputError` for another suffix, and for files that exist unless `force`."""
    _check_suffix(path, "--to")
    for file in (path, description_of(path)):
        if file.exists() and not force:
            raise InputError(
                "--to", str(file), "a file that does not exist yet", "Use --force to replace it."
            )


def save_export(
    path: Path, model: StandaloneModel, metadata: Mapping[str, Any], force: bool = False
) -> None:
    """Writes the model to `path` (`.pt2` or `.safetensors`) and `<name>.json` beside it.

    `metadata` (metrics, digests, configuration; JSON-able) is stored with the description of the
    model. Raises `InputError` for another suffix, for files that exist unless `force`, and for a
    folder that cannot be written; `StoreError` for a full disk. A failure leaves nothing new.
    """
    check_target(path, force)
    taken = sorted(_OWN & metadata.keys())
    if taken:
        raise ValueError(f"metadata may not hold {', '.join(taken)}: the description has it")
    beside = description_of(path)
    described = {**model.describe(), **metadata, "file": path.name}
    text = json.dumps(described, indent=2, allow_nan=False)
    content = _program(model, text) if path.suffix == ".pt2" else _tensors(model)
    text = json.dumps({**described, "sha256": _sha(content)}, indent=2, allow_nan=False)
    _write({path: content, beside: text.encode() + b"\n"})


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
        return standalone(*own, model.head, None, task)
    return standalone(model.backbone, model.params, model.head, model.gates, task)


def compaction(full: StandaloneModel, small: StandaloneModel) -> dict[str, Any]:
    """What was cut, as the description of a compact model says it: `before` and `after`.

    Neurons by unit layer, parameters, bytes, the largest difference of logits, and the latency of
    both (`compare`) on random pixels: one image, and 256 or as many as are evaluated at once.
    Raises `ClsearchError` for a backbone that answers otherwise when it is narrower.
    """
    task, models = full.task, {"before": full, "after": small}
    draw = generator("compaction")
    images = (
        torch.rand(count, *task.shape, generator=draw).mul(task.transform.scale)
        for count in (1, min(256, full.backbone.evaluation_batch))
    )
    units = {n: {u.name: u.units for u in m.backbone.unit_layers} for n, m in models.items()}
    return {"units": units, **compare(full, small, tuple(images))}


def provenance(config: Config, result: TaskResult) -> dict[str, Any]:
    """What an exported model says of itself: metrics, how it was selected, digests, config."""
    selection = replace(result.selection, candidates=())
    statuses = Counter(c.status for c in result.selection.candidates)
    return {
        "metrics": {
            "test_accuracy": result.test[-1],
            "validation_accuracy": selection.validation_accuracy,
            "validation_accuracy_pruned": selection.accuracy,
            "sparsity": selection.sparsity,
        },
        "selection": {**selection.to_json(), "trials": dict(statuses)},
        "digests": {"trial": selection.trial_key, "commit": result.commit},
        "config": config.model_dump(mode="json", exclude={"resources", "tracking"}),
    }


def write_model_files(
    folder: Path,
    system: System,
    state: ChainState,
    task: Task,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes `model.pt2`, `model.json` and `example.npy` (the batch it was exported with).

    Raises `ValueError` for a task that the chain has no answer for.
    """
    import numpy as np

    model = model_of(system, state, task)
    save_export(folder / "model.pt2", model, metadata or {}, force=True)
    np.save(folder / "example.npy", _example(model).numpy(), allow_pickle=False)


def load_export(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A saved model, callable on float32 pixels `[N, C, H, W]`, and its metadata.

    Raises `InputError` for a file that is missing or of another kind, `DamagedError` for one that
    is not what was written, or holds pickled objects: nothing is unpickled but sample inputs, as
    plain tensors. Still, a `.pt2` is a program: load those you trust.
    """
    _check_suffix(path, "model")
    try:
        content = path.read_bytes()
        if path.suffix == ".pt2":
            return _load_program(path, content)
        return _load_tensors(path, content)
    except OSError as error:
        raise InputError("model", str(path), "a file that can be read", str(error)) from error


def _program(model: StandaloneModel, text: str) -> bytes:
    program = export_program(model, _example(model))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={_EMBEDDED: text})
    return buffer.getvalue()


def _example(model: StandaloneModel) -> Tensor:
    """Black images, float32 `[2, C, H, W]`."""
    return torch.zeros(2, *model.task.shape)


def _tensors(model: StandaloneModel) -> bytes:
    from safetensors.torch import save

    content: bytes = save({k: v.contiguous() for k, v in model.state_dict().items()})
    return content


def _load_program(path: Path, content: bytes) -> tuple[nn.Module, dict[str, Any]]:
    check_archive(path, content)
    extra = {_EMBEDDED: ""}
    program = torch.export.load(io.BytesIO(content), extra_files=extra)
    metadata: dict[str, Any] = json.loads(extra[_EMBEDDED] or "{}")
    return program.module(), metadata


def _load_tensors(path: Path, content: bytes) -> tuple[nn.Module, dict[str, Any]]:
    from safetensors.torch import load

    beside = description_of(path)
    try:
        metadata: dict[str, Any] = json.loads(beside.read_bytes())
        if metadata["file"] != path.name:
            raise InputError("model", str(path), f"{metadata['file']}, which {beside} describes")
        if metadata["sha256"] != _sha(content):
            raise DamagedError(f"{path} is not the file that {beside} describes (SHA-256 differs)")
        return _rebuild(metadata, load(content)), metadata
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DamagedError(f"{beside} does not describe a model of clsearch: {error!r}") from error


def _rebuild(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> StandaloneModel:
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


def _check_suffix(path: Path, field: str) -> None:
    if path.suffix not in SUFFIXES:
        raise InputError(field, str(path), f"a file name ending in {' or '.join(SUFFIXES)}")


def _write(files: Mapping[Path, bytes]) -> None:
    """Writes all files or none: under other names first, then renamed in order."""
    temporary = {file: file.with_name(f".{file.name}.{os.getpid()}.tmp") for file in files}
    try:
        for file, content in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary[file].write_bytes(content)
        for file in files:
            temporary[file].replace(file)
    except OSError as error:
        folder = next(iter(files)).parent
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{folder}: {error.strerror}; nothing was exported") from error
        raise InputError("--to", str(folder), "a folder to write to", str(error)) from error
    finally:
        for file in temporary.values():
            if os.path.lexists(file):
                file.unlink()


def _gate(layer: str) -> str:
    """The buffer of a layer's gate: a buffer's name holds no dot."""
    return f"gate_{layer.replace('.', '_')}"


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
