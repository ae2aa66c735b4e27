"""Exported models as files: `.pt2` programs and `.safetensors` weights, and back again.

A `.pt2` takes float32 and runs without clsearch; a `.safetensors` is rebuilt by clsearch. Beside
either stands `<name>.json`, written last, which says what it holds.
"""

from __future__ import annotations

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

from clsearch.archive import check_archive
from clsearch.errors import DamagedError, InputError, StoreError
from clsearch.exports.standalone import StandaloneModel, example_of, model_of, rebuild
from clsearch.files import check_new

if TYPE_CHECKING:
    from clsearch.config import Config
    from clsearch.methods.base import ChainState
    from clsearch.records import TaskResult
    from clsearch.scenarios.base import Task
    from clsearch.system import System

SUFFIXES = (".pt2", ".safetensors")
_EMBEDDED = "metadata.json"
_OWN = ("format", "file", "sha256", "architecture", "task", "input", "output")


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
    _check_suffix(path, "to")
    for file in (path, description_of(path)):
        check_new(file, force)


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
    np.save(folder / "example.npy", example_of(model).numpy(), allow_pickle=False)


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
    program = export_program(model, example_of(model))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={_EMBEDDED: text})
    return buffer.getvalue()


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
        return rebuild(metadata, load(content)), metadata
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DamagedError(f"{beside} does not describe a model of clsearch: {error!r}") from error


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
        raise InputError("to", str(folder), "a folder to write to", str(error)) from error
    finally:
        for file in temporary.values():
            if os.path.lexists(file):
                file.unlink()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
