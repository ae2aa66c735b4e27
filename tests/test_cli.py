"""The command line: help, exit codes, messages for wrong input, and a search from end to end."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import typer.main
import yaml
from command import Ended, clsearch, environment, journal, refused, write_config
from servers import free_port

from clsearch.cli import app
from clsearch.errors import StoreError
from clsearch.exports.files import load_export
from clsearch.folder import read_parquet

COMMANDS = (
    *("run", "resume", "status", "select", "export", "report", "evaluate", "compare"),
    *("ui", "doctor", "methods", "launch", "logs", "stop"),
)


def test_every_command_is_tested_here_and_has_help(call: Any) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) == set(COMMANDS)
    for name, command in commands.items():
        ended = call(name, "--help")
        assert ended.code == 0
        assert command.help.splitlines()[0] in " ".join(ended.out.split())
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name} has no help"


def test_no_command_shows_the_help(call: Any) -> None:
    ended = call()
    assert ended.code in (0, 2)
    assert "Usage: " in ended.out + ended.err
    assert all(f"  {name} " in ended.out + ended.err for name in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [("sarch",), ("run",), ("run", "c.yaml", "--worker", "2"), ("run", "c.yaml", "--workers", "0"),
     ("select", "out"), ("select", "out", "--margin", "one"), ("export", "out", "--task", "1")],
    ids=" ".join,
)  # fmt: skip
def test_usage_errors_exit_with_2_on_stderr(call: Any, arguments: tuple[str, ...]) -> None:
    ended = call(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert "Error" in ended.err
    assert "Traceback" not in ended.err


OTHER_IMAGES = "other-images.npy"
WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "an unknown key": ({"trainning": {}}, ("trainning", "training", "scenario")),
    "an unknown key further down": ({"training": {"epoch": 3}}, ("training.epoch", "epochs")),
    "an unknown method": ({"methods": [{"name": "ewcc"}]}, ("methods[0].name", "'ewcc'", "ewc")),
    "an unknown hyperparameter": (
        {"methods": [{"name": "finetune", "grid": {"strength": [1]}}]},
        ("methods[0].grid.strength", "lr"),
    ),
    "an empty axis": (
        {"methods": [{"name": "finetune", "grid": {"lr": []}}]},
        ("methods[0].grid.lr",),
    ),
    "an empty list of methods": ({"methods": []}, ("methods",)),
    "a learning rate of zero": (
        {"methods": [{"name": "finetune", "grid": {"lr": [0]}}]},
        ("methods[0].grid.lr", "above 0"),
    ),
    "a negative margin": ({"selection": {"margin": -1}}, ("selection.margin", "-1", "0")),
    "no seed": ({"seeds": []}, ("seeds",)),
    "an unknown scenario": ({"scenario": {"name": "permuted2"}}, ("scenario.name", "permuted")),
    "an unknown source": (
        {"scenario": {"name": "permuted", "source": "digit"}},
        ("scenario.source", "digits"),
    ),
    "an unknown option of the scenario": (
        {"scenario": {"name": "permuted", "task": 2}},
        ("scenario.task", "tasks"),
    ),
    "a missing data folder": (
        {"scenario": {"name": "permuted", "source": "mnist", "root": "no-such-folder"}},
        ("scenario.root", "no-such-folder", "MNIST/raw", "download"),
    ),
    "a negative strength": (
        {"methods": [{"name": "ewc", "grid": {"strength": [1, -1]}}]},
        ("methods[0].grid.strength", "-1", "0"),
    ),
    "groups that the width does not fill": (
        {"model": {"name": "mlp", "hidden": [8, 9], "activation": "lwta", "group": 4}},
        ("model.hidden", "[8, 9]", "multiples of 4", "group"),
    ),
    "IMM by mode without importance": (
        {"methods": [{"name": "imm", "options": {"merge": "mode"}}]},
        ("methods[0].options.importance", "fisher", "mas"),
    ),
    "unlabelled images of another shape": (
        {"methods": [{"name": "mas", "options": {"source": OTHER_IMAGES}}]},
        ("methods[0].options.source", OTHER_IMAGES, "1x8x8", "3x1x4x4"),
    ),
    "no unlabelled images": (
        {"methods": [{"name": "mas", "options": {"source": "no-such.npy"}}]},
        ("methods[0].options.source", "no-such.npy", "uint8"),
    ),
    "a subset of classes that the task has not": (
        {"methods": [{"name": "mas", "options": {"adapt": [{"task": 1, "classes": ["eight"]}]}}]},
        ("methods[0].options.adapt[0].classes", "'eight'", "0, 1, 2"),
    ),
    "an unusable tracking address": (
        {"tracking": {"uri": "gopher://host"}},
        ("tracking.uri", "gopher://host", "http"),
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_config_is_refused_with_one_message_and_nothing_written(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    sections, words = WRONG[what]
    monkeypatch.chdir(tmp_path)
    if OTHER_IMAGES in words:
        np.save(OTHER_IMAGES, np.zeros((3, 1, 4, 4), np.uint8))
    config = write_config(tmp_path / "config.yaml", **sections)
    given = sorted(tmp_path.iterdir())
    refused(call("run", config, "--out", tmp_path / "runs" / "out"), *words)
    assert sorted(tmp_path.iterdir()) == given


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [unclosed", ("valid YAML",)),
        ("just words", ("mapping",)),
        ("", ("mapping",)),
        ("name: x\n", ("scenario", "required")),
        ("a: !!python/object/apply:os.system ['true']", ("without a tag",)),
        ("name: \xff", ("valid YAML",)),
        *((f"name: !!{word}", ("valid YAML",)) for word in ("int ''", "float _", "bool maybe")),
    ],
)
def test_a_file_that_is_no_config(
    call: Any, tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_bytes(text.encode("latin-1"))
    refused(call("run", config, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_a_config_that_is_not_there(call: Any, tmp_path: Path) -> None:
    refused(call("run", tmp_path / "none.yaml"), "none.yaml", "YAML file")
    refused(call("run", tmp_path), str(tmp_path), "YAML file")


def test_a_data_folder_that_is_not_there(call: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", scenario={"name": "permuted", "source": "mnist"})
    ended = call("run", config, "--out", tmp_path / "out", "--data", tmp_path / "none")
    refused(ended, str(tmp_path / "none"), "MNIST/raw")
    assert not (tmp_path / "out").exists()


def test_images_of_a_wrong_size(call: Any, tmp_path: Path) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels = struct.pack(">HBBIII", 0, 8, 3, 20, 20, 20) + bytes(20 * 20 * 20)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(pixels)
        labels = struct.pack(">HBBI", 0, 8, 1, 20) + bytes(i % 10 for i in range(20))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    config = write_config(tmp_path / "c.yaml", scenario={"name": "permuted", "source": "mnist"})
    ended = call("run", config, "--out", tmp_path / "out", "--data", tmp_path / "data")
    refused(ended, "28x28", "[20, 20, 20]")
    assert not (tmp_path / "out").exists()


def test_an_output_folder_below_a_file(call: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    (tmp_path / "file").write_text("mine")
    refused(call("run", config, "--out", tmp_path / "file" / "out"), "--out", "can be written")
    refused(call("run", config, "--out", tmp_path / "file"), "--out", "can be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_folder_on_a_read_only_disk(call: Any, tmp_path: Path) -> None:
    config, disk = write_config(tmp_path / "c.yaml"), tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a read-only disk takes root")
    try:
        refused(call("run", config, "--out", disk), "--out", "can be written")
        refused(call("run", config, "--out", disk / "out"), "--out", "can be written")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_output_folder_with_other_files(call: Any, tmp_path: Path) -> None:
    config, out = write_config(tmp_path / "c.yaml"), tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.tex").write_text("mine")
    refused(call("run", config, "--out", out), "--out", "empty or new folder")
    assert [p.name for p in out.iterdir()] == ["chapter1.tex"]


@pytest.mark.parametrize(
    "arguments",
    [("resume",), ("status",), ("select", "--margin", "1"),
     ("export", "--method", "clnp", "--task", "1", "--to", "m.pt2")],
    ids=lambda a: a[0],
)  # fmt: skip
def test_a_folder_that_holds_no_run(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "none"):
        refused(call(arguments[0], folder, *arguments[1:]), folder, "config.yaml")
    assert [p.name for p in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        *((a, "HOST:PORT") for a in ("nonsense", "h:0", "h:port", "h:99999", ":6379", "h:6379:1")),
        ("http://127.0.0.1:8265", "clsearch launch"),
    ],
)
def test_an_address_that_is_none(call: Any, tmp_path: Path, address: str, words: str) -> None:
    config = write_config(tmp_path / "c.yaml")
    ended = call("run", config, "--out", tmp_path / "a" / "b", "--address", address)
    refused(ended, "--address", words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml"]


@pytest.mark.parametrize(
    ("verb", "address"),
    [
        ("run", "127.0.0.1:{}"),
        *(("launch", f"{scheme}127.0.0.1:{{}}") for scheme in ("", "http://")),
        *((verb, "127.0.0.1:{}") for verb in ("status", "logs", "stop", "resume")),
    ],
)
def test_a_dead_address_is_refused_before_ray_is_imported(
    tmp_path: Path, verb: str, address: str
) -> None:
    code = """
