"""Metrics of a sequence, from the accuracy matrix. No torch.

`R[i][j]` is the test accuracy (a fraction, or None) on task j+1 after learning task i+1: one row
for each task a chain learned, so a chain that ended early has fewer rows. A row may go on beyond
its own task, which forward transfer needs. A None (or a row too short) is left out of the mean it
belongs to, and a mean of nothing is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from clsearch.records import TaskResult

Row = Sequence[float | None]
Matrix = Sequence[Row]


def accuracy_matrix(results: Iterable[TaskResult]) -> list[tuple[float | None, ...]]:
    """R of one chain: the test accuracies of its results by task, up to where the chain ended."""
    ordered = sorted(results, key=lambda r: r.selection.task)
    return [r.test for r in ordered if r.selection.outcome == "selected"]


def average_accuracy(matrix: Matrix) -> float | None:
    """ACC = 1/T Σ_{j≤T} R[T][j] over the T learned tasks (Lopez-Paz & Ranzato 2017, eq. 2)."""
    last = len(matrix)
    return _mean(_at(matrix, last, j) for j in range(1, last + 1))


def backward_transfer(matrix: Matrix) -> float | None:
    """BWT = 1/(T−1) Σ_{j<T} (R[T][j] − R[j][j]) (Lopez-Paz & Ranzato 2017, eq. 3).

    Negative where earlier tasks were forgotten; None before the second task.
    """
    last = len(matrix)
    return _mean(_less(_at(matrix, last, j), _at(matrix, j, j)) for j in range(1, last))


def forward_transfer(matrix: Matrix, baseline: Row) -> float | None:
    """FWT = 1/(T−1) Σ_{1<j≤T} (R[j−1][j] − b[j]) (Lopez-Paz & Ranzato 2017, eq. 4).

    `baseline[j]` is the test accuracy on task j+1 of an untrained model. None where no row holds
    the accuracy on the task after its own.
    """
    values = (
        _less(_at(matrix, j - 1, j), _at([baseline], 1, j)) for j in range(2, len(matrix) + 1)
    )
    return _mean(values)


def average_forgetting(matrix: Matrix) -> float | None:
    """F = 1/(T−1) Σ_{j<T} (max_{i<T} R[i][j] − R[T][j]) (Chaudhry et al. 2018, eq. 3).

    Negative where later tasks helped earlier ones; None before the second task.
    """
    return _mean(forgetting(matrix))


def forgetting(matrix: Matrix) -> list[float | None]:
    """f_j = max_{i<T} R[i][j] − R[T][j] of each task j < T (Chaudhry et al. 2018, eq. 2)."""
    last = len(matrix)
    drops = []
    for j in range(1, last):
        before = [a for i in range(1, last) if (a := _at(matrix, i, j)) is not None]
        drops.append(_less(max(before, default=None), _at(matrix, last, j)))
    return drops


def _at(matrix: Matrix, i: int, j: int) -> float | None:
    """R[i][j], both counted from 1; None where the row does not reach task j."""
    row = matrix[i - 1]
    return row[j - 1] if j <= len(row) else None


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
