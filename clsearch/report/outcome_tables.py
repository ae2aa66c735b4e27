"""What came of it, as tables: the final figures, accuracy and forgetting task by task."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from clsearch.metrics import average_accuracy, average_forgetting, backward_transfer, forgetting
from clsearch.report.source import Run
from clsearch.report.tables import ENDED, TRANSFER, TRANSFERRED, ChainView, Sheet, free_neurons

ACC = (
    "ACC: mean test accuracy over the tasks learned. Forgetting and BWT (backward transfer) in "
    "percentage points of test accuracy. Sparsity: share of neurons that can be pruned within the "
    "margin; for a method that prunes, those no task so far needs, for the others, those the last "
    "task alone could spare. Memory: what the method remembers beside the network."
)
SEEDS = (
    "Mean ± sample standard deviation (n − 1) over the n seeds of a row; of one seed there is none."
)


def result_sheet(run: Run) -> Sheet:
    """The final figures of each method: mean ± sample standard deviation over seeds."""
    rows = []
    for method, chains in run.methods.items():
        learned = sorted({len(c.matrix) for c in chains})
        reached = "-".join(map(str, dict.fromkeys((learned[0], learned[-1]))))
        marks = ENDED * any(c.end for c in chains) + TRANSFER * any(c.transfers for c in chains)
        layers = free_neurons(chains)
        rows.append(
            (
                method,
                str(len(chains)),
                f"{reached}/{len(run.tasks) or run.reached}{marks}",
                mean_std(average_accuracy(c.matrix) for c in chains),
                mean_std(average_forgetting(c.matrix) for c in chains),
                mean_std(backward_transfer(c.matrix) for c in chains),
                mean_std((c.last.sparsity for c in chains if c.last), digits=1),
                mean_std((c.memory_bytes for c in chains), scale=1 / 1024, digits=1),
                ", ".join(f"{name} {text}" for name, text in layers.items()) or "-",
            )
        )
    header = ("method", "seeds", "tasks", "ACC (%)", "forgetting (pp)", "BWT (pp)", "sparsity (%)",
              "memory (KiB)", "free neurons")  # fmt: skip
    note = [ACC, SEEDS]
    if any(c.end for chains in run.methods.values() for c in chains):
        note.append(f"{ENDED} A chain ended early: fewer tasks or seeds than the others.")
    if any(c.transfers for chains in run.methods.values() for c in chains):
        note.append(f"{TRANSFER} {TRANSFERRED}")
    return Sheet("Result", header, tuple(rows), frozenset({0, 8}), "\n".join(note))


def mean_std(values: Iterable[float | None], *, scale: float = 100, digits: int = 2) -> str:
    """Mean ± sample standard deviation; without ± for one value, "-" for none."""
    known = [scale * v for v in values if v is not None]
    if not known:
        return "-"
    text = f"{statistics.fmean(known):,.{digits}f}"
    text = text.removeprefix("-") if float(text.replace(",", "")) == 0 else text
    return f"{text} ± {statistics.stdev(known):,.{digits}f}" if len(known) > 1 else text


def task_sheets(lines: Mapping[str, Sequence[ChainView]], tasks: int) -> list[Sheet]:
    """Tasks downwards, methods across: average accuracy so far, accuracy and forgetting in the
    end."""
    tables: list[tuple[str, Callable[[ChainView], Sequence[float | None]]]] = [
        ("Average test accuracy after each task (%)", lambda c: c.curve(average_accuracy)),
        ("Test accuracy on each task in the end (%)", _final),
    ]
    if tasks > 1:
        tables.append(("Forgetting of each task in the end (pp)", lambda c: forgetting(c.matrix)))
    return [
        Sheet(
            title,
            ("task", *lines),
            _by_task(lines, tasks - ("Forgetting" in title), curve),
            frozenset(),
        )
        for title, curve in tables
    ]


def _final(chain: ChainView) -> Sequence[float | None]:
    return chain.matrix[-1][: len(chain.matrix)] if chain.matrix else ()


def _by_task(
    lines: Mapping[str, Sequence[ChainView]],
    tasks: int,
    curve: Callable[[ChainView], Sequence[float | None]],
) -> tuple[tuple[str, ...], ...]:
    curves = {label: [curve(c) for c in chains] for label, chains in lines.items()}
    return tuple(
        (
            str(t + 1),
            *(_cell([c[t] for c in found if t < len(c)], len(found)) for found in curves.values()),
        )
        for t in range(tasks)
    )


def _cell(values: Sequence[float | None], chains: int) -> str:
    """A value at one task, marked where some chains did not get there."""
    return mean_std(values) + ENDED * (0 < len(values) < chains)