import sys
from clsearch.__main__ import main
try:
    main()
finally:
    print("ray" in sys.modules)
"""
    what = [str(write_config(tmp_path / "c.yaml"))]
    if verb == "launch":
        what += ["--out", "/shared/x"]
    elif verb != "run":
        what = ["clsearch-x-000000"]
    done = subprocess.run(
        [sys.executable, "-c", code, verb, *what, "--address", address.format(free_port())],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    assert "--address" in done.stderr


@pytest.mark.parametrize("listener", ["closed", "silent", "something else"])
def test_an_address_where_no_ray_answers_is_refused_within_10_seconds(
    call: Any, tmp_path: Path, listener: str
) -> None:
    config = write_config(tmp_path / "c.yaml")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        kept: list[socket.socket] = []

        def serve() -> None:
            kept.append(server.accept()[0])
            if listener == "something else":
                kept[-1].sendall(b"SSH-2.0-Other\r\n")

        if listener == "closed":
            server.close()
        else:
            threading.Thread(target=serve, daemon=True).start()
        began = time.monotonic()
        ended = call("run", config, "--out", tmp_path / "a", "--address", address)
        assert time.monotonic() - began < 10
        for connection in kept:
            connection.close()
    refused(ended, "--address", address, "HOST:PORT")
    assert not (tmp_path / "a").exists()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small search through the real command line; its folder and what it printed."""
    folder = tmp_path_factory.mktemp("search")
    config = write_config(folder / "small.yaml")
    # None of its business: a cluster that is named here, the width of this terminal, a folder for
    # the use that others make of Tune.
    env = environment(RAY_ADDRESS="127.0.0.1:1", COLUMNS="80", TUNE_RESULT_DIR="/nowhere")
    done = clsearch("run", config, "--out", folder / "out", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return folder / "out", done.stdout


def test_a_search_leaves_exactly_the_files_of_the_design(searched: tuple[Path, str]) -> None:
    out, _ = searched
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "trials.parquet", "scan.parquet", "capacity.parquet", "selections.json",
        "accuracy_matrix.json", "search.json", "checkpoints", "report", "mlflow.db", "artifacts",
    }  # fmt: skip
    kinds = {p.name for p in (out / "checkpoints").iterdir()}
    assert kinds == {"trials", "commits", "measurements", "delivered"}
    assert len(journal(out)) == 8
    trials = pq.read_table(out / "trials.parquet")
    assert trials.num_rows == 8
    assert set(trials["status"].to_pylist()) == {"COMPLETE"}
    assert set(trials["trial_key"].to_pylist()) == set(journal(out))
    selections = json.loads((out / "selections.json").read_text())
    assert {(s["method"], s["task"]) for s in selections} == {
        (m, t) for m in ("finetune", "clnp") for t in (1, 2)
    }
    assert all(s["outcome"] == "selected" and s["reason"] for s in selections)
    matrix = json.loads((out / "accuracy_matrix.json").read_text())
    assert [len(row) for row in matrix["clnp"]["0"]] == [1, 2]
    scans = pq.read_table(out / "scan.parquet")
    assert set(scans["trial_key"].to_pylist()) == set(journal(out))
    assert {p.name for p in (out / "report").iterdir()} == {"index.html", "index.md", "figures"}
    resolved = yaml.safe_load((out / "config.yaml").read_text())
    assert resolved["scenario"]["tasks"] == 2
    leftovers = [p.name for p in out.rglob(".*")]
    assert leftovers == []


