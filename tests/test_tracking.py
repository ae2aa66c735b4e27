"""The audit trail: a real database, a real server, and servers that are dead, hung or refuse."""

from __future__ import annotations

import gc
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from command import arguments
from servers import answering, free_port, server

from clsearch import audit
from clsearch.delivery_process import BEGIN
from clsearch.errors import InputError, StoreError
from clsearch.notes import table_row
from clsearch.outbox import jsonable
from clsearch.protocols import Committed, SearchInfo
from clsearch.records import (
    Candidate,
    LayerCapacity,
    Round,
    ScanPoint,
    Selection,
    TaskResult,
    TrialRecord,
)
from clsearch.selection import select
from clsearch.tracking import MLflowTracker, store_of

DIGEST = "d" * 32
CONFIG = {"scenario": {"name": "permuted", "source": "digits", "root": "/somewhere"}, "seeds": [0]}
TASKS = [
    {"number": n, "name": f"permuted-{n}", "classes": ["a", "b"], "digest": f"{n:032x}",
     "train": 90, "validation": 10, "test": 20}
    for n in (1, 2)
]  # fmt: skip
INFO = SearchInfo("demo", DIGEST, CONFIG, TASKS)


def trial(number: int, task: int = 1, **changes: Any) -> TrialRecord:
    fields: dict[str, Any] = {
        "trial_key": f"{number:032x}",
        "method": "ewc",
        "seed": 0,
        "task": task,
        "hyperparameters": {"lr": 0.001, "strength": 10.0 * number},
        "status": "COMPLETE",
        "validation_accuracy": 0.9 + number / 1000,
        "drift": 0.25,
        "layers": ("fc1", "fc2"),
        "units": (20, 10),
        "free": (5, 2),
        "scan": (ScanPoint(0.0, 0.9, (1, 0)), ScanPoint(0.5, 0.8, (4, 3))),
        "curve": (0.5, 0.7, 0.9),
        "epochs": 3,
        "duration": 2.5,
        "started": 1_700_000_000.0 + number,
    }
    return TrialRecord(**{**fields, **changes})


def selection(number: int, task: int = 1) -> Selection:
    seen = tuple(
        Candidate(
            f"{n:032x}", {"lr": 0.001}, "COMPLETE", 0.9 + n / 1000, 0.5, 0.9, (5, 2), 0.2, 0.1,
            n == number, "leaves the most free" if n == number else "leaves less free",
        )
        for n in (1, 2)
    )  # fmt: skip
    return Selection(
        "ewc", 0, task, "selected", "it leaves the most free capacity", 1.0, 0.902, 0.892,
        f"{number:032x}", {"lr": 0.001, "strength": 10.0 * number}, 0.9 + number / 1000, 0.5, 0.895,
        ("fc1", "fc2"), (20, 10), (5, 2), 7 / 30, seen,
    )  # fmt: skip


def committed(
    number: int, model: Path | None, task: int = 1, figures: Sequence[Path] = ()
) -> Committed:
    account = LayerCapacity("fc1", 20, 15, 6, 4), LayerCapacity("fc2", 10, 8, 3, 0)
    result = TaskResult(
        selection(number, task), f"commit-{number}-{task}", (0.91, None)[:task], (5, 2),
        capacity=account, transfer=task == 2,
    )  # fmt: skip
    before = ("f" * 32, f"commit-{number}-{task - 1}") if task > 1 else (None, None)

    def write(folder: Path) -> None:
        for source in (*(model.iterdir() if model else ()), *figures):
            shutil.copy(source, folder)

    return Committed(result, write if model else None, *before, {"retained": 0.5})


def play(tracker: MLflowTracker, model: Path, figure: Path) -> None:
    """A whole search of two tasks."""
    tracker.start(INFO)
    for task in (1, 2):
        for number in (1, 2):
            tracker.trial(trial(number, task))
        tracker.committed(committed(2, model, task, [figure]))
    tracker.finish([figure], {"average_accuracy/ewc.seed-0": 0.9}, "FINISHED")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
    example = torch.rand(4, 1, 4, 4)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    torch.export.save(program, folder / "model.pt2", extra_files={"metadata.json": '{"task": 1}'})
    np.save(folder / "example.npy", example.numpy())
    return folder


