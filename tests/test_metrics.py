"""The metrics against values worked out by hand."""

from __future__ import annotations

import pytest

from clsearch.metrics import (
    accuracy_matrix,
    average_accuracy,
    average_forgetting,
    backward_transfer,
    forward_transfer,
)
from clsearch.records import Outcome, Selection, TaskResult

FULL = [(0.9, 0.2, 0.1), (0.7, 0.8, 0.3), (0.8, 0.5, 0.6)]
BASELINE = (0.1, 0.1, 0.1)


def test_by_hand() -> None:
    assert average_accuracy(FULL) == pytest.approx((0.8 + 0.5 + 0.6) / 3)
    assert backward_transfer(FULL) == pytest.approx(((0.8 - 0.9) + (0.5 - 0.8)) / 2)
    assert forward_transfer(FULL, BASELINE) == pytest.approx(((0.2 - 0.1) + (0.3 - 0.1)) / 2)
    assert average_forgetting(FULL) == pytest.approx(((0.9 - 0.8) + (0.8 - 0.5)) / 2)


def test_forgetting_is_measured_from_the_best_and_not_from_the_first() -> None:
    matrix = [(0.6,), (0.9, 0.8), (0.7, 0.8, 0.9)]
    assert average_forgetting(matrix) == pytest.approx(((0.9 - 0.7) + 0.0) / 2)
    assert backward_transfer(matrix) == pytest.approx(((0.7 - 0.6) + 0.0) / 2)


def test_rows_that_stop_at_their_own_task() -> None:
    lower = [row[: i + 1] for i, row in enumerate(FULL)]
    assert average_accuracy(lower) == average_accuracy(FULL)
    assert backward_transfer(lower) == backward_transfer(FULL)
    assert average_forgetting(lower) == average_forgetting(FULL)
    assert forward_transfer(lower, BASELINE) is None


def test_unlearned_tasks_do_not_count() -> None:
    assert average_accuracy(FULL[:1]) == pytest.approx(0.9)
    assert average_accuracy(FULL[:2]) == pytest.approx(0.75)
    assert average_forgetting(FULL[:2]) == pytest.approx(0.2)


def test_none_is_left_out() -> None:
    matrix = [(0.9,), (None, 0.8), (0.7, None, 0.6)]
    assert average_accuracy(matrix) == pytest.approx((0.7 + 0.6) / 2)
    assert backward_transfer(matrix) == pytest.approx(0.7 - 0.9)
    assert average_forgetting(matrix) == pytest.approx(0.9 - 0.7)
    assert forward_transfer(FULL, (None, None, 0.1)) == pytest.approx(0.3 - 0.1)
    assert forward_transfer(FULL, ()) is None


@pytest.mark.parametrize("matrix", [[], [(0.9,)], [(None,)], [(None,), (None, None)]])
def test_nothing_to_answer_with(matrix: list[tuple[float | None, ...]]) -> None:
    assert backward_transfer(matrix) is None
    assert average_forgetting(matrix) is None
    assert forward_transfer(matrix, BASELINE) is None
    assert average_accuracy(matrix) == (0.9 if matrix == [(0.9,)] else None)


def test_accuracy_matrix_orders_by_task_and_stops_where_the_chain_ended() -> None:
    def result(task: int, outcome: Outcome, *test: float) -> TaskResult:
        return TaskResult(Selection("ewc", 0, task, outcome, "", 1.0), None, test)

    results = [result(3, "failed"), result(2, "selected", 0.7, 0.8), result(1, "selected", 0.9)]
    assert accuracy_matrix(results) == [(0.9,), (0.7, 0.8)]
