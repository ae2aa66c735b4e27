"""Selecting again from a run's finished trials, with another margin. Trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from clsearch.errors import InputError
from clsearch.folder import open_store, records_of, results_of, run_config
from clsearch.messages import say
from clsearch.records import Selection
from clsearch.refinement import known_prunings
from clsearch.selection import select as selected_of


def select(out: Path | str, margin: float) -> list[Selection]:
    """What a margin (percentage points) would have selected, by task and chain, in a run.

    A task's trials started from the model selected before with the run's own margin; to let
    another margin seed the tasks, run the config with that margin: it trains only what is new.
    Fine-tuning, which comes after selection, is left out, and thresholds by layer are those found
    at the run's own margins. Raises `InputError` for a folder without finished trials and for a
    margin outside 0 to 100.
    """
    out = Path(out)
    config = run_config(out)
    if not 0 <= margin <= 100:
        raise InputError("margin", margin, "percentage points from 0 to 100")
    records = [r for r in records_of(out) if not r.fine_tuned]
    places = sorted({(r.task, str(r.chain)) for r in records})
    if not places:
        raise InputError("DIR", str(out), "a run with finished trials")
    store, chosen = open_store(out), []
    for place in places:
        own = [r for r in records if (r.task, str(r.chain)) == place]
        found = selected_of(own, margin)
        by_layer = known_prunings(store, found) if config.selection.per_layer else {}
        chosen.append(selected_of(own, margin, by_layer=by_layer) if by_layer else found)
    return chosen


def print_selections(
    out: Path, margin: float, chosen: Sequence[Selection], console: Console
) -> None:
    """Prints what `select` found beside what the run has selected."""
    config = run_config(out)
    old = {(r.selection.task, r.selection.chain): r.selection for r in results_of(out)}
    changed = 0
    for new in chosen:
        before = old.get((new.task, new.chain))
        won = next((c for c in before.candidates if c.chosen), None) if before else None
        same = won is not None and won.trial_key == new.trial_key
        changed += not same or (won is not None and won.threshold != new.threshold)
        say(console, f"task {new.task} {new.chain}: {outcome_in_words(new)}")
        if before is not None and not same:
            say(console, f"    was: {outcome_in_words(before)}")
    say(
        console,
        f"Margin {margin:g}: {changed} of {len(chosen)} selections differ from the run's. Nothing "
        "was trained; each task's trials still start from the run's own selection before it.",
    )
    if config.selection.per_layer:
        say(
            console,
            "Thresholds by layer were looked for at the run's own margins; at others, trials are "
            "pruned at one threshold for all layers.",
        )
    if any(m.fine_tune for m in config.methods):
        say(console, "Fine-tuning, which comes after selection, is left out.")


def outcome_in_words(s: Selection) -> str:
    """A selection in a line: hyperparameters, threshold, validation accuracy, sparsity."""
    if s.outcome != "selected":
        return f"{s.outcome}: {s.reason}"
    hypers = " ".join(f"{n}={v:g}" for n, v in s.hyperparameters.items())
    pruned = "nothing" if s.threshold is None else f"activity ≤ {s.threshold:.4g}"
    return (
        f"{hypers} · validation {100 * (s.validation_accuracy or 0):.2f} % · prune {pruned}: "
        f"{100 * (s.accuracy or 0):.2f} %, sparsity {100 * (s.sparsity or 0):.0f} %"
    )
