"""The quickstart as a user runs it: what it must reach, and what its numbers must say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quickstart import BYTES, measure
from clsearch.metrics import average_accuracy, average_forgetting


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of it: the one in `CLSEARCH_QUICKSTART`, recorded by `benchmarks.quickstart --record`,
    or one made here."""
    record = os.environ.get("CLSEARCH_QUICKSTART")
    if record:
        found: dict[str, Any] = json.loads(Path(record).read_text())
        out = Path(found["out"])
    else:
        out = tmp_path_factory.mktemp("quickstart") / "out"
        found = measure(out)
    matrix = json.loads((out / "accuracy_matrix.json").read_bytes())
    return {**found, "out": out, "matrix": matrix}


@pytest.mark.slow
def test_it_finishes_and_prints_the_table(quickstart: dict[str, Any]) -> None:
    assert quickstart["code"] == 0
    for words in ("finetune", "ewc", "mas", "clnp", "160 trials trained", "clsearch export"):
        assert words in quickstart["text"]


@pytest.mark.slow
def test_memory_stays_within_the_limit(quickstart: dict[str, Any]) -> None:
    assert quickstart["memory"] < BYTES, f"{quickstart['memory'] / 2**30:.2f} GiB"


@pytest.mark.slow
def test_clnp_forgets_exactly_nothing(quickstart: dict[str, Any]) -> None:
    rows = quickstart["matrix"]["clnp"]["0"]
    assert len(rows) == 5
    for i, row in enumerate(rows):
        assert row[:i] == rows[i - 1][:i] if i else True
    assert average_forgetting(rows) == 0.0


@pytest.mark.slow
def test_finetune_forgets_most_and_ewc_and_mas_lie_between(quickstart: dict[str, Any]) -> None:
    forgetting = {m: average_forgetting(r["0"]) for m, r in quickstart["matrix"].items()}
    accuracy = {m: average_accuracy(r["0"]) for m, r in quickstart["matrix"].items()}
    assert forgetting["finetune"] > 0.2
    for method in ("ewc", "mas"):
        assert 0.0 < forgetting[method] < forgetting["finetune"]
        assert accuracy["finetune"] < accuracy[method] < accuracy["clnp"]


@pytest.mark.slow
def test_test_accuracy_is_within_sight_of_validation(quickstart: dict[str, Any]) -> None:
    """The stored CLNP models answer as well on test data as their selection promised, to a few
    points: a few hundred samples have a standard error of about one."""
    selections = json.loads((quickstart["out"] / "selections.json").read_bytes())
    for s in selections:
        if s["method"] == "clnp":
            test = quickstart["matrix"]["clnp"]["0"][s["task"] - 1][s["task"] - 1]
            assert abs(test - s["accuracy"]) < 0.06
