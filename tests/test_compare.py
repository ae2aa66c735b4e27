"""Two runs beside each other: what differs, and the facts behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import refused
from helpers import searched

from clsearch.compare import compare


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched(tmp_path_factory.mktemp("first") / "out")


def selections(found: dict[str, Any], method: str) -> list[dict[str, Any]]:
    return [s for s in found["selections"] if s["method"] == method]


def reasons(found: dict[str, Any], method: str, task: int = 1) -> str:
    (one,) = (s for s in selections(found, method) if s["task"] == task)
    return "\n".join(one["why"])


def chosen(out: Path, method: str, task: int = 1) -> dict[str, Any]:
    (one,) = (
        s for s in json.loads((out / "selections.json").read_text())
        if (s["method"], s["task"]) == (method, task)
    )  # fmt: skip
    return dict(one)


def test_the_same_search_elsewhere_selected_the_same(first: Path, tmp_path: Path) -> None:
    found = compare(first, searched(tmp_path / "out"))
    assert (found["config"], found["data"], found["chains"]) == ([], [], {"a": [], "b": []})
    assert [s["same"] for s in found["selections"]] == [True] * 4
    assert all(s["why"] == [] for s in found["selections"])
    assert found["runs"]["b"]["finished"]


def test_another_margin(first: Path, tmp_path: Path) -> None:
    second = searched(tmp_path / "out", selection={"margin": 30, "thresholds": 10})
    found = compare(first, second)
    assert found["config"] == [{"field": "selection.margin", "a": 2.0, "b": 30.0}]
    one, two = selections(found, "clnp")
    assert not one["same"]
    assert "the margin is 2 in A and 30 in B, in percentage points" in one["why"]
    for side, out in (("a", first), ("b", second)):
        for name in ("trial_key", "hyperparameters", "threshold", "sparsity", "accuracy"):
            assert one[side][name] == chosen(out, "clnp")[name]
    assert not any("other models" in why for why in one["why"])
    assert "its trials started from other models: the selections differ since task 1" in two["why"]
    for task in (1, 2):
        assert "the model is the same: its method removes nothing" in reasons(
            found, "finetune", task
        )


def test_a_winner_that_the_other_run_has_not_searched(first: Path, tmp_path: Path) -> None:
    lr = chosen(first, "finetune")["hyperparameters"]["lr"]
    (other,) = {0.01, 0.02} - {lr}
    second = searched(tmp_path / "out", search={"grid": {"lr": [other]}})
    found = compare(first, second)
    assert found["config"] == [{"field": "search.grid.lr", "a": [0.01, 0.02], "b": [other]}]
    why = reasons(found, "finetune")
    assert f"A's lr={lr:g} is not among the trials of B" in why
    lost = next(c for c in chosen(first, "finetune")["candidates"] if not c["chosen"])
    assert f"B's lr={other:g} lost in A: {lost['why']}" in why


def test_trials_that_were_trained_otherwise(first: Path, tmp_path: Path) -> None:
    second = searched(tmp_path / "out", training={"epochs": 1, "batch_size": 128})
    found = compare(first, second)
    assert {"field": "training.epochs", "a": 2, "b": 1} in found["config"]
    why = reasons(found, "finetune")
    assert "its trials were trained otherwise: training.epochs differ" in why
    best = [f"{100 * chosen(out, 'finetune')['best']:.2f} %" for out in (first, second)]
    assert f"the best trial reaches {best[0]} in A and {best[1]} in B" in why


def test_a_winner_that_failed_there(tmp_path: Path) -> None:
    """A step of Adam is bounded by the learning rate, one of gradient descent is not."""
    outs = [
        searched(
            tmp_path / optimizer,
            methods=[{"name": "finetune"}],
            scenario={"name": "permuted", "tasks": 1},
            search={"grid": {"lr": rates}},
            training={"epochs": 2, "batch_size": 128, "optimizer": optimizer, "momentum": momentum},
        )
        for optimizer, momentum, rates in (("adam", 0, [3]), ("sgd", 0.99, [0.01, 3]))
    ]
    failed = next(c for c in chosen(outs[1], "finetune")["candidates"] if c["status"] == "FAILED")
    why = reasons(compare(*outs), "finetune")
    assert "its trials were trained otherwise: training.optimizer, training.momentum differ" in why
    assert f"A's lr=3 lost in B: {failed['why']}" in why
    assert "B's lr=0.01 is not among the trials of A" in why


def test_other_data(first: Path, tmp_path: Path) -> None:
    scenario = {"name": "permuted", "tasks": 2, "split_seed": 1}
    found = compare(first, searched(tmp_path / "out", scenario=scenario))
    assert {"field": "scenario.split_seed", "a": 0, "b": 1} in found["config"]
    assert [each["task"] for each in found["data"]] == [1, 2]
    tasks = json.loads((first / "search.json").read_text())["tasks"]
    assert [each["a"]["digest"] for each in found["data"]] == [t["digest"] for t in tasks]
    assert "the data of task 1 is another" in reasons(found, "clnp")


def test_chains_that_both_ended(tmp_path: Path, call: Any) -> None:
    """The same only where they ended for the same reason."""
    methods = [{"name": "finetune"}]
    outs = [
        searched(tmp_path / name, methods=methods, search={"grid": {"lr": rates}})
        for name, rates in (("a", [1e30]), ("b", [1e30, 1e31]))
    ]
    again = searched(tmp_path / "c", methods=methods, search={"grid": {"lr": [1e30]}})
    (other,) = compare(*outs)["selections"]
    reasons = [other[x]["reason"] for x in "ab"]
    assert not other["same"]
    assert other["why"] == [f"{'AB'[i]} selected nothing: {reasons[i]}" for i in (0, 1)]
    ended = call("compare", outs[0], again)
    assert f"task 1 finetune/seed-0: both ended: failed: {reasons[0]}" in ended.out
    assert "0 of 1 selections differ." in ended.out


def test_chains_that_ended_earlier_and_sequences_that_are_shorter(
    first: Path, tmp_path: Path
) -> None:
    methods = [{"name": "finetune"}]
    failed = searched(tmp_path / "failed", methods=methods, search={"grid": {"lr": [1e30]}})
    short = searched(tmp_path / "short", methods=methods, scenario={"name": "permuted", "tasks": 1})
    reason = chosen(failed, "finetune")["reason"]
    why = reasons(compare(first, failed), "finetune", task=2)
    assert why == f"the chain of B ended at task 1: failed: {reason}"
    why = reasons(compare(short, first), "finetune", task=2)
    assert why == "A has no task 2: it is a sequence of 1"


def test_unfinished_runs_and_chains_of_one_alone(first: Path, tmp_path: Path, call: Any) -> None:
    methods = [{"name": "clnp", "grid": {"l1": [1e-5, 1e-4]}}, {"name": "mas"}]
    second = searched(tmp_path / "out", stop_after=7, methods=methods)
    ended = call("compare", first, second, "--json")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    assert found == json.loads(json.dumps(compare(first, second)))
    assert found["chains"] == {"a": ["finetune/seed-0"], "b": ["mas/seed-0"]}
    assert found["runs"]["b"]["unfinished"] == {"clnp/seed-0": 1, "mas/seed-0": 1}
    assert reasons(found, "clnp", 2) == "B has not come to this task"
    ended = call("compare", first, second)
    assert ended.code == 0
    for words in (
        f"B: small in {second}, not finished: clnp/seed-0 has 1 tasks, mas/seed-0 has 1 tasks",
        "in A alone: finetune/seed-0",
        "task 1 clnp/seed-0: the same model",
        "    B: nothing\n    - B has not come to this task",
        "1 of 2 selections differ.",
    ):
        assert words in ended.out


def test_a_run_that_has_not_come_to_its_first_task(first: Path, tmp_path: Path, call: Any) -> None:
    second = searched(tmp_path / "out")
    for name in ("selections.json", "accuracy_matrix.json", "search.json"):
        (second / name).unlink()
    found = compare(first, second)
    assert found["chains"] == {"a": [], "b": []}
    assert {w for s in found["selections"] for w in s["why"]} == {"B has not come to this task"}
    assert "alone" not in call("compare", first, second).out


def test_axes_of_one_grid_alone(first: Path, tmp_path: Path) -> None:
    second = searched(tmp_path / "out", search={"grid": {}})
    changed = {c["field"]: (c["a"], c["b"]) for c in compare(first, second)["config"]}
    assert changed == {"search.grid.lr": ([0.01, 0.02], None)}


def test_a_folder_that_is_no_run(first: Path, tmp_path: Path, call: Any) -> None:
    refused(call("compare", first, tmp_path), "DIR", str(tmp_path), "config.yaml")
    refused(call("compare", tmp_path / "none", first), "DIR", "none")
