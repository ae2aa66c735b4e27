"""`.pt2`: a program of torch.export, which runs without clsearch and takes any batch."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from clsearch.archive import checked_archive
from clsearch.errors import DamagedError, InputError
from clsearch.exports.formats.base import EMBEDDED, Format, Loaded, embedded
from clsearch.exports.standalone import StandaloneModel, example_of
from clsearch.files import content_of


class Program(Format):
    """torch.export: `torch.export.load(path).module()` is the model."""

    name: ClassVar[str] = "pt2"

    def write(
        self, place: Path, model: StandaloneModel, described: Mapping[str, Any]
    ) -> dict[str, Any]:
        program = export_program(model, example_of(model))
        buffer = io.BytesIO()  # torch would complain of a name with another ending
        text = json.dumps(described, indent=2, allow_nan=False)
        torch.export.save(program, buffer, extra_files={EMBEDDED: text})
        place.write_bytes(buffer.getbuffer())
        return {}

    def load(self, path: Path) -> tuple[Loaded, dict[str, Any]]:
        content = checked_archive(path, content_of(path))
        extra = {EMBEDDED: ""}
        try:
            program = torch.export.load(io.BytesIO(content), extra_files=extra)
            loaded = program.module()
        except Exception as error:
            raise DamagedError(f"{path} is no program of torch's: {error}") from error
        return loaded, embedded(extra[EMBEDDED])


def export_program(model: StandaloneModel, example: Tensor) -> torch.export.ExportedProgram:
    """The model as a program for any batch size; `example` float32 `[≥ 2, C, H, W]`.

    Raises `InputError` for another example: the program takes what it was traced with, and a batch
    of one would be traced as a constant. And for a backbone that torch cannot trace.
    """
    shape = tuple(model.task.shape)
    fits = example.ndim == 4 and example.shape[0] >= 2 and tuple(example.shape[1:]) == shape
    if not fits or example.dtype != torch.float32:
        found = f"{str(example.dtype).removeprefix('torch.')} {list(example.shape)}"
        allowed = f"float32 pixels [N, {', '.join(map(str, shape))}] with N of at least 2"
        raise InputError("example", found, allowed)
    batch = {0: torch.export.Dim("batch", min=1)}
    try:
        program = torch.export.export(model, (example,), dynamic_shapes=(batch,), strict=False)
    except RuntimeError as error:
        said = str(error).strip().partition("\n")[0]
        allowed = "a backbone that torch.export can trace, whatever its input holds"
        raise InputError("model.name", model.backbone.name, allowed, f"It said: {said}") from error
    finally:
        FakeTensorMode.cache_clear()  # it grows with every program, for good
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # where the code lay on this machine
    _let_go(program)
    return program


def _let_go(program: torch.export.ExportedProgram) -> None:
    """Opens the circles in which torch keeps what it traced a program with: they go through sizes
    that the garbage collector cannot see, and would stay for good."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # brings sympy

    traced = [getattr(node.meta.get("val"), "fake_mode", None) for node in program.graph.nodes]
    for sizes in {mode.shape_env for mode in traced if mode is not None} - {None}:
        if hasattr(sizes, "tracked_fakes"):
            sizes.tracked_fakes = None
        if hasattr(sizes, "fake_tensor_cache"):
            sizes.fake_tensor_cache.clear()
    for method in vars(ShapeEnv).values():  # several remember what they were asked, and of whom
        if hasattr(method, "cache_clear"):
            method.cache_clear()
