"""Exported models answer raw pixels exactly as the model in training does."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
import torch
from command import environment
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import clsearch
from clsearch.config import MethodConfig
from clsearch.errors import ClsearchError, DamagedError, InputError, StoreError
from clsearch.exports.files import load_export, save_export, write_model_files
from clsearch.exports.formats import onnx
from clsearch.exports.formats.base import formats
from clsearch.exports.formats.pt2 import export_program
from clsearch.exports.standalone import StandaloneModel
from clsearch.methods.base import ChainState, MethodOptions, State
from clsearch.methods.finetune import Finetune
from clsearch.models.base import Gates, Params, Tap, forward, initial_head, initial_parameters
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
FORMATS = sorted(formats())
each = pytest.mark.parametrize("suffix", [f".{name}" for name in FORMATS])
TORCH = pytest.mark.parametrize("suffix", [".pt2", ".safetensors"])
FILES = pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".safetensors"])


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
    model = StandaloneModel(*network, task.head, gates, task)
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
    plain = StandaloneModel(*network, 2, None, TASK)(raw)
    assert not torch.equal(plain, StandaloneModel(*network, 2, None, PERMUTED)(raw))
    assert not torch.equal(plain, StandaloneModel(*network, 2, GATES, TASK)(raw))
    assert not torch.equal(plain, StandaloneModel(*network, 1, None, TASK)(raw))


def test_the_model_owns_its_weights_and_leaves_its_input_alone(
    network: tuple[MLP, Params],
) -> None:
    backbone, params = network
    model = StandaloneModel(backbone, params, 2, None, TASK)
    raw = pixels(3).float()
    before, kept = model(raw), raw.clone()
    for value in params.values():
        value.zero_()
    assert torch.equal(model(raw), before)
    assert torch.equal(raw, kept)
    assert all(p.is_meta for p in backbone.parameters())
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


@each
def test_every_format_holds_permutation_and_gates(
    network: tuple[MLP, Params], tmp_path: Path, suffix: str
) -> None:
    save_export(tmp_path / f"m{suffix}", StandaloneModel(*network, 2, GATES, PERMUTED), {})
    answer, _ = load_export(tmp_path / f"m{suffix}")
    for count in (1, 3, 17):
        raw = pixels(count)
        want = expected(network, raw, PERMUTED, GATES)
        torch.testing.assert_close(answer(raw.float()), want, rtol=0, atol=1e-6)


@each
def test_the_same_model_makes_the_same_bytes_wherever_it_was_made(
    network: tuple[MLP, Params], tmp_path: Path, suffix: str
) -> None:
    model = StandaloneModel(*network, 2, GATES, PERMUTED)
    contents = []
    for name in ("one", "two"):
        place = tmp_path / name / f"m{suffix}"
        save_export(place, model, {"metrics": {"a": 0.5}})
        files = sorted(p for p in place.parent.rglob("*") if p.is_file())
        contents.append({str(p.relative_to(place.parent)): p.read_bytes() for p in files})
    assert contents[0] == contents[1]
    for content in contents[0].values():
        assert str(Path(clsearch.__file__).parent).encode() not in content


@pytest.mark.slow
def test_models_run_without_clsearch(network: tuple[MLP, Params], tmp_path: Path) -> None:
    for name in FORMATS:
        model = StandaloneModel(*network, 2, GATES, PERMUTED)
        save_export(tmp_path / f"m.{name}", model, {"metrics": {"a": 1}})
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
        x = np.load("x.npy")

        import torch
        extra = {"metadata.json": ""}
        model = torch.export.load("m.pt2", extra_files=extra).module()
        np.save("pt2.npy", model(torch.from_numpy(x)).numpy())

        import onnxruntime
        session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
        np.save("onnx.npy", session.run(None, {session.get_inputs()[0].name: x})[0])
        own = session.get_modelmeta().custom_metadata_map["metadata.json"]

        import mlflow.pyfunc
        served = mlflow.pyfunc.load_model("m.mlflow")
        np.save("mlflow.npy", served.predict(x))
        for described in (json.loads(extra["metadata.json"]), json.loads(own),
                          served.metadata.metadata):
            assert described["task"]["classes"] == ["4", "5", "6"], described
            assert described["metrics"] == {"a": 1}
        assert "clsearch" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path, check=False, capture_output=True, text=True,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    want = expected(network, raw, PERMUTED, GATES)
    for name in ("pt2", "mlflow"):
        assert torch.equal(torch.from_numpy(np.load(tmp_path / f"{name}.npy")), want)
    found = torch.from_numpy(np.load(tmp_path / "onnx.npy"))
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_mlflow_serves_a_folder(network: tuple[MLP, Params], tmp_path: Path) -> None:
    """The real server, asked over HTTP with images of one and of three; nothing of it stays."""
    save_export(tmp_path / "m.mlflow", StandaloneModel(*network, 2, GATES, PERMUTED), {})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["mlflow", "models", "serve", "-m", "m.mlflow", "--env-manager", "local",
         "--host", "127.0.0.1", "--port", str(port)],
        cwd=tmp_path, env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=(tmp_path / "log").open("w"),
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while True:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            try:
                urllib.request.urlopen(f"{url}/ping", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        for count in (1, 3):
            raw = pixels(count)
            asked = urllib.request.Request(
                f"{url}/invocations",
                json.dumps({"inputs": raw.tolist()}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(asked, timeout=60) as reply:
                found = torch.tensor(json.loads(reply.read())["predictions"])
            assert torch.equal(found, expected(network, raw, PERMUTED, GATES))
    finally:
        family = psutil.Process(server.pid).children(recursive=True)
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        psutil.wait_procs(family, timeout=30)
    assert not [p for p in family if p.is_running()]


@FILES
def test_metadata(network: tuple[MLP, Params], tmp_path: Path, suffix: str) -> None:
    file = tmp_path / "new" / f"task-3{suffix}"
    given = {"metrics": {"test_accuracy": 0.97}, "trial_key": "ab12", "config": {"name": "x"}}
    save_export(file, StandaloneModel(*network, 2, GATES, PERMUTED), given)
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
    save_export(tmp_path / "m.pt2", StandaloneModel(*network, 2, GATES, PERMUTED), {})
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


@TORCH
def test_an_existing_file_is_kept_without_force(
    network: tuple[MLP, Params], tmp_path: Path, suffix: str
) -> None:
    file, model = tmp_path / f"m{suffix}", StandaloneModel(*network, 2, None, TASK)
    save_export(file, model, {"n": 1})
    content = file.read_bytes()
    with pytest.raises(InputError, match="--force") as caught:
        save_export(file, StandaloneModel(*network, 1, None, TASK), {"n": 2})
    assert caught.value.exit_code == 2
    assert file.read_bytes() == content
    save_export(file, model, {"n": 3}, force=True)
    assert load_export(file)[1]["n"] == 3
    file.unlink()
    with pytest.raises(InputError, match="json"):
        save_export(file, model, {})


def test_unknown_suffix(network: tuple[MLP, Params], tmp_path: Path) -> None:
    model = StandaloneModel(*network, 2, None, TASK)
    known = r"\.onnx, \.pt2, \.safetensors, \.mlflow \(a folder\)"
    for action in (lambda p: save_export(p, model, {}), load_export):
        with pytest.raises(InputError, match=known):
            action(tmp_path / "m.pth")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_only_if_it_was_exported(
    network: tuple[MLP, Params], tmp_path: Path
) -> None:
    folder, model = tmp_path / "m.mlflow", StandaloneModel(*network, 2, None, TASK)
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    for force in (False, True):
        with pytest.raises(InputError, match="--force" if not force else "is left alone"):
            save_export(folder, model, {}, force)
    (folder / "thesis.tex").unlink()
    folder.rmdir()
    save_export(folder, model, {"n": 1})
    save_export(folder, model, {"n": 2}, force=True)
    assert load_export(folder)[1]["n"] == 2
    (folder / "data" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"data/notes\.txt was not exported"):
        save_export(folder, model, {"n": 3}, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.mlflow"]


@pytest.mark.parametrize("suffix", [".mlflow", ".pt2", ".safetensors"])
def test_a_full_disk_leaves_nothing(
    network: tuple[MLP, Params], tmp_path: Path, suffix: str
) -> None:
    if os.getuid() != 0:
        pytest.skip("a small tmpfs needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        model, about = StandaloneModel(*network, 2, None, TASK), {"config": ["long"] * 2000}
        with pytest.raises(StoreError, match="No space left"):
            save_export(tmp_path / f"m{suffix}", model, about)
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# --- what ONNX does not take ---------------------------------------------------------------------


class Bessel(nn.Module):
    """An activation that ONNX has no operator for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Wave(MLP):
    """An MLP with it behind its last layer."""

    name: ClassVar[str] = "wave"

    def __init__(self, options: Any, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        self.bessel = Bessel()

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        return self.bessel(super().forward(x, tap))


class Wavering(MLP):
    """An MLP whose path depends on what an image holds."""

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x, tap)


