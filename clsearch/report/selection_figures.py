"""The figures of one selection: what its trials gave up for sparsity, and their threshold scans."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from clsearch.files import atomic_write
from clsearch.records import TaskResult, TrialRecord
from clsearch.report.tables import ChainView
from clsearch.report.trial_figures import by_place, scan, tradeoff

DPI = 130


def write_selection_figures(
    folder: Path, result: TaskResult, records: Sequence[TrialRecord]
) -> None:
    """Writes `tradeoff.png` and `scan.png` of a selection among `records` into a folder. Raises
    `StoreError` when they cannot be written."""
    s = result.selection
    chain = [ChainView(s.seed, (result,))]
    title = f"{s.method}, seed {s.seed}"
    drawn = {"tradeoff": tradeoff(chain, title), "scan": scan(chain, by_place(records), title)}
    for name, figure in drawn.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        atomic_write(folder / f"{name}.png", buffer.getvalue())
