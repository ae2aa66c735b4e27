"""The descriptions in MLflow: what they hold of large searches, and of selections of every kind."""

from __future__ import annotations

from typing import Any

import pytest

from clsearch.mlflow_runs import LONGEST
from clsearch.notes import (
    MOST_ROWS,
    Around,
    TaskRow,
    compare_link,
    lost_note,
    run_link,
    search_note,
    selection_note,
    table_row,
    version_link,
    view_link,
    with_next,
)

TASK = run_link("ewc · seed 0 · task 3", "1", "a" * 32)


def candidate(number: int, **changes: Any) -> dict[str, Any]:
    fields = {
        "trial_key": f"{number:032x}", "hyperparameters": {"lr": 0.001, "strength": 10.0 * number},
        "status": "COMPLETE", "validation_accuracy": 0.95, "accuracy": 0.94, "free": (number, 0),
        "sparsity": 0.1, "drift": 1.0, "chosen": False,
        "why": f"leaves {number} free neurons, {400 - number} fewer than the selected",
    }  # fmt: skip
    return {**fields, **changes}


def body(*candidates: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A selection of the last candidate, as the tracker sends it."""
    won = {**candidates[-1], "chosen": True}
    chosen = {
        **won, "method": "ewc", "seed": 0, "task": 3, "outcome": "selected",
        "reason": f"trial {won['trial_key']} leaves the most", "margin": 2.0, "best": 0.96,
        "floor": 0.94, "layers": ("fc1", "fc2"), "units": (1000, 1000), "rounds": (),
        "candidates": [*candidates[:-1], won],
    }  # fmt: skip
    return {
        "selection": chosen, "commit": "c" * 32, "parent": "b" * 32, "capacity": [],
        "test": [0.9, 0.8, 0.7], "transfer": False, **changes,
    }  # fmt: skip


def around(count: int) -> Around:
    trials = {
        f"{n:032x}": run_link(
            f"ewc · seed 0 · task 3 · lr=0.001 strength={10 * n}", "1", f"{n:032x}"
        )
        for n in range(count)
    }
    return Around(
        TASK, trials, version_link("demo.ewc.seed-0", "3"),
        run_link("ewc · seed 0 · task 2", "1", "b" * 32), version_link("demo.ewc.seed-0", "2"),
        compare=(compare_link("compare them", "1", [f"{n:032x}" for n in range(12)]),
                 view_link("all trials of ewc", "1", "clsearch-trials-ewc", "CHART")),
    )  # fmt: skip


def test_a_description_of_many_candidates_fits() -> None:
    note = selection_note(body(*map(candidate, range(400))), around(400))
    assert len(with_next(note, TASK)) < LONGEST
    assert "Within the margin: 400 of 400 trials" in note
    assert note.count("fewer than the selected |") == MOST_ROWS - 1
    assert f"And {400 - MOST_ROWS} more, in `selection.json`." in note


def test_a_description_of_many_tasks_fits_and_says_what_is_left_out() -> None:
    numbers = {"pruned_accuracy": 95.5, "accuracy_cost": 0.5, "sparsity": 12.0, "free": 240.0}
    rows = [
        TaskRow(run_link(f"ewc · seed 0 · task {n:02}", "1", "a" * 32), "selected", "lr=1", numbers)
        for n in range(1, 251)
    ]
    note = search_note("d" * 32, [f"permuted-{n}" for n in range(1, 26)], rows, [TASK])
    assert len(note) < LONGEST
    shown = note.count(
        table_row(("lr=1", "95.50", "0.50", "12.0", "240", "", "")).removeprefix("| ")
    )
    assert f"And {250 - shown} more: see the views." in note
    assert shown > 15


def test_what_lost_is_counted() -> None:
    lost = (
        candidate(1, accuracy=None, validation_accuracy=0.93),
        candidate(2, accuracy=None, validation_accuracy=0.91),
        candidate(3, accuracy=None, validation_accuracy=None, status="FAILED"),
    )
    note = selection_note(body(*lost, candidate(4)), around(5))
    assert "Within the margin: 1 of 4 trials" in note
    assert "Not within it: 2 below the floor, best 93.00 %; 1 failed." in note
    told = lost_note(lost[0], "x", TASK)
    assert told.startswith(f"Not selected at {TASK}: leaves 1 free neurons")


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        (0.945, "1.50 points given up"),
        (0.96, "0.00 points"),
        (0.967, "none: 0.70 points above best"),
    ],
)
def test_the_cost_is_what_is_given_up_of_the_best(accuracy: float, said: str) -> None:
    note = selection_note(body(candidate(1, accuracy=accuracy)), around(2))
    assert f"{said}" in note
    assert "of a margin of 2: validation" in note


def test_capacity_is_the_account_where_a_method_keeps_one() -> None:
    account = [{"layer": "fc1", "units": 1000, "used": 900, "new": 1, "reused": 0, "free": 100}]
    note = selection_note(body(candidate(7), capacity=account), around(8))
    assert "fc1 100 of 1000 neurons (no task so far needs them)" in note
    assert "fc1 7 of 1000, fc2 0 of 1000 neurons (free within the margin" in selection_note(
        body(candidate(7)), around(8)
    )


def test_the_first_task_starts_from_scratch() -> None:
    assert table_row(("Started from", "scratch")) in selection_note(
        body(candidate(1), parent=None), around(2)
    )


def test_rounds_of_fine_tuning_are_told_with_their_trials() -> None:
    found = body(candidate(1))
    found["selection"]["rounds"] = [{"trial_key": f"{0:032x}", "why": "kept: 95.1 % after it"}]
    note = selection_note(found, around(2))
    assert (
        f"Round 1 of fine-tuning: {around(2).trials[f'{0:032x}']}, kept: 95.1 % after it." in note
    )
