"""The files in which a run says what it found, written after every task."""

from __future__ import annotations

import json
import textwrap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsearch.files import atomic_write, replaced
from clsearch.records import Chain, TaskResult, TrialRecord
from clsearch.report.parquet import Tables


class RunFiles:
    """`selections.json`, `accuracy_matrix.json` and the Parquet tables of a run in `out`.

    Every write is of the whole run. What was made before is kept as it stands in the files, and
    only put together again: the last of many tasks takes hardly longer than the first, and neither
    trials nor candidates are kept. `layers` names the unit layers.
    """

    def __init__(self, out: Path, layers: Sequence[str]) -> None:
        self._out, self._tables = out, Tables(out, layers)
        self._made: dict[tuple[int, str], _Row] = {}

    def write(self, records: Sequence[TrialRecord], results: Sequence[TaskResult]) -> None:
        """Adds the trials and the results of chains and tasks not written before, and writes all.
        Raises `StoreError` when they cannot be written."""
        self._made |= {(r.selection.task, str(r.selection.chain)): _row(r) for r in results}
        rows = [self._made[place] for place in sorted(self._made)]
        with replaced(self._out / "selections.json") as stream:
            for i, row in enumerate(rows):
                stream.write((b",\n" if i else b"[\n") + zlib.decompress(row.text))
            stream.write(b"\n]\n" if rows else b"[]\n")
        matrix: dict[str, Any] = {}
        for row in rows:
            seeds = matrix.setdefault(row.chain.method, {})
            seeds.setdefault(str(row.chain.seed), []).append(row.test)
        atomic_write(self._out / "accuracy_matrix.json", json.dumps(matrix, indent=1) + "\n")
        self._tables.write(records, results)


@dataclass(frozen=True)
class _Row:
    """A result as it stands in the files: its text in the list, compressed, and its row of the
    accuracy matrix."""

    chain: Chain
    text: bytes
    test: tuple[float | None, ...]


def _row(result: TaskResult) -> _Row:
    text = textwrap.indent(json.dumps(result.to_json(), indent=1), " ")
    return _Row(result.selection.chain, zlib.compress(text.encode(), 1), result.test)
