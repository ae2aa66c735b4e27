"""The audit trail: what stands in MLflow after a search."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tracked import (
    DIGEST,
    INFO,
    client,
    committed,
    runs,
    selection,
    trial,
)

from clsearch import audit
from clsearch.notes import table_row
from clsearch.outbox import jsonable
from clsearch.protocols import Committed
from clsearch.records import (
    Round,
    ScanPoint,
    Selection,
    TaskResult,
)
from clsearch.selection import select
from clsearch.tracking import MLflowTracker, store_of


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
