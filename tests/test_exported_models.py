"""Every backbone and the state of every method, in every format, full and compact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import Learner, tiny_config, tiny_tasks
from test_compaction import silenced
from test_models import VARIANTS, made
from torch import Tensor

from clsearch.exports.files import load_export, save_export
from clsearch.exports.formats.base import formats
from clsearch.exports.standalone import StandaloneModel, model_of
from clsearch.methods.base import Method
from clsearch.models.base import forward
from clsearch.plugins import discover
from clsearch.pruning.compaction import compact
from clsearch.rng import generator
from clsearch.scenarios.base import InputTransform, Task

METHODS = discover("clsearch.methods", Method)
LARGE = ("alexnet", "vgg16", "clnp_wide")
"""Backbones of many layers, which take seconds to export."""


def check_all_formats(
    model: StandaloneModel, pixels: Tensor, expected: Tensor, folder: Path
) -> None:
    """Written, read again and run on several batches; torch's formats give the model's own bits.

    A `.mlflow` folder is a `.pt2` with files beside it: one of them is tried.
    """
    for name in formats().keys() - {"pt2"}:
        file = folder / f"model.{name}"
        save_export(file, model, {}, force=True)
        answer, described = load_export(file)
        found = torch.cat([answer(pixels[:1]), answer(pixels[1:])])
        if name == "onnx":
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        else:
            assert torch.equal(found, torch.cat([model(pixels[:1]), model(pixels[1:])]))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert torch.equal(found.argmax(1), expected.argmax(1))
        assert described["task"]["classes"] == list(model.task.classes)
        assert described["architecture"]["name"] == model.backbone.name


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name: str, tmp_path: Path) -> None:
    """The state of a chain after two tasks, made by the method itself, answers its last task as in
    training. What is pruned is the half of the neurons that are the least active."""
    kind = METHODS[name]
    shared = "task_incremental" not in kind.scenarios
    chain = Learner(tiny_config(name), tiny_tasks(2, shared), shared)
    threshold = 0.05 if kind.prunes else None
    state = chain.learn(chain.learn(None, 1, threshold), 2, threshold)
    own = chain.tasks[1]
    pixels, expected = own.validation.inputs.float(), chain.logits(state, 2)
    for compacted in (True, False) if kind.prunes else (False,):
        model = model_of(chain.system, state, own.task, compacted)
        check_all_formats(model, pixels, expected, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id="-".join(name), marks=[pytest.mark.slow] * (name[0] in LARGE))
        for name in VARIANTS
    ],
)
def test_every_backbone(name: tuple[str, str], tmp_path: Path) -> None:
    """With half of its neurons pruned and gates on the first layer."""
    backbone, params = made(name)
    params = silenced(backbone, params, 0.5, 2)
    first = backbone.unit_layers[0]
    groups = torch.rand(first.units // first.group, generator=generator("gates")) < 0.7
    gates = {first.name: groups.repeat_interleave(first.group)}
    transform = InputTransform(255.0, (0.4,) * backbone.shape[0], (0.3,) * backbone.shape[0])
    task = Task(1, "any", ("a", "b", "c", "d"), 0, backbone.shape, transform)
    draw = generator("pixels")
    pixels = torch.randint(0, 256, (5, *backbone.shape), generator=draw).float()
    x = transform.normalise(pixels)
    expected = forward(backbone, params, x, 0, gates)[0]
    check_all_formats(StandaloneModel(backbone, params, 0, gates, task), pixels, expected, tmp_path)
    small = compact(backbone, params, 0, gates)
    check_all_formats(StandaloneModel(*small, 0, None, task), pixels, expected, tmp_path)
