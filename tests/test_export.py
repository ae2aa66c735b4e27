"""Exported models answer raw pixels exactly as the model in training does."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clsearch.config import MethodConfig
from clsearch.errors import DamagedError, InputError
from clsearch.exports.files import load_export, save_export, write_model_files
from clsearch.exports.formats.pt2 import export_program
from clsearch.exports.standalone import StandaloneModel, standalone
from clsearch.methods.base import ChainState, MethodOptions, State
from clsearch.methods.finetune import Finetune
from clsearch.models.base import Gates, Params, forward, initial_head, initial_parameters
from clsearch.models.mlp import MLP, MLPOptions
from clsearch.scenarios.base import InputTransform, Task
from clsearch.system import System

SHAPE = (2, 4, 3)
TASK = Task(
    3, "digits 4-6", ("4", "5", "6"), 2, SHAPE, InputTransform(16.0, (0.3, 0.4), (0.6, 0.7))
)
PERMUTED = replace(
    TASK,
    transform=replace(
        TASK.transform,
        permutation=torch.randperm(12, generator=torch.Generator().manual_seed(1)),
    ),
)
GATES = {"fc2": torch.tensor([True, False, True, True, False])}
BOTH = pytest.mark.parametrize("suffix", [".pt2", ".safetensors"])


@pytest.fixture
def network() -> tuple[MLP, Params]:
    generator = torch.Generator().manual_seed(0)
    backbone = MLP(MLPOptions(hidden=[7, 5]), SHAPE)
    params = initial_parameters(backbone, generator)
    for head in (1, 2):
        params |= initial_head(head, 3, 5, generator)
    return backbone, params


def pixels(count: int) -> Tensor:
    """uint8 `[count, 2, 4, 3]` from 0 to 16."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 17, (count, *SHAPE), generator=generator).to(torch.uint8)


def expected(network: tuple[MLP, Params], raw: Tensor, task: Task, gates: Gates | None) -> Tensor:
    """The training path: stored pixels are permuted, then normalised, then answered."""
    order = task.transform.permutation
    stored = raw if order is None else raw.flatten(2)[:, :, order].view(raw.shape)
    x = task.transform.normalise(stored.clone())
    return forward(*network, x, task.head, gates)[0]


@pytest.mark.parametrize("task", [TASK, PERMUTED], ids=["plain", "permuted"])
@pytest.mark.parametrize("gates", [None, {}, GATES], ids=["none", "open", "gated"])
def test_every_form_answers_as_in_training(
    network: tuple[MLP, Params], task: Task, gates: Gates | None, tmp_path: Path
) -> None:
    model = standalone(*network, task.head, gates, task)
    save_export(tmp_path / "a.pt2", model, {})
    save_export(tmp_path / "b.safetensors", model, {})
    program, _ = load_export(tmp_path / "a.pt2")
    rebuilt, _ = load_export(tmp_path / "b.safetensors")
    for count in (1, 2, 3, 17):
        raw = pixels(count)
        want = expected(network, raw, task, gates)
        for answer in (model(raw), model(raw.float()), rebuilt(raw), program(raw.float())):
            assert torch.equal(answer, want)


def test_permutation_and_gates_matter(network: tuple[MLP, Params]) -> None:
    raw = pixels(4)
    plain = standalone(*network, 2, None, TASK)(raw)
    assert not torch.equal(plain, standalone(*network, 2, None, PERMUTED)(raw))
    assert not torch.equal(plain, standalone(*network, 2, GATES, TASK)(raw))
    assert not torch.equal(plain, standalone(*network, 1, None, TASK)(raw))