@pytest.fixture(scope="module")
def figure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("figure") / "accuracy.png"
    path.write_text("<svg/>")
    return path


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs, to copy: creating one takes a second or two."""
    out = tmp_path_factory.mktemp("store")
    tracker = MLflowTracker(out)
    tracker.start(SearchInfo("none", "0" * 32, {}, []))
    assert tracker.close(60) == 0
    return out / "mlflow.db"


@pytest.fixture
def out(tmp_path: Path, empty_store: Path) -> Path:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="module")
def played(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, model: Path, figure: Path
) -> Path:
    """The output folder of a finished search. For tests that only look."""
    folder = tmp_path_factory.mktemp("played")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    finished(MLflowTracker(folder, apart=True), model, figure)
    return folder


def finished(tracker: MLflowTracker, model: Path, figure: Path) -> None:
    play(tracker, model, figure)
    assert tracker.close(60) == 0, tracker.problem
    assert tracker.rejected == []


def wait_for_delivery(out: Path) -> None:
    end = time.monotonic() + 60
    while list((out / "outbox").glob("*.json")):
        assert time.monotonic() < end, "nothing was delivered"
        time.sleep(0.05)


def delivering() -> list[psutil.Process]:
    """Processes of this one that deliver."""
    return [process for process in psutil.Process().children() if BEGIN in arguments(process)]


def delivers(number: int) -> bool:
    try:
        return BEGIN in arguments(psutil.Process(number))
    except psutil.NoSuchProcess:
        return False


def client(out: Path, uri: str | None = None) -> Any:
    from mlflow import MlflowClient

    address = store_of(out, uri)[0]
    return MlflowClient(tracking_uri=address, registry_uri=address)


def runs(look: Any) -> dict[str, Any]:
    """Every run of the search, by its name."""
    experiment = look.get_experiment_by_name("demo")
    found = look.search_runs([experiment.experiment_id])
    assert len({run.data.tags["clsearch.key"] for run in found}) == len(found), "duplicates"
    return {run.info.run_name.removesuffix(" · selected"): run for run in found}


def everything(look: Any) -> dict[str, Any]:
    """All a search left in MLflow that a replay must not change."""
    found: dict[str, Any] = {}
    for name, run in runs(look).items():
        history = {
            metric: [
                (m.value, m.step, m.timestamp)
                for m in look.get_metric_history(run.info.run_id, metric)
            ]
            for metric in run.data.metrics
        }
        info = (run.info.run_id, run.info.status, run.info.start_time, run.info.end_time)
        files = sorted(f.path for f in look.list_artifacts(run.info.run_id))
        found[name] = (info, run.data.tags, run.data.params, history, files)
    versions = look.search_model_versions("name = 'demo.ewc.seed-0'")
    registered = look.get_registered_model("demo.ewc.seed-0")
    found["models"] = (sorted((int(v.version), v.source) for v in versions), registered.aliases)
    return found


# What stands in MLflow after a search


def test_runs_are_nested_and_tagged(played: Path) -> None:
    found = runs(client(played))
    assert len(found) == 1 + 2 + 4
    search, task = found["search dddddddd"], found["ewc · seed 0 · task 2"]
    chosen = found["ewc · seed 0 · task 2 · lr=0.001 strength=20"]
    assert task.data.tags["mlflow.parentRunId"] == search.info.run_id
    assert chosen.data.tags["mlflow.parentRunId"] == task.info.run_id
    names = ("search", "method", "seed", "task", "trial_key", "status", "selected", "key")
    for run in found.values():
        assert all(run.data.tags[f"clsearch.{name}"] for name in names)
        assert run.info.status == "FINISHED"
    expected = (DIGEST, "ewc", "0", "2", f"{2:032x}", "COMPLETE", "true")
    assert tuple(chosen.data.tags[f"clsearch.{name}"] for name in names[:-1]) == expected
    selected = [r for r in found.values() if r.data.tags["clsearch.selected"] == "true"]
    assert len(selected) == 2


def test_trial_params_metrics_and_times(played: Path) -> None:
    run = runs(client(played))["ewc · seed 0 · task 1 · lr=0.001 strength=20"]
    assert run.data.params == {
        "method": "ewc", "seed": "0", "task": "1", "lr": "0.001", "strength": "20"
    }  # fmt: skip
    metrics = run.data.metrics
    assert metrics["validation_accuracy"] == 90.2
    assert (metrics["drift"], metrics["duration"], metrics["epochs"]) == (0.25, 2.5, 3)
    assert (run.info.start_time, run.info.end_time) == (1_700_000_002_000, 1_700_000_004_500)


def test_scan_and_epochs_are_stepped_metrics(played: Path) -> None:
    """The step of a scan is the number of neurons it frees."""
    look = client(played)
    run = runs(look)["ewc · seed 0 · task 1 · lr=0.001 strength=10"].info.run_id

    def steps(name: str) -> list[tuple[int, float]]:
        return sorted((m.step, m.value) for m in look.get_metric_history(run, name))

    assert steps("epoch/validation_accuracy") == [(1, 50), (2, 70), (3, 90)]
    assert steps("scan/accuracy") == [(1, 90), (7, 80)]
    assert steps("scan/threshold") == [(1, 0.0), (7, 0.5)]
    assert steps("scan/free.fc2") == [(1, 0), (7, 3)]


def test_names_and_tags_sort_by_task() -> None:
    places = [audit.place_of({"method": "m", "seed": 0, "task": n}, 25) for n in (10, 2)]
    assert sorted(audit.name_of(p) for p in places) == [
        "m · seed 0 · task 02", "m · seed 0 · task 10"
    ]  # fmt: skip
    assert [p["task"] for p in places] == ["10", "02"]


def test_trials_and_selections_are_compared_by_the_same_metrics(played: Path) -> None:
    """And every trial says what came of it. The selected one gives up 90.2 − 89.5 points."""
    found = runs(client(played))
    task, won, lost = (
        found[f"ewc · seed 0 · task 2{end}"]
        for end in ("", " · lr=0.001 strength=20", " · lr=0.001 strength=10")
    )
    assert won.info.run_name.endswith(" · selected")
    for run in (task, won, lost):
        assert set(audit.OUTCOME) < set(run.data.metrics)
    assert task.data.metrics["accuracy_cost"] == pytest.approx(0.7)
    assert lost.data.metrics["accuracy_cost"] == pytest.approx(0.2)
    tags = lost.data.tags
    assert (tags["clsearch.within_margin"], tags["clsearch.why"]) == ("true", "leaves less free")
    assert tags["mlflow.note.content"].startswith("Not selected at [ewc · seed 0 · task 2]")
    assert won.data.tags["mlflow.note.content"] == task.data.tags["mlflow.note.content"]


def test_candidates_are_listed_in_the_order_of_the_selector() -> None:
    """Most free, then smallest drift (NaN is the worst), highest accuracy, first key."""
    scan = (ScanPoint(0.0, 0.9, (5, 2)),)
    records = [
        trial(1, drift=float("nan"), scan=scan),
        trial(2, drift=0.1, scan=scan, validation_accuracy=0.901),
        trial(3, drift=0.1, scan=scan, validation_accuracy=0.903),
        trial(5, drift=0.1, scan=scan, validation_accuracy=0.901),
        trial(4, drift=9.0, scan=(ScanPoint(0.0, 0.9, (5, 3)),)),
    ]
    told = jsonable(select(records, 1.0).to_json())
    listed = [int(c["trial_key"], 16) for c in audit.within_margin(told)]
    assert listed == [4, 3, 2, 5, 1]


def test_what_was_not_measured_is_no_metric() -> None:
    """As in `trials.parquet`: below the floor nothing is pruned, a failed trial has no neurons."""
    failed = trial(3, status="FAILED", reason="nan", units=(), free=(), scan=(), layers=())
    found = select([trial(1), trial(2, validation_accuracy=0.5), failed], 1.0)
    _, below, lost = (
        {name for name, value, _ in audit.outcome_points(c, 0.9, ()) if value is not None}
        for c in jsonable(found.to_json())["candidates"]
    )
    assert below == {"validation_accuracy", "sparsity", "free"}
    assert lost == {"validation_accuracy"}


def test_selection_stands_on_the_run_of_the_task(played: Path, tmp_path: Path) -> None:
    look = client(played)
    run = runs(look)["ewc · seed 0 · task 2"]
    expected = {
        "margin": 1, "best": 90.2, "floor": 89.2, "validation_accuracy": 90.2,
        "pruned_accuracy": 89.5, "sparsity": 23.3333, "threshold": 0.5, "free": 7, "free.fc1": 5,
        "free.fc2": 2, "stored/free": 7, "test_accuracy/task_1": 91, "candidates_within_margin": 2,
        "retained": 50, "capacity/units": 30, "capacity/units.fc1": 20, "capacity/used": 23,
        "capacity/used.fc2": 8, "capacity/new": 9, "capacity/new.fc1": 6, "capacity/reused": 4,
        "capacity/reused.fc2": 0,
    }  # fmt: skip
    assert {k: run.data.metrics[k] for k in expected} == pytest.approx(expected)
    assert not {"test_accuracy/task_2", "test_accuracy"} & set(run.data.metrics)
    assert run.data.params == {"method": "ewc", "seed": "0", "task": "2"}
    tags = run.data.tags
    assert tags["clsearch.outcome"] == "selected"
    assert tags["clsearch.reason"] == "it leaves the most free capacity"
    assert tags["clsearch.seeded_by"] == "f" * 32
    assert tags["clsearch.hyperparameters"] == "lr=0.001 strength=20"
    assert tags["clsearch.transfer"] == "true"
    assert runs(look)["ewc · seed 0 · task 1"].data.tags["clsearch.transfer"] == "false"
    file = look.download_artifacts(run.info.run_id, "selection.json", str(tmp_path))
    assert Selection.from_json(json.loads(Path(file).read_text())) == selection(2, task=2)
    names = [f.path for f in look.list_artifacts(run.info.run_id, "figures")]
    assert names == ["figures/accuracy.png"]


def test_descriptions_answer_and_link(played: Path) -> None:
    """From task to task and to the models and back: every link leads to a run or a version."""
    look = client(played)
    found = runs(look)
    first, second = (found[f"ewc · seed 0 · task {n}"] for n in (1, 2))
    note = second.data.tags["mlflow.note.content"]
    for words in (
        "**Why:** it leaves the most free capacity.",
        "0.70 points given up, of a margin of 1: validation 89.50 % pruned, best 90.20 %",
        "fc1 5 of 20, fc2 2 of 10 neurons",
        "(commit `commit-2-1`)",
        "Within the margin: 2 of 2 trials",
        table_row(("90.10", "90.00", "20.00", "7", "leaves less free")).removeprefix("| "),
        "Last-layer transfer",
    ):
        assert words in note
    linked = set(re.findall(r"/runs/(\w+)\?", note))
    trials = {r.info.run_id for n, r in found.items() if n.startswith("ewc · seed 0 · task 2 ·")}
    assert linked == {first.info.run_id, second.info.run_id} | trials
    assert "(#/models/demo.ewc.seed-0/versions/1), selected at [ewc · seed 0 · task 1]" in note
    assert "(#/models/demo.ewc.seed-0/versions/2)" in note
    assert "`task-" not in note, "a later search may move the alias"
    before = first.data.tags["mlflow.note.content"]
    assert f"[ewc · seed 0 · task 2](#/experiments/{second.info.experiment_id}/" in before
    version = look.get_model_version_by_alias("demo.ewc.seed-0", "task-1")
    assert version.description == before
    assert version.run_id == first.info.run_id
    search = found["search dddddddd"].data.tags["mlflow.note.content"]
    assert "over 2 tasks: permuted-1, permuted-2" in search
    assert f"runs/{second.info.run_id}?workflowType=machine_learning)" in search


def test_data_sets_are_inputs_of_trials_and_selections(played: Path) -> None:
    look = client(played)
    for name, run in runs(look).items():
        inputs = look.get_run(run.info.run_id).inputs.dataset_inputs
        if name.startswith("search"):
            assert inputs == []
            continue
        number = run.data.params["task"]
        seen = {i.tags[0].value: i.dataset for i in inputs}
        assert set(seen) == {"training", "validation"}
        assert seen["training"].name == f"permuted-{number} train"
        assert {d.digest for d in seen.values()} == {f"{int(number):032x}"}
        assert json.loads(seen["training"].source) == {"name": "permuted", "source": "digits"}
        assert json.loads(seen["validation"].profile) == {"samples": 10, "classes": 2}


def test_a_reference_trained_on_all_tasks_names_their_data(out: Path) -> None:
    tracker = MLflowTracker(out)
    tracker.start(replace(INFO, joint=frozenset({"ewc"})))
    tracker.trial(trial(1, task=2))
    assert tracker.close(60) == 0, tracker.problem
    run = runs(client(out))["ewc · seed 0 · task 2 · lr=0.001 strength=10"]
    names = sorted(i.dataset.name for i in run.inputs.dataset_inputs)
    assert names == [f"permuted-{n} {part}" for n in (1, 2) for part in ("train", "validation")]


def test_a_search_lists_its_seeds_as_numbers(out: Path) -> None:
    tracker = MLflowTracker(out)
    tracker.start(INFO)
    for seed in (10, 2):
        result = TaskResult(replace(selection(2), seed=seed), None)
        tracker.committed(Committed(result))
    assert tracker.close(60) == 0, tracker.problem
    note = runs(client(out))["search dddddddd"].data.tags["mlflow.note.content"]
    assert 0 < note.index("seed 2 ·") < note.index("seed 10 ·")


def test_views_are_saved_with_the_hyperparameters_as_columns(played: Path) -> None:
    look = client(played)
    tags = look.get_experiment_by_name("demo").tags
    view = json.loads(tags["mlflow.sharedViewState.clsearch-trials-ewc"])
    state = json.loads(view["state"])
    assert view["name"] == "Trials of ewc"
    assert {"params.`lr`", "params.`strength`", "metrics.`sparsity`"} < set(
        state["selectedColumns"]
    )
    chosen = json.loads(tags["mlflow.sharedViewState.clsearch-selected"])
    query = json.loads(chosen["state"])["searchFilter"]
    found = look.search_runs([look.get_experiment_by_name("demo").experiment_id], query)
    assert sorted(r.info.run_name for r in found) == [
        f"ewc · seed 0 · task {n} · lr=0.001 strength=20 · selected" for n in (1, 2)
    ]
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert "[trials of ewc](#/experiments/" in tags["mlflow.note.content"]


def test_a_changed_description_of_the_experiment_stays(out: Path) -> None:
    look = client(out)
    number = look.create_experiment("demo")
    look.set_experiment_tag(number, "mlflow.note.content", "mine")
    tracker = MLflowTracker(out)
    tracker.start(INFO)
    tracker.trial(trial(2))
    tracker.committed(committed(2, None))
    assert tracker.close(60) == 0, tracker.problem
    assert look.get_experiment(number).tags["mlflow.note.content"] == "mine"


def test_search_run_has_config_report_and_summary(played: Path) -> None:
    look = client(played)
    run = runs(look)["search dddddddd"]
    assert run.data.params["scenario.name"] == "permuted"
    assert run.data.metrics == {"average_accuracy/ewc.seed-0": 90}
    assert run.data.tags["clsearch.status"] == "FINISHED"
    assert {f.path for f in look.list_artifacts(run.info.run_id)} >= {"config.json", "report"}
    assert [f.path for f in look.list_artifacts(run.info.run_id, "report")] == [
        "report/accuracy.png"
    ]
    assert run.info.artifact_uri.startswith((played / "artifacts").as_uri())


def test_failed_trial_keeps_its_reason_and_logs_no_nan(out: Path) -> None:
    tracker = MLflowTracker(out)
    tracker.start(INFO)
    nan = float("nan")
    tracker.trial(
        trial(1, status="FAILED", reason="loss is NaN", validation_accuracy=nan, curve=(0.5, nan))
    )
    tracker.trial(trial(2, status="PRUNED", reason="below the median at epoch 3"))
    failure = Selection("ewc", 0, 1, "failed", "every trial failed", 1.0)
    tracker.committed(Committed(TaskResult(failure, None)))
    tracker.finish([], {}, "FAILED")
    assert tracker.close(60) == 0, tracker.problem
    look = client(out)
    found = runs(look)
    failed = found["ewc · seed 0 · task 1 · lr=0.001 strength=10"]
    assert failed.info.status == "FAILED"
    assert failed.data.tags["clsearch.reason"] == "loss is NaN"
    assert "validation_accuracy" not in failed.data.metrics
    history = look.get_metric_history(failed.info.run_id, "epoch/validation_accuracy")
    assert [(m.step, m.value) for m in history] == [(1, 50)]
    pruned = found["ewc · seed 0 · task 1 · lr=0.001 strength=20"]
    assert (pruned.info.status, pruned.data.tags["clsearch.status"]) == ("FINISHED", "PRUNED")
    task = found["ewc · seed 0 · task 1"]
    assert (task.info.status, task.data.tags["clsearch.outcome"]) == ("FAILED", "failed")
    assert "every trial failed" in task.data.tags["mlflow.note.content"]
    assert found["search dddddddd"].info.status == "FAILED"


# The mlflow client refers to deprecated parts of its own dependencies while it loads a model.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_selected_models_load_without_pickle(
    played: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_of(played, None)[0])
    look = client(played)
    registered = look.get_registered_model("demo.ewc.seed-0")
    assert {k: int(v) for k, v in registered.aliases.items()} == {"task-1": 1, "task-2": 2}
    version = look.get_model_version_by_alias("demo.ewc.seed-0", "task-2")
    assert version.run_id == runs(look)["ewc · seed 0 · task 2"].info.run_id
    logged = look.get_run(version.run_id).outputs.model_outputs
    assert len(logged) == 1
    assert look.get_logged_model(logged[0].model_id).status == "READY"
    pixels = torch.rand(7, 1, 4, 4)
    exported = torch.export.load(model / "model.pt2").module()
    loaded = mlflow.pytorch.load_model("models:/demo.ewc.seed-0@task-2")
    assert torch.equal(loaded(pixels), exported(pixels))
    generic = mlflow.pyfunc.load_model("models:/demo.ewc.seed-0@task-2")
    latest = mlflow.pyfunc.load_model("models:/demo.ewc.seed-0/latest")
    assert latest.metadata.model_id == logged[0].model_id
    one = pixels[:1].numpy()
    assert np.array_equal(generic.predict(one), exported(pixels[:1]).detach().numpy())


# Nothing twice


def test_finished_search_leaves_no_outbox_and_sends_nothing_again(
    played: Path, model: Path, figure: Path
) -> None:
    assert not (played / "outbox").exists()
    before = (played / "mlflow.db").read_bytes()
    finished(MLflowTracker(played), model, figure)
    assert (played / "mlflow.db").read_bytes() == before
    assert not (played / "outbox").exists()


def test_killed_between_delivery_and_removal(
    out: Path, model: Path, figure: Path, tmp_path: Path
) -> None:
    """Every entry comes back although it was delivered: MLflow looks the same after it."""
    quiet = MLflowTracker(out)
    quiet._courier.wake = lambda: None  # type: ignore[method-assign]  # nothing is delivered
    play(quiet, model, figure)
    shutil.copytree(out / "outbox", tmp_path / "kept")
    assert MLflowTracker(out).close(60) == 0
    look = client(out)
    before = everything(look)
    assert len(before) == 8
    shutil.copytree(tmp_path / "kept", out / "outbox")
    shutil.rmtree(out / "checkpoints" / "delivered")
    again = MLflowTracker(out)
    assert again.close(60) == 0, again.problem
    assert again.rejected == []
    assert everything(look) == before
    assert not (out / "outbox").exists()


def test_a_model_is_exported_only_when_it_is_wanted(out: Path, model: Path) -> None:
    """What MLflow has, or what waits for it, is not made again by a resumed search."""
    made = []

    def write(folder: Path) -> None:
        made.append(folder)
        shutil.copytree(model, folder, dirs_exist_ok=True)

    for _ in range(2):
        tracker = MLflowTracker(out)
        tracker.start(INFO)
        for _ in range(2):
            tracker.committed(replace(committed(2, model), write=write))
        assert tracker.close(60) == 0
    assert len(made) == 1
    assert not made[0].exists()


def test_lost_ledger_makes_no_duplicates(out: Path, model: Path, figure: Path) -> None:
    finished(MLflowTracker(out), model, figure)
    look = client(out)
    before = everything(look)
    shutil.rmtree(out / "checkpoints" / "delivered")
    finished(MLflowTracker(out), model, figure)
    after = everything(look)
    assert after["models"] == before["models"]
    assert {k: v[0][0] for k, v in after.items() if k != "models"} == {
        k: v[0][0] for k, v in before.items() if k != "models"
    }


def test_ledger_counts_for_nothing_without_its_database(
    played: Path, tmp_path: Path, model: Path, figure: Path
) -> None:
    shutil.copytree(played / "checkpoints", tmp_path / "checkpoints")
    finished(MLflowTracker(tmp_path), model, figure)
    assert len(runs(client(tmp_path))) == 7


def test_resumed_search_runs_again_and_moves_the_selection(out: Path, model: Path) -> None:
    first = MLflowTracker(out)
    first.start(INFO)
    first.trial(trial(1))
    first.trial(trial(2))
    first.committed(committed(2, model))
    first.finish([], {}, "KILLED")
    assert first.close(60) == 0, first.problem
    look = client(out)
    assert runs(look)["search dddddddd"].info.status == "KILLED"

    second = MLflowTracker(out)
    second.start(INFO)
    second.trial(trial(3))
    second.committed(committed(1, model))
    assert second.close(60) == 0, second.problem
    found = runs(look)
    assert found["search dddddddd"].info.status == "RUNNING"
    chosen = {
        r.data.tags["clsearch.trial_key"]: r.data.tags["clsearch.selected"] for r in found.values()
    }
    assert chosen == {
        "none": "false",
        f"{1:032x}": "true",
        f"{2:032x}": "false",
        f"{3:032x}": "false",
    }
    aliases = look.get_registered_model("demo.ewc.seed-0").aliases
    assert {k: int(v) for k, v in aliases.items()} == {"task-1": 2}
    versions = {n: r.data.tags.get("clsearch.model_version") for n, r in found.items()}
    name = "ewc · seed 0 · task 1 · lr=0.001 strength="
    assert (versions[f"{name}10"], versions[f"{name}20"]) == ("2", "none")
    assert found[f"{name}20"].data.tags["clsearch.model"] == "none"

    third = MLflowTracker(out)
    third.start(INFO)
    third.finish([], {}, "KILLED")
    assert third.close(60) == 0, third.problem
    assert runs(look)["search dddddddd"].info.status == "KILLED"


def test_a_wider_margin_in_the_same_folder_replaces_what_the_first_showed(
    out: Path, model: Path
) -> None:
    """The second search ends at task 2: no alias, view or duration of it is the first one's."""
    wider = replace(INFO, digest="e" * 32)
    depleted = Selection("ewc", 0, 2, "depleted", "no neurons are left", 2.0)
    kept = []
    for info, ends in (
        (INFO, committed(2, model, 2)),
        (wider, Committed(TaskResult(depleted, None))),
    ):
        tracker = MLflowTracker(out)
        tracker.start(info)
        tracker.trial(trial(2))
        tracker.committed(committed(2, model))
        tracker.committed(ends)
        assert tracker.close(60) == 0, tracker.problem
        kept.append(client(out).get_registered_model("demo.ewc.seed-0").aliases)
    assert [{k: int(v) for k, v in a.items()} for a in kept] == [
        {"task-1": 1, "task-2": 2}, {"task-1": 3}
    ]  # fmt: skip
    look = client(out)
    experiment = look.get_experiment_by_name("demo")
    for view, count in (("selections", 2), ("selected", 1), ("trials-ewc", 1)):
        saved = json.loads(experiment.tags[f"mlflow.sharedViewState.clsearch-{view}"])
        state = json.loads(saved["state"])
        assert "metrics.`margin`" in state["selectedColumns"]
        found = look.search_runs([experiment.experiment_id], state["searchFilter"])
        assert [r.data.tags["clsearch.search"] for r in found] == [wider.digest] * count
        assert all(r.data.metrics["margin"] in (1, 2) for r in found)
    first, second = (
        look.search_runs([experiment.experiment_id], f"tags.`clsearch.key` = '{key}'")[0].info
        for key in (wider.digest, f"{wider.digest}/ewc/0/1")
    )
    assert second.start_time >= first.start_time > 1_700_000_003_000, "not that of the old trial"