def test_an_operator_that_onnx_has_not_is_named(
    network: tuple[MLP, Params], tmp_path: Path
) -> None:
    wave = Wave(MLPOptions(hidden=[7, 5]), SHAPE)
    model = StandaloneModel(wave, network[1], 2, None, TASK)
    with pytest.raises(InputError) as caught:
        save_export(tmp_path / "m.onnx", model, {})
    for word in ("wave uses aten.special_bessel_j0", "layer 'bessel'", ".pt2 or .safetensors"):
        assert word in str(caught.value)
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())
    save_export(tmp_path / "m.pt2", model, {})
    raw = pixels(3).float()
    assert torch.equal(load_export(tmp_path / "m.pt2")[0](raw), model(raw))


def test_a_backbone_that_cannot_be_traced_is_named(
    network: tuple[MLP, Params], tmp_path: Path
) -> None:
    model = StandaloneModel(Wavering(MLPOptions(hidden=[7, 5]), SHAPE), network[1], 2, None, TASK)
    with pytest.raises(InputError, match=r"'mlp' is not allowed.*data-dependent"):
        save_export(tmp_path / "m.pt2", model, {})
    assert not list(tmp_path.iterdir())


def test_a_file_that_answers_otherwise_is_not_left(
    network: tuple[MLP, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is the graph of another head."""
    other = onnx._graph(StandaloneModel(*network, 1, None, TASK), {})
    monkeypatch.setattr(onnx, "_graph", lambda model, described: other)
    with pytest.raises(
        ClsearchError, match=r"differ by \d\.\de[+-]\d+ \(at most 1\.0e-04"
    ) as caught:
        save_export(tmp_path / "m.onnx", StandaloneModel(*network, 2, None, TASK), {})
    assert "Nothing was exported" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_without_the_packages_of_onnx(
    network: tuple[MLP, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, model = tmp_path / "m.onnx", StandaloneModel(*network, 2, None, TASK)
    monkeypatch.setattr(onnx, "find_spec", lambda name: name != "onnxscript" or None)
    with pytest.raises(InputError, match=r"onnxscript installed.*pip install onnx onnxscript"):
        save_export(file, model, {})
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(onnx, "find_spec", lambda name: name != "onnxruntime" or None)
    assert save_export(file, model, {})["check"] is None
    with pytest.raises(InputError, match=r"^model: .*onnxruntime installed"):
        load_export(file)


def test_a_checked_file_says_how_far_it_is_from_the_model(
    network: tuple[MLP, Params], tmp_path: Path
) -> None:
    found = save_export(tmp_path / "m.onnx", StandaloneModel(*network, 2, None, TASK), {})
    assert found["check"]["with"].startswith("onnxruntime ")
    assert found["check"]["images"] == 16
    assert 0 <= found["check"]["difference"] < 1e-6
    assert json.loads((tmp_path / "m.onnx.json").read_text()) == found


@TORCH
def test_a_folder_that_cannot_be_written(
    network: tuple[MLP, Params], tmp_path: Path, suffix: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    model = StandaloneModel(*network, 2, None, TASK)
    with pytest.raises(InputError, match="a folder to write to"):
        save_export(tmp_path / "file" / f"m{suffix}", model, {})
    (tmp_path / f"taken{suffix}").mkdir()
    with pytest.raises(InputError, match="It is a folder"):
        save_export(tmp_path / f"taken{suffix}", model, {}, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", f"taken{suffix}"]


def test_metadata_may_not_replace_the_description(
    network: tuple[MLP, Params], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="input"):
        save_export(tmp_path / "m.pt2", StandaloneModel(*network, 2, None, TASK), {"input": 1})


@pytest.mark.parametrize("example", [torch.zeros(1, *SHAPE), pixels(2), torch.zeros(2, 2, 3, 4)])
def test_examples_a_program_cannot_be_traced_with(
    network: tuple[MLP, Params], example: Tensor
) -> None:
    with pytest.raises(InputError, match="example"):
        export_program(StandaloneModel(*network, 2, None, TASK), example)


def test_what_torch_traced_with_is_let_go(network: tuple[MLP, Params], tmp_path: Path) -> None:
    """Else a search grows with each commit."""

    def kept() -> int:
        gc.collect()
        return sum(isinstance(one, ShapeEnv | FakeTensorMode) for one in gc.get_objects())

    def export() -> None:
        save_export(tmp_path / "m.pt2", StandaloneModel(*network, 2, None, TASK), {}, force=True)

    export()
    before = kept()
    for _ in range(3):
        export()
    assert kept() <= before
    assert len(FakeTensorMode.cache) == 0


@FILES
def test_missing_and_damaged_files(
    network: tuple[MLP, Params], tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"m{suffix}"
    with pytest.raises(InputError):
        load_export(file)
    save_export(file, StandaloneModel(*network, 2, None, TASK), {})
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 255
    for damaged in (b"", b"no model", content[: len(content) // 2], bytes(flipped)):
        file.write_bytes(damaged)
        with pytest.raises(DamagedError):
            load_export(file)


@TORCH
def test_another_model_in_the_place_of_one_is_found_out(
    network: tuple[MLP, Params], tmp_path: Path, suffix: str
) -> None:
    file, other = tmp_path / f"m{suffix}", tmp_path / f"other{suffix}"
    save_export(file, StandaloneModel(*network, 2, None, TASK), {})
    save_export(other, StandaloneModel(*network, 1, None, TASK), {})
    other.replace(file)
    with pytest.raises(DamagedError, match="SHA-256 differs"):
        load_export(file)


@pytest.mark.parametrize("text", [None, "no JSON", "[]", '{"format": "another/1"}'])
def test_a_program_of_another_writer_is_refused(
    network: tuple[MLP, Params], tmp_path: Path, text: str | None
) -> None:
    model = StandaloneModel(*network, 2, None, TASK)
    program = export_program(model, torch.zeros(2, *SHAPE))
    extra = {} if text is None else {"metadata.json": text}
    torch.export.save(program, tmp_path / "m.pt2", extra_files=extra)
    with pytest.raises(InputError, match="a model that `clsearch export` wrote"):
        load_export(tmp_path / "m.pt2")


def test_safetensors_needs_its_own_description(network: tuple[MLP, Params], tmp_path: Path) -> None:
    file, beside = tmp_path / "m.safetensors", tmp_path / "m.safetensors.json"
    save_export(file, StandaloneModel(*network, 2, None, TASK), {})
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
    save_export(file, StandaloneModel(*network, 2, None, TASK), {})
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = next(n for n in parts if n.endswith("model_weights_config.json"))
    parts[config] = parts[config].replace(b'"use_pickle": false', b'"use_pickle": true')
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    (tmp_path / "m.pt2.json").unlink()
    with pytest.raises(InputError, match="It holds pickled objects"):
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
    with pytest.raises(InputError, match="no model of clsearch does"):
        load_export(file)


def test_state_names_are_readable(network: tuple[MLP, Params]) -> None:
    model: StandaloneModel = StandaloneModel(*network, 2, GATES, PERMUTED)
    assert {"backbone.fc1.weight", "head.bias", "gate_fc2", "permutation", "mean"} <= set(
        model.state_dict()
    )
