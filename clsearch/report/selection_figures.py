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


def selection_figures(
    folder: Path, result: TaskResult, records: Sequence[TrialRecord]
) -> list[Path]:
    """Writes `tradeoff.png` and `scan.png` of a selection among `records` into a folder; returns
    their paths. Raises `StoreError` when they cannot be written."""
    s = result.selection
    chain = [ChainView(s.seed, (result,))]
    title = f"{s.method}, seed {s.seed}"
    drawn = {"tradeoff": tradeoff(chain, title), "scan": scan(chain, by_place(records), title)}
    paths = []
    for name, figure in drawn.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        paths.append(folder / f"{name}.png")
        atomic_write(paths[-1], buffer.getvalue())
    return paths
