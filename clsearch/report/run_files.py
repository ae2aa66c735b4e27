"""The files in which a run says what it found, written after every task."""

from __future__ import annotations

import json
import textwrap
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clsearch.files import atomic_write
from clsearch.records import TaskResult, TrialRecord
from clsearch.report.parquet import Tables


class RunFiles:
    """`selections.json`, `accuracy_matrix.json` and the Parquet tables of a run in `out`.

    Every write is of the whole run. What was made before is kept, and only put together again: the
    last of many tasks takes hardly longer than the first. `layers` names the unit layers.
    """

    def __init__(self, out: Path, layers: Sequence[str]) -> None:
        self._out, self._tables = out, Tables(out, layers)
        self._made: dict[int, tuple[TaskResult, bytes]] = {}

    def write(self, records: Sequence[TrialRecord], results: Sequence[TaskResult]) -> None:
        """Writes all so far: `records` are those of tasks not written before, `results` all.
        Raises `StoreError` when they cannot be written."""
        order = sorted(results, key=lambda r: (r.selection.task, str(r.selection.chain)))
        texts = ",\n".join(map(self._text, order))
        atomic_write(self._out / "selections.json", f"[\n{texts}\n]\n" if texts else "[]\n")
        matrix: dict[str, Any] = {}
        for r in order:
            seeds = matrix.setdefault(r.selection.method, {})
            seeds.setdefault(str(r.selection.seed), []).append(list(r.test))
        atomic_write(self._out / "accuracy_matrix.json", json.dumps(matrix, indent=1) + "\n")
        self._tables.write(records, results)

    def _text(self, result: TaskResult) -> str:
        """A result as it stands in the list; of one seen before, as it was made then."""
        seen = self._made.get(id(result))  # it is kept, so that no other has its id
        if seen is None:
            text = textwrap.indent(json.dumps(result.to_json(), indent=1), " ")
            seen = self._made[id(result)] = result, zlib.compress(text.encode(), 1)
        return zlib.decompress(seen[1]).decode()