def test_a_search_leaves_no_alias_of_another_at_later_tasks(out: Path, model: Path) -> None:
    """And its own, of which nothing new is sent, stay where they are."""
    look = client(out)
    for info, aliases in (
        (INFO, {"task-1", "task-2"}),
        (replace(INFO, digest="e" * 32), {"task-1"}),
    ):
        tracker = MLflowTracker(out)
        tracker.start(info)
        for task in range(len(aliases), 0, -1):  # the first task last, as of a trial made again
            tracker.committed(committed(2, model, task))
        assert tracker.close(60) == 0, tracker.problem
        assert set(look.get_registered_model("demo.ewc.seed-0").aliases) == aliases


def test_the_winner_of_the_grid_says_what_it_was_fine_tuned_to(out: Path) -> None:
    """And a model that was fine-tuned and not kept says that."""
    rounds = tuple(Round(f"{n:032x}", 0.89, 0.9, 0.2, n == 3, f"round of {n}") for n in (3, 4))
    chosen = replace(selection(2), trial_key=f"{3:032x}", rounds=rounds)
    tracker = MLflowTracker(out)
    tracker.start(INFO)
    for record in (trial(1), trial(2), *(trial(n, fine_tuned=f"{2:032x}") for n in (3, 4))):
        tracker.trial(record)
    tracker.committed(Committed(TaskResult(chosen, None)))
    assert tracker.close(60) == 0, tracker.problem
    tags = {int(r.data.tags["clsearch.trial_key"].replace("none", "0"), 16): r.data.tags
            for r in runs(client(out)).values()}  # fmt: skip
    notes = {n: tags[n]["mlflow.note.content"] for n in (1, 2, 3, 4)}
    assert notes[1].startswith("Not selected at [ewc · seed 0 · task 1]")
    assert notes[2].startswith("Selected at [ewc · seed 0 · task 1]")
    assert "Then fine-tuned to [ewc · seed 0 · task 1 · lr=0.001 strength=30" in notes[2]
    assert "**Why:**" in notes[3]
    assert "round of 4" in notes[4]
    assert [n for n in tags if tags[n]["clsearch.selected"] == "true"] == [3]


