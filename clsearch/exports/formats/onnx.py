"""`.onnx`: a graph for ONNX runtimes, checked against the model with onnxruntime if it is there."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tempfile
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from clsearch.errors import ClsearchError, DamagedError, InputError
from clsearch.exports.formats.base import EMBEDDED, Format, Loaded, embedded
from clsearch.exports.formats.pt2 import export_program
from clsearch.exports.standalone import StandaloneModel, example_of
from clsearch.files import content_of
from clsearch.rng import generator

LARGEST = 2**31 - 2**20
"""Bytes of a model in one file: the format counts them by 31 bits."""
_OTHER_FILES = "session.model_external_initializers_file_folder_path"
TOLERANCE = 1e-4
"""How far outputs may be from the model's: in units of the largest of them, where that is above 1,
since float32 has seven digits."""
IMAGES = 16
"""Images that a written file is checked on: one alone, and the others together."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Onnx(Format):
    """ONNX: `pixels` `[batch, C, H, W]` to `logits`; its properties hold `metadata.json`."""

    name: ClassVar[str] = "onnx"

    def write(
        self, place: Path, model: StandaloneModel, described: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Raises `InputError` where onnx is not installed, for a backbone with an operator that
        ONNX has not, and for a model above 2 GiB; `ClsearchError` for a file that answers
        otherwise than the model."""
        _require("to", "onnx", "onnxscript")
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        if size > LARGEST:
            allowed = "a model of less than 2 GiB, which is the most an ONNX file holds"
            raise InputError("to", f"{size / 2**30:.1f} GiB", allowed, "Other formats take it.")
        place.write_bytes(_graph(model, described))
        if find_spec("onnxruntime") is None:
            return {"check": None}
        return {"check": _check(place, model)}

    def load(self, path: Path) -> tuple[Loaded, dict[str, Any]]:
        _require("model", "onnxruntime")
        return self._opened(path, content_of(path))

    def _opened(self, path: Path, content: bytes) -> tuple[Loaded, dict[str, Any]]:
        session = _session(path, content)
        text = session.get_modelmeta().custom_metadata_map.get(EMBEDDED, "")

        def answer(pixels: Tensor) -> Tensor:
            given = {"pixels": pixels.to(torch.float32).numpy()}
            return torch.from_numpy(session.run(["logits"], given)[0])

        return answer, embedded(text)


def _require(field: str, *packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        step = f"Install them: pip install {' '.join(PACKAGES)}"
        raise InputError(field, ".onnx", f"with {' and '.join(missing)} installed", step)


def _graph(model: StandaloneModel, described: Mapping[str, Any]) -> bytes:
    """The content of the file, the same each time: without where code lay on this machine."""
    program = export_program(model, example_of(model))
    try:
        with warnings.catch_warnings(action="ignore"):
            exported = torch.onnx.export(
                program, input_names=["pixels"], output_names=["logits"], dynamo=True, verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        raise _untranslated(model, program, error) from error
    proto: Any = exported.model_proto  # type: ignore[union-attr]
    graph = proto.graph
    for part in (proto, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
    graph.ClearField("value_info")
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    entry = proto.metadata_props.add()
    entry.key, entry.value = EMBEDDED, json.dumps(described, indent=2, allow_nan=False)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _untranslated(
    model: StandaloneModel, program: torch.export.ExportedProgram, error: Exception
) -> InputError:
    """The error for an operator that ONNX has not: which one, and in which layer."""
    causes, at = [], error
    while at is not None:
        causes.append(str(at))
        at = at.__cause__  # type: ignore[assignment]
    target = next((t for c in causes for t in re.findall(r"target=torch\.ops\.(\S+?)\]", c)), None)
    backbone = model.backbone.name
    allowed = "a backbone whose operators ONNX has"
    if target is None:
        return InputError("to", backbone, allowed, f"torch.onnx said: {causes[-1]}")
    # torch takes operators apart before it translates them: aten.special_bessel_j0 is then
    # prims.bessel_j0, and what the backbone calls is told by the part of the name that stays.
    part = target.split(".")[1]
    graphs = (program.run_decompositions().graph, program.graph)
    nodes = (n for graph in graphs for n in graph.nodes if part in str(n.target))
    name, layer = _place(next(nodes, None), target)
    step = f"{backbone} uses {name}{layer}, for which ONNX has no translation."
    return InputError("to", f"{backbone} as .onnx", allowed, f"{step} Take .pt2 or .safetensors.")


def _place(node: fx.Node | None, target: str) -> tuple[str, str]:
    """The operator as it was called, and the layer that calls it."""
    if node is None:
        return target, ""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    layer = stack[-1][0].removeprefix("backbone.") if stack else ""
    name = str(node.meta.get("original_aten") or node.target)
    return name, f" in layer {layer!r}" if layer else ""


def _session(path: Path, content: bytes) -> Any:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as raised

    refusals = (
        *(raised.Fail, raised.InvalidArgument, raised.InvalidGraph, raised.InvalidProtobuf),
        *(raised.NoModel, raised.NotImplemented, raised.RuntimeException),
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong comes as an exception
    try:
        # Weights in other files, as no model of clsearch has them, are looked for in this folder
        # alone; else they would be in the one that the process stands in, or wherever they say.
        with tempfile.TemporaryDirectory() as empty:
            options.add_session_config_entry(_OTHER_FILES, empty)
            return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    except refusals as error:
        raise DamagedError(f"{path} is no model that onnxruntime can run: {error}") from error


def _check(place: Path, model: StandaloneModel) -> dict[str, Any]:
    """Compares outputs on random pixels. Raises `ClsearchError` where they differ by more than
    `TOLERANCE`, or in the class they name."""
    answer, _ = Onnx()._opened(place, place.read_bytes())
    draw = generator("onnx")
    pixels = torch.rand(IMAGES, *model.task.shape, generator=draw) * model.task.transform.scale
    pixels = pixels.round()
    expected = model(pixels)
    found = torch.cat([answer(pixels[:1]), answer(pixels[1:])])
    difference = float((found - expected).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    others = int((found.argmax(1) != expected.argmax(1)).sum())
    named = model.task.answers.probabilities and others
    if not difference <= allowed or named:
        raise ClsearchError(
            f"the ONNX file answers otherwise than the model: outputs differ by {difference:.1e} "
            f"(at most {allowed:.1e} is allowed) and {others} of {IMAGES} images get another "
            "class. Nothing was exported; .pt2 and .safetensors take the model."
        )
    version = importlib.metadata.version("onnxruntime")
    return {"with": f"onnxruntime {version}", "images": IMAGES, "difference": difference}
