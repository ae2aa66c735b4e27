"""What a run left in its output folder, as tables."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from clsearch.config import Config
from clsearch.errors import unknown
from clsearch.folder import chain_of, read_parquet, records_of, results_of, run_config
from clsearch.metrics import (
    Matrix,
    accuracy_matrix,
    average_accuracy,
    average_forgetting,
    backward_transfer,
)
from clsearch.records import Selection, TaskResult, TrialRecord

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Name = Literal["trials", "scan", "capacity", "selections", "accuracy", "summary"]

_CHAIN = {"method": "string", "seed": "int64"}
_SELECTION = {
    **_CHAIN,
    "task": "int64",
    **dict.fromkeys(("outcome", "reason"), "string"),
    **dict.fromkeys(("margin", "best", "floor"), "double"),
    "trial_key": "string",
    **dict.fromkeys(("validation_accuracy", "threshold", "accuracy", "sparsity"), "double"),
}
_COMMIT = {"candidates": "int64", "commit": "string", "test_accuracy": "double", "transfer": "bool"}
_SUMMARY = {
    **_CHAIN,
    "tasks": "int64",
    **dict.fromkeys(("average_accuracy", "average_forgetting", "backward_transfer"), "double"),
    **{"sparsity": "double", "memory_bytes": "int64", "outcome": "string"},
}


class Results:
    """A run's output folder, read when asked for: finished or not, it shows what is there.

    Raises `InputError` for a folder that is no run. Accuracies are fractions, durations seconds,
    the margin percentage points.
    """

    def __init__(self, out: Path | str) -> None:
        self.out = Path(out)
        self.config: Config = run_config(self.out)

    @cached_property
    def tasks(self) -> tuple[TaskResult, ...]:
        """Each chain after each task: the selection, its commit, test accuracies, capacity."""
        return tuple(results_of(self.out))

    @cached_property
    def trials(self) -> tuple[TrialRecord, ...]:
        """Every finished trial with its scan and its curve, from the journal."""
        return tuple(records_of(self.out))

    @property
    def selections(self) -> tuple[Selection, ...]:
        """What was selected at each task and why, with every candidate."""
        return tuple(result.selection for result in self.tasks)

    def matrix(self, method: str, seed: int | None = None) -> Matrix:
        """R[i][j]: the test accuracy on task j+1 after task i+1; `seed` by default the first.

        Raises `InputError` for a method (its label) or a seed that the run has not.
        """
        chain = chain_of(self.config, method, seed)
        return accuracy_matrix(r for r in self.tasks if r.selection.chain == chain)

    def table(self, name: Name) -> pa.Table:
        """A table of the run; raises `InputError` for a name that is none.

        `trials`, `scan` and `capacity` are the Parquet files of the folder; `selections` has a row
        for each chain and task, `accuracy` the accuracy matrices in long form, `summary` a row for
        each chain: tasks learned, ACC, forgetting, BWT, sparsity and memory after the last.
        """
        import pyarrow as pa

        if name not in get_args(Name):
            raise unknown("name", name, get_args(Name))
        if name in ("trials", "scan", "capacity"):
            return read_parquet(self.out, name)
        rows, columns = self._rows(name)
        schema = pa.schema((column, pa.type_for_alias(kind)) for column, kind in columns.items())
        return pa.Table.from_pylist(rows, schema=schema)

    def frame(self, name: Name) -> pd.DataFrame:
        """The same as a pandas frame."""
        return self.table(name).to_pandas()

    def _rows(self, name: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """The rows of a table made here, and the types of its columns."""
        if name == "accuracy":
            return self._accuracy(), _CHAIN | {
                "after_task": "int64", "task": "int64", "test_accuracy": "double",
            }  # fmt: skip
        if name == "summary":
            return self._summary(), _SUMMARY
        hypers = sorted({h for s in self.selections for h in s.hyperparameters})
        rows = [
            {column: getattr(r.selection, column) for column in _SELECTION}
            | {f"hp_{hyper}": r.selection.hyperparameters.get(hyper) for hyper in hypers}
            | {"candidates": len(r.selection.candidates), "commit": r.commit}
            | {"test_accuracy": r.test[-1] if r.test else None, "transfer": r.transfer}
            for r in self.tasks
        ]
        return rows, _SELECTION | dict.fromkeys((f"hp_{h}" for h in hypers), "double") | _COMMIT

    def _accuracy(self) -> list[dict[str, Any]]:
        return [
            {
                "method": r.selection.method,
                "seed": r.selection.seed,
                "after_task": r.selection.task,
                "task": j,
                "test_accuracy": accuracy,
            }
            for r in self.tasks
            for j, accuracy in enumerate(r.test, start=1)
        ]

    def _summary(self) -> list[dict[str, Any]]:
        rows = []
        for chain in dict.fromkeys(s.chain for s in self.selections):
            own = [r for r in self.tasks if r.selection.chain == chain]
            matrix = accuracy_matrix(own)
            last = own[len(matrix) - 1] if matrix else None
            rows.append(
                {
                    "method": chain.method,
                    "seed": chain.seed,
                    "tasks": len(matrix),
                    "average_accuracy": average_accuracy(matrix),
                    "average_forgetting": average_forgetting(matrix),
                    "backward_transfer": backward_transfer(matrix),
                    "sparsity": last.selection.sparsity if last else None,
                    "memory_bytes": last.memory_bytes if last else None,
                    "outcome": own[-1].selection.outcome,
                }
            )
        return rows