def test_what_a_failure_left_undone_is_done_by_the_next_attempt(
    out: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the creation of a run is lost, and a server goes away between two batches of
    parameters."""
    from mlflow import MlflowClient

    create_run, log_batch = MlflowClient.create_run, MlflowClient.log_batch
    failed: set[str] = set()

    def fail(what: str) -> None:
        if what not in failed:
            failed.add(what)
            raise ConnectionError(what)

    def create(self: Any, *arguments: Any) -> Any:
        made = create_run(self, *arguments)
        if made.info.run_name == "ewc · seed 0 · task 2":
            fail("create")
        return made

    def log(self: Any, run: str, metrics: Any, params: Any, tags: Any) -> None:
        if "many.149" in {p.key for p in params}:
            fail("log")
        log_batch(self, run, metrics, params, tags)

    monkeypatch.setattr(MlflowClient, "create_run", create)
    monkeypatch.setattr(MlflowClient, "log_batch", log)
    tracker = MLflowTracker(out)
    tracker.start(replace(INFO, config={**CONFIG, "many": list(range(150))}))
    tracker.committed(committed(2, model))
    tracker.trial(trial(1, task=2))
    assert tracker.close(60) == 0, tracker.problem
    assert failed == {"create", "log"}
    look = client(out)
    found = runs(look)
    assert found["search dddddddd"].data.params["many.149"] == "149"
    second = found["ewc · seed 0 · task 2"]
    assert second.data.params == {"method": "ewc", "seed": "0", "task": "2"}
    note = found["ewc · seed 0 · task 1"].data.tags["mlflow.note.content"]
    assert f"/runs/{second.info.run_id}?" in note
    assert look.get_model_version_by_alias("demo.ewc.seed-0", "task-1").description == note


@pytest.fixture
def thawed() -> None:
    """Whatever a test before, whose search was never over, told the garbage collector."""
    gc.unfreeze()


@pytest.mark.usefixtures("thawed")
def test_garbage_of_exports_is_found_soon_and_only_while_a_search_goes_on(
    out: Path, model: Path
) -> None:
    """However much there was before the first export: here a million objects, of which a quarter
    would have to come anew before the collector looks at all."""
    held = [[] for _ in range(1_000_000)]  # type: ignore[var-annotated]
    gc.collect()
    tracker = MLflowTracker(out)
    tracker.start(INFO)
    full = 0

    def count(phase: str, info: dict[str, int]) -> None:
        nonlocal full
        full += phase == "stop" and info["generation"] == 2

    tracker.committed(committed(2, model))
    before = gc.get_freeze_count()
    assert before > len(held)
    gc.callbacks.append(count)
    try:
        for _ in range(150_000):
            cycle: list[Any] = []
            cycle.append(cycle)
        assert full
        tracker.committed(committed(2, model, 2))
        assert gc.get_freeze_count() <= before  # none is let be a second time
    finally:
        gc.callbacks.remove(count)
        waiting = tracker.close(60)
    assert (waiting, gc.get_freeze_count()) == (0, 0)


def test_what_others_told_the_garbage_collector_stays(out: Path, model: Path) -> None:
    gc.freeze()
    try:
        tracker = MLflowTracker(out)
        tracker.start(INFO)
        tracker.committed(committed(2, model))
        assert tracker.close(60) == 0, tracker.problem
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


def test_trial_sent_after_its_selection_is_selected(out: Path) -> None:
    tracker = MLflowTracker(out)
    tracker.start(INFO)
    tracker.committed(committed(2, None))
    tracker.trial(trial(2))
    assert tracker.close(60) == 0, tracker.problem
    run = runs(client(out))["ewc · seed 0 · task 1 · lr=0.001 strength=20"]
    assert run.data.tags["clsearch.selected"] == "true"


def after_two_tasks(out: Path) -> MLflowTracker:
    """A tracker that was told of two tasks, of which each has selected the second of two trials."""
    tracker = MLflowTracker(out)
    tracker.start(INFO)
    for task in (1, 2):
        tracker.trial(trial(1, task))
        tracker.trial(trial(2, task))
        tracker.committed(committed(2, None, task))
    return tracker


def test_trials_before_the_task_just_selected_take_no_memory_and_are_found_again(
    out: Path,
) -> None:
    tracker = after_two_tasks(out)
    tracker.trial(trial(2, 1, duration=3.0))
    assert tracker.close(60) == 0, tracker.problem
    (search,) = tracker._delivery._searches.values()
    kept = {run.tags["clsearch.task"] for run in search._runs.runs.values()}
    again = f"{DIGEST}/ewc/0/1/{2:032x}"
    assert again in search._runs.runs
    gone = {key for key in search._runs.runs if key.startswith(f"{DIGEST}/ewc/0/1/")} - {again}
    assert (gone, kept) == (set(), {"all", "1", "2"})
    found = runs(client(out))  # asserts that no key has two runs
    assert len(found) == 7
    first = found["ewc · seed 0 · task 1 · lr=0.001 strength=20"]
    assert (first.data.metrics["duration"], first.data.tags["clsearch.selected"]) == (3.0, "true")


def test_run_created_twice_by_a_lost_answer_is_one_again(out: Path) -> None:
    tracker = MLflowTracker(out)
    tracker.start(INFO)
    tracker.trial(trial(1))
    assert tracker.close(60) == 0, tracker.problem
    look = client(out)
    run = runs(look)["ewc · seed 0 · task 1 · lr=0.001 strength=10"]
    look.create_run(run.info.experiment_id, 1, run.data.tags, run.info.run_name)
    tracker = MLflowTracker(out)
    tracker.start(INFO)
    tracker.trial(trial(2))
    assert tracker.close(60) == 0, tracker.problem
    assert runs(look)["ewc · seed 0 · task 1 · lr=0.001 strength=10"].info.run_id == run.info.run_id


def test_long_histories_are_logged_in_batches(out: Path) -> None:
    tracker = MLflowTracker(out)
    tracker.start(INFO)
    scan = tuple(ScanPoint(i / 100, 0.5, (i, i)) for i in range(100))
    tracker.trial(trial(1, scan=scan, curve=tuple(i / 700 for i in range(700))))
    assert tracker.close(60) == 0, tracker.problem
    look = client(out)
    run = runs(look)["ewc · seed 0 · task 1 · lr=0.001 strength=10"].info.run_id
    assert len(look.get_metric_history(run, "epoch/validation_accuracy")) == 700
    assert len(look.get_metric_history(run, "scan/free.fc2")) == 100


def test_a_layers_own_strength_is_a_parameter(out: Path) -> None:
    tracker = MLflowTracker(out)
    tracker.start(INFO)
    tracker.trial(trial(1, hyperparameters={"lr": 0.001, "l1.conv1": 1e-5}))
    assert tracker.close(60) == 0
    (run,) = (run for name, run in runs(client(out)).items() if "l1.conv1=1e-05" in name)
    assert run.data.params["l1.conv1"] == "1e-05"


# Entries that MLflow refuses, and folders that cannot be written


@pytest.mark.parametrize("apart", [False, True])
def test_refused_entry_is_set_aside_with_its_reason(out: Path, apart: bool) -> None:
    tracker = MLflowTracker(out, apart=apart)
    tracker.start(INFO)
    tracker.trial(trial(1, hyperparameters={"a name that is far too long" * 20: 1.0}))
    tracker.trial(trial(2))
    assert tracker.close(60) == 0
    (kept,) = tracker.rejected
    content = json.loads(kept.read_text())
    assert "exceeds the maximum length" in content["reason"]
    assert json.loads(content["entry"])["body"]["trial_key"] == f"{1:032x}"
    assert "ewc · seed 0 · task 1 · lr=0.001 strength=20" in runs(client(out))


def test_damaged_entry_does_not_block_the_queue(out: Path) -> None:
    folder = out / "outbox"
    folder.mkdir()
    (folder / "00000001-trial-abc.json").write_text('{"kind": "trial", "bo')
    (folder / ".00000002-trial-abd.json.tmp").write_text("half")
    (folder / "00000002-trial-abd.files").mkdir()
    tracker = MLflowTracker(out)
    tracker.start(INFO)
    tracker.trial(trial(1))
    assert tracker.close(60) == 0
    assert "is not valid JSON" in tracker.rejected[0].read_text()
    assert len(runs(client(out))) == 3
    assert [f.name for f in folder.iterdir()] == ["rejected"]


def test_a_task_selected_again_has_one_selected_trial_and_remembers_the_others(out: Path) -> None:
    """As when a lost trial is trained after all, and wins, once its runs were let go of."""
    tracker = after_two_tasks(out)
    tracker.committed(committed(1, None, 1))
    assert tracker.close(60) == 0, tracker.problem
    tags = [run.data.tags for run in runs(client(out)).values()]
    chosen = [
        (t["clsearch.task"], t["clsearch.trial_key"])
        for t in tags
        if t["clsearch.kind"] == "trial" and t["clsearch.selected"] == "true"
    ]
    assert sorted(chosen) == [("1", f"{1:032x}"), ("2", f"{2:032x}")]


def test_full_disk_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    tracker = MLflowTracker(tmp_path, "http://127.0.0.1:9")
    tracker.start(INFO)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        tracker.trial(trial(1))
    monkeypatch.undo()
    assert len(list((tmp_path / "outbox").iterdir())) == 1
    tracker.trial(trial(1))
    assert tracker.close(0) == 2
    with pytest.raises(StoreError, match="nowhere"):
        tracker.finish([tmp_path / "nowhere.svg"], {}, "FINISHED")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no folder for temporary files"))
    with pytest.raises(StoreError, match="no folder"):
        tracker.trial(trial(2))


@pytest.mark.usefixtures("thawed")
def test_an_interrupted_end_ends_all_the_same(out: Path, model: Path) -> None:
    tracker = MLflowTracker(out, apart=True)
    tracker.start(INFO)
    tracker.committed(committed(2, model))
    for number in range(200):
        tracker.trial(trial(number))
    end, main = time.monotonic() + 60, threading.get_ident()
    while len(list((out / "outbox").glob("*.json"))) > 200:  # it is at work
        assert time.monotonic() < end
        time.sleep(0.01)
    threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        tracker.close(60)
    assert gc.get_freeze_count() == 0
    while delivering():
        assert time.monotonic() < end, "it delivers what it had begun, and no more"
        time.sleep(0.1)
    time.sleep(1)
    left = len(list((out / "outbox").glob("*.json")))
    assert left > 100
    time.sleep(1)
    assert len(list((out / "outbox").glob("*.json"))) == left
    assert not delivering()


@pytest.mark.parametrize("name", ["what?", "50%41"])
def test_a_folder_that_is_no_path_within_an_address_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"out: .* Allowed: a folder without \? and %"):
        MLflowTracker(tmp_path / name / "out")
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_is_named(out: Path) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri.*'\./mlruns' is not allowed"):
        MLflowTracker(out, "./mlruns")
    for wrong in ("sqlite://", "sqlite:///", "sqlite:///file:/a/m.db?uri=true", "sqlite:///a%41"):
        with pytest.raises(InputError, match=r"tracking\.uri.*sqlite:///PATH"):
            MLflowTracker(out, wrong)
    tracker = MLflowTracker(out)
    with pytest.raises(RuntimeError, match="start"):
        tracker.trial(trial(1))
    tracker.start(INFO)
    with pytest.raises(InputError, match="status"):
        tracker.finish([], {}, "DONE")
    tracker.close(60)


@pytest.mark.parametrize(
    ("uri", "step"),
    [
        ("http://me:secret@host:5000", "MLFLOW_TRACKING_PASSWORD"),
        ("postgresql://me:secret@host/db", "PGPASSWORD"),
        ("postgresql+psycopg2://me:se/cret@host/db", "PGPASSWORD"),
        ("postgresql://host/db?password=secret", "PGPASSWORD"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret", "a server"),
        ("postgres://me:secret@host/db", "postgresql"),
        ("http://host:5000?sig=secret", "MLFLOW_TRACKING_TOKEN"),
        ("https://host/mlflow/#secret", "MLFLOW_TRACKING_TOKEN"),
        ("https://host/mlflow;token=secret", "MLFLOW_TRACKING_TOKEN"),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(
    tmp_path: Path, uri: str, step: str
) -> None:
    with pytest.raises(InputError) as refused:
        MLflowTracker(tmp_path, uri)
    assert step in str(refused.value)
    assert not re.search(r"se/?cret|cret@", str(refused.value))


# Servers


@pytest.mark.slow
# The mlflow client refers to deprecated parts of its own dependencies while it loads a model.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dead_server_gets_everything_once_when_it_comes_up(
    tmp_path: Path, model: Path, figure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    port = free_port()
    uri, out = f"http://127.0.0.1:{port}", tmp_path / "out"
    tracker = MLflowTracker(out, uri, apart=True)
    began = time.monotonic()
    play(tracker, model, figure)
    assert time.monotonic() - began < 5
    assert tracker.close(15) == 8
    assert "Connection refused" in tracker.problem
    shutil.copytree(out / "outbox", tmp_path / "kept")
    with server(tmp_path, port):
        answering(port)
        finished(MLflowTracker(out, uri, apart=True), model, figure)
        look = client(out, uri)
        before = everything(look)
        assert len(before) == 8
        assert not (out / "outbox").exists()
        # Killed before it could note what it had delivered, then resumed.
        shutil.copytree(tmp_path / "kept", out / "outbox")
        shutil.rmtree(out / "checkpoints" / "delivered")
        finished(MLflowTracker(out, uri), model, figure)
        assert everything(look) == before
        # And a resume that has nothing new does not even ask the server.
        silent = MLflowTracker(out, uri)
        finished(silent, model, figure)
        assert silent._courier._thread is None
        monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        pixels = torch.rand(5, 1, 4, 4)
        loaded = mlflow.pytorch.load_model("models:/demo.ewc.seed-0@task-1")
        exported = torch.export.load(model / "model.pt2").module()
        assert torch.equal(loaded(pixels), exported(pixels))


def test_hung_server_blocks_nothing(tmp_path: Path, model: Path, figure: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        tracker = MLflowTracker(tmp_path, address, apart=True)
        began = time.monotonic()
        play(tracker, model, figure)
        assert time.monotonic() - began < 5
        began = time.monotonic()
        assert tracker.close(1) == 8
        assert time.monotonic() - began < 5
    assert len(list((tmp_path / "outbox").glob("*.json"))) == 8


def test_a_process_that_delivers_and_dies_is_followed_by_another(
    out: Path, model: Path, figure: Path
) -> None:
    tracker = MLflowTracker(out, apart=True)
    tracker.start(INFO)
    tracker.trial(trial(1))
    wait_for_delivery(out)
    first = tracker._delivery._process  # type: ignore[union-attr]
    assert first is not None
    first.kill()
    finished(tracker, model, figure)
    assert len(runs(client(out))) == 7
    assert tracker.problem == ""
    assert not psutil.pid_exists(first.pid)


def test_the_process_that_delivers_ends_with_the_search_however_that_ends(tmp_path: Path) -> None:
    """Even while it waits for a server that never answers."""
    program = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from clsearch.tracking import MLflowTracker
tracker = MLflowTracker(Path(sys.argv[1]), sys.argv[2], apart=True)
tracker.start(SimpleNamespace(name="demo", digest="d" * 32, config={}, tasks=[], joint=()))
sys.stdin.readline()
print(tracker._delivery._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-c", program, tmp_path, address]
        search = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        listener.settimeout(30)
        connection, _ = listener.accept()  # it asks the server, and waits
        said, _ = search.communicate("go on\n", timeout=30)
        assert search.returncode == -signal.SIGKILL
        end = time.monotonic() + 5
        while delivers(int(said)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not delivers(int(said))
        connection.close()


def test_a_process_that_cannot_be_started_refuses_nothing(
    out: Path, model: Path, figure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment that is made anew under a search: its interpreter is not there for a while."""
    with monkeypatch.context() as away:
        away.setattr(sys, "executable", str(out / "python"))
        tracker = MLflowTracker(out, apart=True)
        play(tracker, model, figure)
        end = time.monotonic() + 30
        while not tracker.problem and time.monotonic() < end:
            time.sleep(0.01)
        assert "that delivers to MLflow cannot be started" in tracker.problem
    assert tracker.close(60) == 0, tracker.problem
    assert tracker.rejected == []
    assert len(runs(client(out))) == 7


def test_what_is_printed_in_the_process_that_delivers_is_no_answer(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('[\"\", false]', flush=True)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    tracker = MLflowTracker(out, apart=True)
    tracker.start(INFO)
    tracker.trial(trial(1, hyperparameters={"a name that is far too long" * 20: 1.0}))
    tracker.trial(trial(2))
    assert tracker.close(60) == 0, tracker.problem
    (kept,) = tracker.rejected
    assert "exceeds the maximum length" in json.loads(kept.read_text())["reason"]
    assert capfd.readouterr().out == ""


def test_signals_to_the_whole_group_leave_the_process_that_delivers_alone(tmp_path: Path) -> None:
    """Ctrl-C in a terminal is for the search, from the first moment on."""
    program = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from clsearch.tracking import MLflowTracker
signal.signal(signal.SIGINT, lambda *_: None)
tracker = MLflowTracker(Path(sys.argv[1]), apart=True)
tracker.start(SimpleNamespace(name="demo", digest="d" * 32, config={}, tasks=[], joint=()))
while tracker._delivery._process is None:
    time.sleep(0.001)
first = tracker._delivery._process
for _ in range(20):
    os.killpg(0, signal.SIGINT)
    time.sleep(0.05)
assert tracker.close(60) == 0, tracker.problem
assert first.returncode == 0, first.returncode
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "out"],
        capture_output=True, timeout=120, check=False, start_new_session=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.slow
def test_driver_starts_at_once_and_the_terminal_stays_clean(tmp_path: Path) -> None:
    """In a fresh process: no import of mlflow or torch, no line on the terminal, a new database."""
    program = """
import sys, time
from pathlib import Path
began = time.monotonic()
from clsearch.tracking import MLflowTracker
tracker = MLflowTracker(Path(sys.argv[1]), sys.argv[2] if sys.argv[2:] else None, apart=True)
assert not {"mlflow", "torch"} & set(sys.modules)
from types import SimpleNamespace
tracker.start(SimpleNamespace(name="demo", digest="d" * 32, config={}, tasks=[], joint=()))
assert time.monotonic() - began < 5
left = tracker.close(60)
assert "mlflow" not in sys.modules  # its client is in a process of its own
sys.exit(left)
"""
    command = [sys.executable, "-c", program]
    local = subprocess.run(
        [*command, tmp_path / "a"], capture_output=True, timeout=120, check=False
    )
    assert (local.returncode, local.stdout, local.stderr) == (0, b"", b"")
    assert len(runs(client(tmp_path / "a"))) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    dead = [*command, tmp_path / "b", f"http://127.0.0.1:{free_port()}"]
    away = subprocess.run(dead, capture_output=True, timeout=120, check=False)
    assert (away.returncode, away.stdout, away.stderr) == (1, b"", b"")


def test_system_metrics_are_sampled_into_the_run_of_the_search(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On request, by one thread that ends with the search; a resumed search goes on with them."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    look, others = client(out), {*delivering()}
    counts = []
    for number in (1, 2):
        tracker = MLflowTracker(out, system_metrics=True, apart=number == 2)
        tracker.start(INFO)
        tracker.trial(trial(number))
        wait_for_delivery(out)
        time.sleep(0.5)
        tracker.finish([], {}, "FINISHED")
        assert tracker.close(60) == 0, tracker.problem
        assert "SystemMetricsMonitor" not in {thread.name for thread in threading.enumerate()}
        assert {*delivering()} <= others
        run = runs(look)["search dddddddd"].info.run_id
        history = look.get_metric_history(run, "system/cpu_utilization_percentage")
        assert len({m.step for m in history}) == len(history)
        counts.append(len(history))
    assert 1 <= counts[0] < counts[1]
    assert not [m for m in runs(look)["ewc · seed 0 · task 1"].data.metrics if "system" in m]


def test_what_waits_of_another_search_gets_no_system_metrics(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    killed = MLflowTracker(out)
    killed._courier.wake = lambda: None  # type: ignore[method-assign]  # nothing is delivered
    killed.start(SearchInfo("killed", "e" * 32, CONFIG, TASKS))
    tracker = MLflowTracker(out, system_metrics=True)
    tracker.start(INFO)
    time.sleep(1)
    assert tracker.close(60) == 0, tracker.problem
    look = client(out)
    sampled = {}
    for name in ("killed", "demo"):
        (run,) = look.search_runs([look.get_experiment_by_name(name).experiment_id])
        sampled[name] = "system/cpu_utilization_percentage" in run.data.metrics
    assert sampled == {"killed": False, "demo": True}
