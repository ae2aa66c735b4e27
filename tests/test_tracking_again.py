"""The audit trail of what is sent or selected again: nothing stands in it twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tracked import (
    CONFIG,
    DIGEST,
    INFO,
    client,
    committed,
    everything,
    finished,
    play,
    runs,
    trial,
)

from clsearch.protocols import Committed
from clsearch.records import (
    Selection,
    TaskResult,
)
from clsearch.tracking import MLflowTracker


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


def test_a_trial_that_was_damaged_on_its_way_is_told_of_its_selection(
    played: Path, out: Path, model: Path, figure: Path
) -> None:
    """By the next search but one in the folder: what waits is told of by its name until it is
    read. So is a selection whose figure, or whose model, was damaged."""
    quiet = MLflowTracker(out)
    quiet._courier.wake = lambda: None  # type: ignore[method-assign]  # nothing is delivered
    play(quiet, model, figure)
    trials = sorted((out / "outbox").glob("*-trial-*.json"))
    trials[0].write_text("{")
    trials[3].unlink()
    trials[3].mkdir()
    first, second = sorted((out / "outbox").glob("*-committed-*.json"))
    first.write_text(first.read_text().replace("0.91", "0.81"))
    program = second.with_suffix(".files") / "model" / "data" / "model.pt2"
    program.write_bytes(program.read_bytes()[:100])
    for search in range(3):
        tracker = MLflowTracker(out)
        play(tracker, model, figure)
        assert tracker.close(60) == 0, tracker.problem
        assert len(tracker.rejected) == (4 if search == 0 else 0)
    wanted, found = ({n: r.data for n, r in runs(client(at)).items()} for at in (played, out))
    assert found.keys() == wanted.keys()
    for name, data in found.items():
        assert data.metrics == wanted[name].metrics, name
        assert data.tags.keys() == wanted[name].tags.keys(), name
    models = [everything(client(at))["models"] for at in (played, out)]
    assert [len(versions) for versions, _ in models] == [2, 2]
    assert not (out / "outbox").exists()
