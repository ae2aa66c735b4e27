"""The models of a run, exported one by one and all together, and what they say of themselves."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import refused
from helpers import searched, tiny_config
from layouts import LAYOUTS

import clsearch
from clsearch import export, export_all
from clsearch.compare import compare
from clsearch.errors import InputError, StoreError
from clsearch.evaluate import evaluate
from clsearch.exports.files import load_export
from clsearch.exports.formats.base import formats
from clsearch.exports.formats.safetensors import Tensors
from clsearch.exports.standalone import model_of
from clsearch.files import sha256_of
from clsearch.identity import identity
from clsearch.selected import open_selected
from clsearch.system import build_scenario

METHODS = [
    {"name": "finetune"},
    {"name": "from_scratch", "label": "alone"},
    {"name": "clnp", "grid": {"l1": [1e-4]}},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    return searched(out, methods=METHODS, seeds=[3, 4], search={"grid": {"lr": [0.01]}})


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interrupted in its second task."""
    out = tmp_path_factory.mktemp("unfinished") / "out"
    return searched(out, stop_after=7)


def test_a_model_says_where_it_comes_from(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    export(run, "clnp", 2, file, seed=4, licence="CC0")
    about = json.loads((tmp_path / "m.safetensors.json").read_text())
    (chosen,) = (
        s for s in json.loads((run / "selections.json").read_text())
        if (s["method"], s["seed"], s["task"]) == ("clnp", 4, 2)
    )  # fmt: skip
    matrix = json.loads((run / "accuracy_matrix.json").read_text())
    tasks = json.loads((run / "search.json").read_text())["tasks"]
    assert about["metrics"]["test_accuracy"] == matrix["clnp"]["4"][1][1]
    assert about["digests"] == {"trial": chosen["trial_key"], "commit": chosen["commit"]}
    for name in ("margin", "best", "floor", "reason", "hyperparameters", "threshold"):
        assert about["selection"][name] == chosen[name]
    assert about["selection"]["trials"] == {"COMPLETE": 1}
    assert about["task"]["classes"] == list("0123456789")
    assert about["trained_on"]["scenario"] == "permuted"
    assert about["trained_on"]["seed"] == 4
    seen = about["trained_on"]["tasks"]
    assert [t["number"] for t in seen] == [1, 2]
    assert [t["digest"] for t in seen] == [t["digest"] for t in tasks]
    assert {(t["source"], t["train"], t["test"]) for t in seen} == {("digits", 1295, 359)}
    terms = {"source": "digits", "licence": "CC BY 4.0"}
    assert about["licence"] == {"model": "CC0", "data": [{"task": n, **terms} for n in (1, 2)]}
    assert about["versions"]["clsearch"] == clsearch.__version__
    assert about["input"]["permuted"] is True
    assert about["sha256"] == sha256_of(file.read_bytes())


def test_a_method_with_a_model_for_each_task_was_trained_on_that_alone(
    run: Path, tmp_path: Path
) -> None:
    about = export(run, "alone", 2, tmp_path / "m.safetensors")
    assert [t["number"] for t in about["trained_on"]["tasks"]] == [2]
    assert about["licence"]["model"] == "not stated"


def test_a_licence_of_no_words_and_a_folder_that_cannot_be_written_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for write in (export_all, partial(export, method="clnp", task=1)):
        with pytest.raises(InputError, match="licence: ' ' is not allowed"):
            write(run, to=tmp_path / "m.pt2", licence=" ")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    for write in (export_all, partial(export, method="clnp", task=1)):
        with pytest.raises(InputError, match=f"permission to write into {tmp_path}"):
            write(run, to=tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []


def test_what_is_only_looked_at_fetches_nothing(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may come from somebody else, its images be gone; its config says `download`."""
    data, out, asked = tmp_path / "data", tmp_path / "out", []
    LAYOUTS["cifar10"](data)
    scenario = {"name": "split", "source": "cifar10", "root": str(data), "download": True}
    searched(out, scenario={**scenario, "classes_per_task": 5}, methods=[{"name": "finetune"}])
    shutil.rmtree(data)

    def urlopen(request: urllib.request.Request, **_: Any) -> None:
        asked.append(request.full_url)
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    assert call("status", out).code == 0
    model = ("--method", "finetune", "--task", "1", "--to", tmp_path / "m.pt2")
    refused(call("export", out, *model), "scenario.root", str(data))
    assert asked == []
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    refused(call("resume", out), "scenario.download")
    assert len(asked) == 1


def test_licences_of_own_data_are_what_the_config_says(tmp_path: Path) -> None:
    """And saying them later makes no other experiment."""
    LAYOUTS["folder"](tmp_path)
    scenario = {"name": "split", "root": str(tmp_path)}
    first, second = (
        tiny_config(scenario={**scenario, "source": {"name": "folder", "path": "photos", **more}})
        for more in ({}, {"licence": "CC BY 4.0"})
    )
    assert identity(first) == identity(second)
    told = [build_scenario(config).origin(1).terms for config in (first, second)]
    assert told == ["not stated", "CC BY 4.0"]


def test_two_sets_of_own_data_keep_their_licences_and_tell_no_folder(
    tmp_path: Path, call: Any
) -> None:
    """A model that is given away says what it was trained on, not where that lay. Its data is found
    again in the folder that is given."""
    LAYOUTS["folder"](tmp_path)
    (tmp_path / "photos").rename(tmp_path / "more")
    LAYOUTS["folder"](tmp_path)
    terms = {"photos": "CC0", "more": "CC BY 4.0"}
    tasks = [
        {"source": {"name": "folder", "path": str(tmp_path / name), "size": 8, "corrupt": "skip",
                    "licence": licence}}
        for name, licence in terms.items()
    ]  # fmt: skip
    scenario = {"name": "sequence", "root": str(tmp_path), "cache": str(tmp_path), "tasks": tasks}
    out = searched(tmp_path / "out", scenario=scenario, methods=[{"name": "finetune"}])
    file = tmp_path / "m.safetensors"
    about = export(out, "finetune", 2, file)
    assert [each["licence"] for each in about["licence"]["data"]] == list(terms.values())
    found = about["config"]["scenario"]
    assert [task["source"]["path"] for task in found["tasks"]] == list(terms)
    assert str(tmp_path) not in json.dumps(about)
    matrix = json.loads((out / "accuracy_matrix.json").read_text())
    assert evaluate(file, root=tmp_path).value == matrix["finetune"]["0"][1][1]
    ended = call("evaluate", file, "--root", tmp_path / "out")
    refused(ended, "source.path: 'photos'", "is there", "`root` says where its data lies")


@pytest.mark.parametrize("name", ["mlflow", "safetensors"])
def test_all_models_and_an_index(run: Path, tmp_path: Path, name: str, call: Any) -> None:
    ended = call("export", run, "--all", "--to", tmp_path / "all", "--format", name)
    assert (ended.code, ended.err) == (0, "")
    index = json.loads((tmp_path / "all" / "index.json").read_text())
    matrix = json.loads((run / "accuracy_matrix.json").read_text())
    assert (index["run"], index["finished"], index["unfinished"]) == ("small", True, {})
    files = [each["file"] for each in index["models"]]
    assert len(files) == len(set(files)) == 3 * 2 * 2
    assert "alone/seed-4/task-2." + name in files
    for each in index["models"][-2:]:
        path = tmp_path / "all" / each["file"]
        _, about = load_export(path)
        assert about["selection"]["trial_key"] == each["trial"]
        assert each["sha256"] == formats()[name].sha256(path)
        row = matrix[each["method"]][str(each["seed"])][each["task"] - 1]
        assert each["test_accuracy"] == row[each["task"] - 1]
        assert f"{100 * each['test_accuracy']:.2f}" in ended.out
    table = (tmp_path / "all" / "index.md").read_text()
    assert all(f"[{file}]({file})" in table for file in files)
    assert [p.name for p in tmp_path.iterdir()] == ["all"]


def test_all_models_compact(run: Path, tmp_path: Path) -> None:
    export_all(run, tmp_path / "all", format="safetensors", compact=True)
    _, full = load_export(tmp_path / "all" / "finetune" / "seed-3" / "task-1.safetensors")
    _, small = load_export(tmp_path / "all" / "clnp" / "seed-3" / "task-1.safetensors")
    assert full["compaction"]["units"]["before"] == full["compaction"]["units"]["after"]
    assert sum(small["architecture"]["units"].values()) < 36


def test_a_folder_of_models_is_replaced_only_with_force(run: Path, tmp_path: Path) -> None:
    to = tmp_path / "all"
    to.mkdir()
    (to / "mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(InputError):
            export_all(run, to, format="safetensors", force=force)
    assert (to / "mine.txt").read_text() == "mine"
    shutil.rmtree(to)
    export_all(run, to, format="safetensors")
    (to / "clnp" / "seed-3" / "task-1.safetensors").unlink()
    with pytest.raises(InputError, match="--force"):
        export_all(run, to, format="safetensors")
    export_all(run, to, format="safetensors", force=True)
    assert (to / "clnp" / "seed-3" / "task-1.safetensors").exists()
    notes = to / "clnp" / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(InputError, match=r"clnp/notes\.txt was not exported, and is left alone"):
        export_all(run, to, format="safetensors", force=True)
    assert notes.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["all"]


def test_a_disk_that_fills_up_between_models_leaves_the_folder_as_it_was(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to, written = tmp_path / "all", []
    export_all(run, to, format="safetensors")
    before = {p: p.read_bytes() for p in to.rglob("*") if p.is_file()}

    def fails(self: Tensors, place: Path, *rest: Any) -> dict[str, Any]:
        written.append(place)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, place, *rest)

    write = Tensors.write
    monkeypatch.setattr(Tensors, "write", fails)
    with pytest.raises(StoreError, match="nothing was exported"):
        export_all(run, to, format="safetensors", force=True)
    assert {p: p.read_bytes() for p in to.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["all"]


def test_a_folder_is_refused_at_its_first_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be that of the whole system, with more than can be looked at."""
    to, seen = tmp_path / "all", []
    for name in ("a/b", "a/c", "d"):
        (to / name).mkdir(parents=True)
        (to / name / "file").touch()

    def walk(*given: Any, **options: Any) -> Iterator[Any]:
        for folder in os_walk(*given, **options):
            seen.append(folder[0])
            yield folder

    os_walk = os.walk
    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(InputError, match="a/b/file was not exported, and is left alone"):
        export_all(run, to, force=True)
    assert seen == [str(to), str(to / "a"), str(to / "a" / "b")]


def test_an_unfinished_run_gives_what_it_has(unfinished: Path, tmp_path: Path, call: Any) -> None:
    missing = ("export", unfinished, "--method", "clnp", "--task", "2", "--to", "m.pt2")
    refused(call(*missing), "--task", "clnp/seed-0: 1", "not finished", "clsearch resume")
    to = tmp_path / "all"
    ended = call("export", unfinished, "--all", "--to", to, "--format", "onnx")
    assert ended.code == 0
    assert "checked with onnxruntime" in ended.out
    assert "clnp/seed-0 is not finished: it has 1 tasks so far" in ended.out
    index = json.loads((to / "index.json").read_text())
    assert (index["finished"], len(index["models"])) == (False, 2)
    assert all(each["check"]["difference"] < 1e-4 for each in index["models"])
    assert index["unfinished"] == {"finetune/seed-0": 1, "clnp/seed-0": 1}
    assert "was not finished" in (to / "index.md").read_text()


def test_a_run_without_a_selected_model(tmp_path: Path, call: Any) -> None:
    out = searched(tmp_path / "out", stop_after=1)
    refused(
        call("export", out, "--all", "--to", tmp_path / "all"),
        "DIR", "selected models", "not finished", "clsearch resume",
    )  # fmt: skip
    failed = searched(tmp_path / "failed", search={"grid": {"lr": [1e30]}})
    asked = ("--method", "clnp", "--task", "1", "--to", tmp_path / "m.pt2")
    refused(call("export", failed, *asked), "none so far", "ended at task 1: failed")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["failed", "out"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--all", "--method", "clnp"), ("--method", "nothing beside --all")),
        (("--all", "--format", "tflite"), ("--format", "mlflow, onnx, pt2, safetensors")),
        (("--format", "onnx", "--method", "clnp", "--task", "1"), ("--format", "--all")),
        (("--task", "1"), ("--method is missing. Give the model", "--all")),
        (("--method", "clnp"), ("--task is missing. Give the model", "--all")),
    ],
    ids="-".join,
)
def test_options_that_do_not_go_together(
    run: Path, call: Any, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(call("export", run, "--to", tmp_path / "x.pt2", *options), *words)
    assert not list(tmp_path.iterdir())


def test_chains_taken_out_of_the_config_are_no_models_of_the_run(run: Path, tmp_path: Path) -> None:
    """As long as no task is written again, `selections.json` has them."""
    out = tmp_path / "out"
    shutil.copytree(run, out)
    config = yaml.safe_load((out / "config.yaml").read_text())
    (out / "config.yaml").write_text(
        yaml.safe_dump({**config, "methods": config["methods"][:2], "seeds": [4]})
    )
    index = export_all(out, tmp_path / "all", format="safetensors")
    left = [(each["method"], each["seed"]) for each in index["models"]]
    assert sorted(set(left)) == [("alone", 4), ("finetune", 4)]
    assert "clnp/seed-3" in compare(run, out)["chains"]["a"]


def test_a_run_without_its_record_of_tasks_says_how_to_mend_it(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(run, out)
    (out / "search.json").unlink()
    with pytest.raises(StoreError, match=r"search\.json is missing.*clsearch resume"):
        export(out, "clnp", 1, tmp_path / "m.pt2")


def test_the_snippets_of_the_page_run(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/quickstart").symlink_to(run)
    for name in ("pt2", "onnx"):
        export("runs/quickstart", "clnp", 2, f"model.{name}")
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", page, re.S)
    code = "\n".join(snippets)
    exec(compile(code, "docs/export.md", "exec"), {})
    digit, accuracy, same = capsys.readouterr().out.split()
    assert digit in "0123456789"
    matrix = json.loads((run / "accuracy_matrix.json").read_text())
    assert float(accuracy) == matrix["clnp"]["3"][1][1]
    assert same == "True"


def test_what_is_exported_answers_as_what_was_selected(run: Path, tmp_path: Path) -> None:
    chain = open_selected(run, "clnp", 2, seed=4)
    model = model_of(chain.system, chain.state, chain.tasks[-1])
    export(run, "clnp", 2, tmp_path / "m.pt2", seed=4)
    answer, _ = load_export(tmp_path / "m.pt2")
    pixels = torch.randint(0, 17, (9, 1, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(answer(pixels), model(pixels))
