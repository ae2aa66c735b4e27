"""What the search cost, by method and protocol, and what failed, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clsearch.records import TrialRecord
from clsearch.report.outcome_tables import mean_std
from clsearch.report.source import Run
from clsearch.report.tables import ChainView, Sheet

_FAILURES = 20
"""So many reasons stand in the table; the rest are counted."""


@dataclass(frozen=True)
class Cost:
    """Trials, epochs and the seconds that trials took on their workers; None: cannot be said."""

    trials: int
    epochs: int | None
    seconds: float | None

    @classmethod
    def of(cls, records: Iterable[TrialRecord]) -> Cost:
        records = list(records)
        return cls(len(records), sum(r.epochs for r in records), sum(r.duration for r in records))


def cost_sheet(run: Run) -> Sheet:
    """A row for each method with the protocol it was searched by, and one for the other protocol
    as far as the records say what it would have cost."""
    protocol: str = run.config.search.protocol
    others = {"current_task": "first_task", "first_task": "current_task"}
    rows, estimated = [], False
    for method, records in run.trials.items():
        if not records:
            continue
        chains = run.methods.get(method, ())
        memory = mean_std((c.memory_bytes for c in chains), scale=1 / 1024, digits=1)
        rows.append((method, protocol, *_cells(Cost.of(records)), memory))
        other = other_protocol(run, records, chains)
        if other is not None:
            estimated = True
            rows.append((method, f"{others[protocol]} (not run)", *_cells(other), "-"))
    header = ("method", "protocol", "trials", "epochs", "seconds", "memory (KiB)")
    note = (
        "Seconds: sum of what trials took on their workers (a trial's share of its pack), without "
        "selection, commits and waiting. Memory: what the method remembers beside the network "
        "after its last task, mean over seeds."
    )
    if estimated:
        note += _ESTIMATES[protocol]
    return Sheet("Cost", header, tuple(rows), frozenset({0, 1}), note)


_ESTIMATES = {
    "current_task": (
        " first_task (not run): the trials of task 1, and at every later task the one with the "
        "hyperparameters selected there, as this run trained it from its own models; alone in its "
        "pack it may take longer. Fine-tuning counts as it was here."
    ),
    "first_task": (
        " current_task (not run): the grid of task 1 again at every task. How long those trials "
        "would have taken cannot be read from this run."
    ),
}


def _cells(cost: Cost) -> tuple[str, str, str]:
    epochs = "-" if cost.epochs is None else f"{cost.epochs:,}"
    return f"{cost.trials:,}", epochs, "-" if cost.seconds is None else f"{cost.seconds:,.1f}"


def other_protocol(
    run: Run, records: Sequence[TrialRecord], chains: Sequence[ChainView]
) -> Cost | None:
    """What a method's chains would have cost by the protocol that was not run; None where that
    makes no difference or cannot be said."""
    grid = [r for r in records if not r.fine_tuned]
    first = [r for r in grid if r.task == 1]
    later = [r for r in grid if r.task > 1]
    tuned = [r for r in records if r.fine_tuned]
    if not later or len(first) == len({r.seed for r in first}):
        return None
    if run.config.search.protocol == "first_task":
        count = {seed: n for seed, n in Counter(r.seed for r in first).items()}
        return Cost(len(first) + len(tuned) + sum(count[r.seed] for r in later), None, None)
    kept = []
    for chain in chains:
        chosen = next((c for c in chain.results[0].selection.candidates if c.chosen), None)
        own = [r for r in later if r.seed == chain.seed]
        same = [r for r in own if chosen and r.hyperparameters == chosen.hyperparameters]
        if [r.task for r in same] != sorted({r.task for r in own}):
            return None
        kept += same
    return Cost.of([*first, *kept, *tuned])


def failures_sheet(run: Run) -> Sheet:
    """The reasons for which trials failed: how often, where, and one of them."""
    found: dict[tuple[str, str], list[TrialRecord]] = {}
    for method, records in run.trials.items():
        for record in records:
            if record.status != "COMPLETE":
                said = record.reason or "no reason given"
                reason = f"{said} (lost by its machine)" if record.lost else said
                found.setdefault((method, reason), []).append(record)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    rows = tuple(
        (
            method,
            reason,
            f"{len(records):,}",
            ", ".join(map(str, sorted({r.task for r in records}))),
            records[0].trial_key,
        )
        for (method, reason), records in ordered[:_FAILURES]
    )
    rest = sum(len(records) for _, records in ordered[_FAILURES:])
    header = ("method", "reason", "trials", "at tasks", "one of them")
    note = f"{rest:,} more trials failed for other reasons." if rest else ""
    return Sheet("Trials that failed", header, rows, frozenset({0, 1, 3, 4}), note)
