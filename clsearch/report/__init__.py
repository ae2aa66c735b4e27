"""What a run leaves to look at: tables, figures and a short report in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clsearch.files import atomic_write
from clsearch.records import TaskResult, TrialRecord

_CAPTIONS = {
    "accuracy": "Average accuracy over the tasks so far, and average forgetting, on test data.",
    "accuracy_matrix": "Test accuracy on each task (across) after each task (down).",
    "capacity": (
        "Neurons of each layer left when pruned as far as the margin allows: what all tasks so far "
        "need, for a method that prunes; what the last task alone needs, for the others."
    ),
}
_OF_METHOD = {
    "capacity": (
        "Neurons of each layer that all tasks so far use, in percent of its width at that task: "
        "new ones, those of earlier tasks that this task reads, and those it does not."
    ),
    "tradeoff": "Every trial, pruned as far as the margin allows; the sparsest is selected.",
    "scan": "Validation accuracy of the trials within the margin over the pruning threshold.",
}


def write_report(
    out: Path, records: Sequence[TrialRecord], results: Sequence[TaskResult], config_name: str
) -> list[Path]:
    """Writes `report/index.md` and its figures into `out`; returns the index, then the figures.

    Raises `StoreError` when they cannot be written.
    """
    from clsearch.report.figures import write_figures
    from clsearch.report.tables import markdown_table

    folder = out / "report"
    figures = write_figures(folder, records, results, config_name)
    parts = [f"# {config_name}", markdown_table(records, results).rstrip()]
    if figures:
        parts.append("## Figures")
    for figure in figures:
        kind, _, method = figure.stem.partition("_")
        of_method = bool(method) and kind in _OF_METHOD
        about = f"{method}: {_OF_METHOD[kind]}" if of_method else _CAPTIONS[figure.stem]
        parts.append(f"![{about}]({figure.name})\n\n*{about}*")
    index = folder / "index.md"
    atomic_write(index, "\n\n".join(parts) + "\n")
    return [index, *figures]