def test_the_model_owns_its_weights_and_leaves_its_input_alone(
    network: tuple[MLP, Params],
) -> None:
    backbone, params = network
    model = standalone(backbone, params, 2, None, TASK)
    raw = pixels(3).float()
    before, kept = model(raw), raw.clone()
    for value in params.values():
        value.zero_()
    assert torch.equal(model(raw), before)
    assert torch.equal(raw, kept)
    assert all(p.is_meta for p in backbone.parameters())
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_program_runs_without_clsearch(network: tuple[MLP, Params], tmp_path: Path) -> None:
    save_export(tmp_path / "m.pt2", standalone(*network, 2, GATES, PERMUTED), {"metrics": {"a": 1}})
    raw = pixels(5)
    np.save(tmp_path / "x.npy", raw.float().numpy())
    code = """
        import json, sys
        import numpy as np
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "clsearch":
                    raise ImportError("clsearch is blocked")
        sys.meta_path.insert(0, Blocker())
        import torch
        extra = {"metadata.json": ""}
        model = torch.export.load("m.pt2", extra_files=extra).module()
        np.save("y.npy", model(torch.from_numpy(np.load("x.npy"))).numpy())
        assert json.loads(extra["metadata.json"])["task"]["classes"] == ["4", "5", "6"]
        assert "clsearch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, check=True)
    answer = torch.from_numpy(np.load(tmp_path / "y.npy"))
    assert torch.equal(answer, expected(network, raw, PERMUTED, GATES))


@BOTH
def test_metadata(network: tuple[MLP, Params], tmp_path: Path, suffix: str) -> None:
    file = tmp_path / "new" / f"task-3{suffix}"
    given = {"metrics": {"test_accuracy": 0.97}, "trial_key": "ab12", "config": {"name": "x"}}
    save_export(file, standalone(*network, 2, GATES, PERMUTED), given)
    _, metadata = load_export(file)
    assert given.items() <= metadata.items()
    assert metadata["architecture"]["name"] == "mlp"
    assert metadata["architecture"]["options"]["hidden"] == [7, 5]
    assert metadata["task"]["classes"] == ["4", "5", "6"]
    assert metadata["input"]["shape"] == ["N", 2, 4, 3]
    assert metadata["input"]["dtype"] == "float32"
    assert metadata["input"]["high"] == 16.0
    beside = json.loads((tmp_path / "new" / f"{file.name}.json").read_text())
    assert metadata.items() <= beside.items()
    assert sorted(p.name for p in file.parent.iterdir()) == sorted([f"{file.name}.json", file.name])


def test_programs_hold_no_pickled_tensors(network: tuple[MLP, Params], tmp_path: Path) -> None:
    save_export(tmp_path / "m.pt2", standalone(*network, 2, GATES, PERMUTED), {})
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        pickles = [n for n in archive.namelist() if archive.read(n)[:2] in (b"\x80\x02", b"PK")]
    assert pickles == ["archive/data/sample_inputs/model.pt"]


def test_model_files_of_a_commit(network: tuple[MLP, Params], tmp_path: Path) -> None:
    backbone, params = network

    class Gated(Finetune):
        """Answers task 3, with gates."""

        def gates(self, state: State, task: Task) -> Gates | None:
            return {3: GATES}.get(task.number)

    entry = MethodConfig(name="finetune")
    system = System(entry, backbone, Gated(MethodOptions(), backbone), (), {})
    write_model_files(tmp_path, system, ChainState(params), PERMUTED, {"trial_key": "ab12"})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "example.npy",
        "model.pt2",
        "model.pt2.json",
    ]
    program, metadata = load_export(tmp_path / "model.pt2")
    raw = pixels(3)
    assert torch.equal(program(raw.float()), expected(network, raw, PERMUTED, GATES))
    assert metadata["trial_key"] == "ab12"
    example = torch.from_numpy(np.load(tmp_path / "example.npy"))
    assert program(example).shape == (2, 3)
    with pytest.raises(ValueError, match="no model for task 1"):
        write_model_files(tmp_path, system, ChainState(params), replace(PERMUTED, number=1))


@BOTH
def test_an_existing_file_is_kept_without_force(
    network: tuple[MLP, Params], tmp_path: Path, suffix: str
) -> None:
    file, model = tmp_path / f"m{suffix}", standalone(*network, 2, None, TASK)
    save_export(file, model, {"n": 1})
    content = file.read_bytes()
    with pytest.raises(InputError, match="--force") as caught:
        save_export(file, standalone(*network, 1, None, TASK), {"n": 2})
    assert caught.value.exit_code == 2
    assert file.read_bytes() == content
    save_export(file, model, {"n": 3}, force=True)
    assert load_export(file)[1]["n"] == 3
    file.unlink()
    with pytest.raises(InputError, match="json"):
        save_export(file, model, {})


def test_unknown_suffix(network: tuple[MLP, Params], tmp_path: Path) -> None:
    model = standalone(*network, 2, None, TASK)
    for action in (lambda p: save_export(p, model, {}), load_export):
        with pytest.raises(InputError, match=r"\.pt2 or \.safetensors"):
            action(tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@BOTH
def test_a_folder_that_cannot_be_written(
    network: tuple[MLP, Params], tmp_path: Path, suffix: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    model = standalone(*network, 2, None, TASK)
    with pytest.raises(InputError, match="a folder to write to"):
        save_export(tmp_path / "file" / f"m{suffix}", model, {})
    (tmp_path / f"taken{suffix}").mkdir()
    with pytest.raises(InputError, match="a folder to write to"):
        save_export(tmp_path / f"taken{suffix}", model, {}, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", f"taken{suffix}"]


def test_metadata_may_not_replace_the_description(
    network: tuple[MLP, Params], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="input"):
        save_export(tmp_path / "m.pt2", standalone(*network, 2, None, TASK), {"input": 1})


@pytest.mark.parametrize("example", [torch.zeros(1, *SHAPE), pixels(2), torch.zeros(2, 2, 3, 4)])
def test_examples_a_program_cannot_be_traced_with(
    network: tuple[MLP, Params], example: Tensor
) -> None:
    with pytest.raises(InputError, match="example"):
        export_program(standalone(*network, 2, None, TASK), example)


@BOTH
def test_missing_and_damaged_files(
    network: tuple[MLP, Params], tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"m{suffix}"
    with pytest.raises(InputError):
        load_export(file)
    save_export(file, standalone(*network, 2, None, TASK), {})
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 255
    for damaged in (b"", b"no model", content[: len(content) // 2], bytes(flipped)):
        file.write_bytes(damaged)
        with pytest.raises(DamagedError):
            load_export(file)


def test_safetensors_needs_its_own_description(network: tuple[MLP, Params], tmp_path: Path) -> None:
    file, beside = tmp_path / "m.safetensors", tmp_path / "m.safetensors.json"
    save_export(file, standalone(*network, 2, None, TASK), {})
    other = json.loads(beside.read_text()) | {"file": "m.pt2"}
    beside.write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"m\.pt2"):
        load_export(file)
    beside.write_text("{}")
    with pytest.raises(DamagedError):
        load_export(file)
    beside.unlink()
    with pytest.raises(InputError):
        load_export(file)


def test_a_program_with_pickled_tensors_is_refused(
    network: tuple[MLP, Params], tmp_path: Path
) -> None:
    file = tmp_path / "m.pt2"
    save_export(file, standalone(*network, 2, None, TASK), {})
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = next(n for n in parts if n.endswith("model_weights_config.json"))
    parts[config] = parts[config].replace(b'"use_pickle": false', b'"use_pickle": true')
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    with pytest.raises(DamagedError, match="pickled"):
        load_export(file)


@pytest.mark.parametrize(
    "names", [["version", "serialized_example_inputs.pt"], ["m/version", "m/serialized_state.pt"]]
)
def test_a_program_in_an_older_layout_is_refused_unread(tmp_path: Path, names: list[str]) -> None:
    """Torch would unpickle parts of it."""
    file = tmp_path / "m.pt2"
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"2.7")
    with pytest.raises(DamagedError, match="no model of clsearch does"):
        load_export(file)


def test_state_names_are_readable(network: tuple[MLP, Params]) -> None:
    model: StandaloneModel = standalone(*network, 2, GATES, PERMUTED)
    assert {"backbone.fc1.weight", "head.bias", "gate_fc2", "permutation", "mean"} <= set(
        model.state_dict()
    )