def test_its_output_is_plain_lines_about_the_search_alone(searched: tuple[Path, str]) -> None:
    _, text = searched
    assert "\x1b" not in text
    assert "\r" not in text
    assert "small: 2 tasks (permuted, domain_incremental), 2 methods" in text
    assert "Task 2/2 permuted-2" in text
    assert "8 trials trained." in text
    audit = [line for line in text.splitlines() if "mlflow" in line.lower()]
    assert len(audit) == 1
    assert "clsearch ui " in audit[0]
    for word in ("INFO", "WARN", "ray", "Optuna", "alembic", "Traceback"):
        assert word not in text, word


def test_searching_again_trains_nothing(searched: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = searched
    before, selected = journal(out), (out / "selections.json").read_bytes()
    done = clsearch("resume", out, "--workers", "1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Nothing was trained: all 8 trials were in the journal of {out}" in done.stdout
    assert journal(out) == before
    assert (out / "selections.json").read_bytes() == selected


@pytest.mark.parametrize("command", ["report", "compare", "select", "status", "export"])
def test_a_path_that_cannot_be_looked_at_is_refused(command: str, call: Any) -> None:
    name = "a" * 300
    more = {
        "compare": [name],
        "select": ["--margin", 1],
        "export": ["--method", "ewc", "--task", 1, "--to", "m.pt2"],
    }
    ended = call(command, name, *more.get(command, []))
    refused(ended, name, "can look at", "File name too long")


def test_another_configs_folder_is_refused(
    searched: tuple[Path, str], call: Any, tmp_path: Path
) -> None:
    out, _ = searched
    before = (out / "config.yaml").read_bytes()
    config = write_config(tmp_path / "c.yaml", training={"epochs": 4})
    refused(call("run", config, "--out", out), "--out", "training", "another config")
    assert (out / "config.yaml").read_bytes() == before


def test_status_tells_how_far_it_is(searched: tuple[Path, str], call: Any) -> None:
    out, _ = searched
    ended = call("status", out)
    assert (ended.code, ended.err) == (0, "")
    assert "8 finished trials" in ended.out
    assert "finetune/seed-0: 2 of 2 tasks" in ended.out
    assert "clnp/seed-0: 2 of 2 tasks" in ended.out
    assert "Finished." in ended.out


UNREAD = {"status": ["trials.parquet"], "compare": ["trials.parquet"]}
"""Files that a command does without."""


@pytest.mark.parametrize(
    "name", ["selections.json", "accuracy_matrix.json", "search.json", "trials.parquet"]
)
def test_a_file_larger_than_any_memory_is_named(
    searched: tuple[Path, str], call: Any, tmp_path: Path, name: str
) -> None:
    """An output folder may come from somebody else."""
    out = tmp_path / "out"
    shutil.copytree(searched[0], out)
    with (out / name).open("wb") as stream:
        stream.truncate(1 << 42)  # nothing of it is on the disk
    for words in (("status", out), ("report", out), ("compare", out, out)):
        ended = call(*words)
        if name in UNREAD.get(words[0], ()):
            assert ended.code == 0
            continue
        assert ended.code == 1
        assert f"{name}: its 4,096.0 GiB do not fit into this machine's memory" in ended.err
        assert len(ended.err.splitlines()) == 1


def test_a_table_that_says_it_holds_more_than_the_memory_is_not_read(
    searched: tuple[Path, str], call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = searched
    said = pq.read_metadata(out / "trials.parquet")
    memory = 4 * 8 * said.num_rows * said.num_columns
    monkeypatch.setattr("clsearch.report.parquet.machine_memory", lambda: memory)
    assert read_parquet(out, "trials").num_rows == said.num_rows
    monkeypatch.setattr("clsearch.report.parquet.machine_memory", lambda: memory - 4)
    with pytest.raises(StoreError, match=f"{said.num_rows} rows do not fit"):
        read_parquet(out, "trials")


def test_select_with_another_margin_trains_nothing(
    searched: tuple[Path, str], call: Any, tmp_path: Path
) -> None:
    out, _ = searched
    before, selected = journal(out), (out / "selections.json").read_bytes()
    same = call("select", out, "--margin", "1")
    assert same.code == 0
    assert "0 of 4 selections differ" in same.out
    chosen = tmp_path / "chosen.json"
    wide = call("select", out, "--margin", "100", "--to", chosen)
    assert wide.code == 0
    assert "Nothing was trained" in " ".join(wide.out.split())
    assert "0 of 4" not in wide.out
    old = json.loads(selected)
    new = {(s["method"], s["task"]): s for s in json.loads(chosen.read_text())}
    assert len(new) == 4
    for s in old:
        wider = new[s["method"], s["task"]]
        assert wider["margin"] == 100
        assert wider["sparsity"] >= s["sparsity"]
    assert any(new[s["method"], s["task"]]["sparsity"] > s["sparsity"] for s in old)
    assert journal(out) == before
    assert (out / "selections.json").read_bytes() == selected


@pytest.mark.parametrize("margin", ["-1", "101", "nan"])
def test_select_refuses_a_margin_out_of_range(
    searched: tuple[Path, str], call: Any, margin: str
) -> None:
    refused(call("select", searched[0], "--margin", margin), "--margin", "0 to 100")


def test_select_replaces_a_file_only_with_force(
    searched: tuple[Path, str], call: Any, tmp_path: Path
) -> None:
    out, file = searched[0], tmp_path / "chosen.json"
    file.write_text("mine")
    refused(call("select", out, "--margin", "2", "--to", file), "--to", "--force")
    assert file.read_text() == "mine"
    assert call("select", out, "--margin", "2", "--to", file, "--force").code == 0
    assert len(json.loads(file.read_text())) == 4
    refused(call("select", out, "--margin", "2", "--to", tmp_path / "no" / "x.json"), "--to")
    own = out / "config.yaml"
    content = own.read_bytes()
    for place in (own, out / "new.json"):
        ended = call("select", out, "--margin", "2", "--to", place, "--force")
        refused(ended, "--to", f"a file outside {out}")
    assert own.read_bytes() == content


def test_an_exported_model_answers_like_the_selected_one(
    searched: tuple[Path, str], call: Any, tmp_path: Path
) -> None:
    out, _ = searched
    pixels = torch.randint(0, 17, (5, 1, 8, 8)).float()
    answers = []
    for suffix in ("pt2", "safetensors"):
        file = tmp_path / suffix / f"model.{suffix}"
        file.parent.mkdir()
        ended = call("export", out, "--method", "clnp", "--task", "1", "--to", file)
        assert (ended.code, ended.err) == (0, "")
        model, metadata = load_export(file)
        answers.append(model(pixels))
        assert metadata["selection"]["method"] == "clnp"
        assert sorted(p.name for p in file.parent.iterdir()) == [file.name, f"{file.name}.json"]
    assert torch.equal(*answers)
    assert answers[0].shape == (5, 10)
    matrix = json.loads((out / "accuracy_matrix.json").read_text())
    assert metadata["metrics"]["test_accuracy"] == matrix["clnp"]["0"][0][0]


def test_a_compact_model_answers_the_same_and_says_what_it_saves(
    searched: tuple[Path, str], call: Any, tmp_path: Path
) -> None:
    out, _ = searched
    pixels = torch.randint(0, 17, (50, 1, 8, 8)).float()
    for method, rest in (("clnp", []), ("clnp", ["--compact"]), ("finetune", ["--compact"])):
        file = tmp_path / f"{method}{len(rest)}.safetensors"
        ended = call("export", out, "--method", method, "--task", "2", "--to", file, *rest)
        assert (ended.code, ended.err) == (0, "")
        assert ("Nothing was cut" in ended.out) == (method == "finetune")
        assert ("ms at batch 256" in ended.out) == bool(rest)
    (full, plain), (small, described) = (
        load_export(tmp_path / f"clnp{n}.safetensors") for n in (0, 1)
    )
    torch.testing.assert_close(small(pixels), full(pixels), rtol=0, atol=1e-5)
    assert "compaction" not in plain
    found = described["compaction"]
    assert found["units"]["before"] == plain["architecture"]["units"]
    assert found["units"]["after"] == described["architecture"]["units"]
    assert found["parameters"]["after"] < found["parameters"]["before"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"--method": "ewc"}, ("--method", "'ewc'", "clnp, finetune")),
        ({"--task": "3"}, ("--task", "3", "clnp/seed-0: 1, 2")),
        ({"--task": "0"}, ("--task", "0", "1, 2")),
        ({"--seed": "7"}, ("--seed", "7", "0")),
        ({"--to": "model.pth"}, (".onnx, .pt2, .safetensors, .mlflow",)),
        ({"--to": "taken.pt2/model.pt2"}, ("taken.pt2",)),
        ({"--to": "taken.pt2"}, ("taken.pt2", "--force")),
    ],
    ids=lambda v: " ".join(*v.items()) if isinstance(v, dict) else "",
)
def test_export_refuses(
    searched: tuple[Path, str],
    call: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.pt2").write_text("mine")
    asked = {"--method": "clnp", "--task": "1", "--to": "model.pt2"} | options
    refused(call("export", searched[0], *(x for pair in asked.items() for x in pair)), *words)
    assert [p.name for p in tmp_path.iterdir()] == ["taken.pt2"]
    assert (tmp_path / "taken.pt2").read_text() == "mine"


def test_wrong_input_through_the_real_entry_point(tmp_path: Path) -> None:
    done = clsearch("run", tmp_path / "none.yaml", cwd=tmp_path)
    refused(Ended(done.returncode, done.stdout, done.stderr), "none.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_is_no_traceback(searched: tuple[Path, str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = clsearch(
            "status", searched[0], capture_output=False, stdout=write, stderr=subprocess.PIPE
        )
    finally:
        os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.slow
def test_doctor_finds_nothing_to_mend_here(tmp_path: Path) -> None:
    done = clsearch("doctor", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = done.stdout.splitlines()
    assert lines[-1] == "Nothing to mend."
    assert all(line.startswith("OK ") for line in lines[:-1])
    for what in ("python", "torch", "torchvision", "ray", "mlflow", "pyarrow", "memory", "digits"):
        assert any(f" {what}: " in line for line in lines), what
    assert any("a task ran in process" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_what_to_mend(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(code: str, *_: str) -> tuple[str, str]:
        return "", "no answer within 120 s"

    monkeypatch.setattr("clsearch.doctor._run", broken)
    ended = call("doctor", "--data", tmp_path / "none")
    assert ended.code == 1
    mend = [line for line in ended.out.splitlines() if line.startswith("mend ")]
    assert [line.split()[1] for line in mend] == ["ray:", "mlflow:", "data:"]
    assert "3 to mend." in ended.out
    assert "--data" in ended.out


@pytest.mark.parametrize(("command", "code"), [(["methods"], 0), (["--help"], 0), (["ui", "x"], 2)])
def test_an_output_that_is_closed_changes_no_exit_code(command: list[str], code: int) -> None:
    """As programs that start others have it."""
    line = shlex.join([sys.executable, "-m", "clsearch", *command])
    done = subprocess.run(
        ["sh", "-c", f"{line} >&-"], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == code
    assert done.stderr.count("\n") == bool(code)


@pytest.mark.parametrize("command", [["methods"], ["--help"], ["status", "{}"]])
def test_an_output_that_takes_nothing_is_one_message(
    searched: tuple[Path, str], command: list[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        done = clsearch(
            *(word.format(searched[0]) for word in command),
            capture_output=False, stdout=full, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert done.returncode == 1
    said = "clsearch: the output cannot be written: No space left on device."
    assert done.stderr == f"{said} Make room there, or send it elsewhere.\n"


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_folder_whose_name_is_not_in_utf_8_is_refused(
    call: Any, tmp_path: Path, more: tuple[str, ...]
) -> None:
    ended = call("run", write_config(tmp_path / "c.yaml"), "--out", tmp_path / "\udcff", *more)
    refused(ended, "out", "UTF-8")
    assert {path.name for path in tmp_path.iterdir()} == {"c.yaml"}


@pytest.mark.parametrize("command", [["sarch"], ["status", "none"], ["status", "none", "--x"]])
def test_wrong_use_that_cannot_be_said_has_its_code(command: list[str], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = clsearch(*command, cwd=tmp_path, capture_output=False, stdout=full, stderr=full)
    assert done.returncode == 2


@pytest.mark.slow
def test_a_search_whose_output_takes_nothing_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for output in ("/dev/full", "a pipe that nobody reads"):
        config = write_config(tmp_path / "c.yaml")
        if output == "/dev/full":
            target = os.open(output, os.O_WRONLY)
        else:
            reader, target = os.pipe()
            os.close(reader)
        done = clsearch(
            "run", config, "--out", out,
            capture_output=False, stdout=target, stderr=subprocess.PIPE,
        )  # fmt: skip
        os.close(target)
        assert done.returncode == 1
        assert done.stderr.startswith("clsearch: the output cannot be written: ")
        assert done.stderr.endswith(f". Go on with: clsearch resume {out}\n")
        assert len(done.stderr.splitlines()) == 1
    assert clsearch("resume", out).returncode == 0


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://user:secret@127.0.0.1:5", "MLFLOW_TRACKING_USERNAME"),
        ("http://", "a host"),
        ("http://[::1", "a host"),
    ],
)
def test_an_address_with_a_password_or_without_a_host_is_refused(
    call: Any, tmp_path: Path, uri: str, said: str
) -> None:
    config = write_config(tmp_path / "c.yaml")
    ended = call("run", config, "--out", tmp_path / "out", "--tracking-uri", uri)
    assert ended.code == 2
    assert said in ended.err
    assert "secret" not in ended.err
    assert not (tmp_path / "out").exists()


def test_an_export_of_a_damaged_commit_says_how_to_mend_it(
    searched: tuple[Path, str], call: Any, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(searched[0], out)
    chosen = json.loads((out / "selections.json").read_text())[0]
    state = out / "checkpoints" / "commits" / chosen["commit"] / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    to = tmp_path / "model.pt2"
    ended = call("export", out, "--method", chosen["method"], "--task", chosen["task"], "--to", to)
    assert ended.code == 1
    assert "SHA-256" in ended.err
    assert f"clsearch resume {out}" in ended.err
    assert not to.exists()
