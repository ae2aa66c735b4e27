"""What comes between selection and commit: thresholds by layer, and fine-tuning after pruning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clsearch.config import Config, FineTuneConfig
from clsearch.errors import ClsearchError, DamagedError
from clsearch.protocols import FineTuneJob, Job, LayerScanJob, Steps
from clsearch.records import LayerPruning, Round, Selection, TrialRecord
from clsearch.search.plan import fine_tune_key, packs, pruning_key
from clsearch.selection import highest, select, sparsity
from clsearch.store import Store, known_record, read_pruning
from clsearch.system import System


@dataclass
class Entry:
    """A chain at a task: its selection, which the refinement changes, and the trials it adds.

    `job` is a job of the chain at this task, without keys; `records` are the trials of its grid.
    """

    system: System
    job: Job
    records: Sequence[TrialRecord]
    selection: Selection
    tuned: list[TrialRecord] = field(default_factory=list)
    ended: bool = False

    @property
    def fine_tune(self) -> FineTuneConfig | None:
        """How it is fine-tuned, as long as it is."""
        going_on = self.selection.threshold is not None and not self.ended
        return self.system.config.fine_tune if going_on else None


class Refinement:
    """Refines the selection of a chain at a task, step by step.

    Everything is keyed by content and looked up before it is done. `share` is the number of workers
    the chain can count on. Raises `ClsearchError` where workers were lost over and over: no
    selection may depend on that.
    """

    def __init__(
        self, config: Config, store: Store, share: float, note: Callable[[str], None]
    ) -> None:
        self.config, self.store, self.share, self.note = config, store, share, note

    def __call__(self, entry: Entry) -> Steps[None]:
        if self.config.selection.per_layer:
            yield from self._select_by_layer(entry)
        number = 0
        while entry.fine_tune is not None:
            number += 1
            yield from self._round(entry, number)

    def _select_by_layer(self, entry: Entry) -> Steps[None]:
        """Selects again, with every candidate pruned layer by layer."""
        chosen = entry.selection
        starts = {c.trial_key: c.threshold for c in chosen.candidates if c.threshold is not None}
        by_layer = yield from self._prunings(entry, starts)
        if by_layer:
            entry.selection = select(entry.records, chosen.margin, by_layer=by_layer)

    def _prunings(
        self, entry: Entry, thresholds: Mapping[str, float]
    ) -> Steps[dict[str, LayerPruning]]:
        """Trials pruned by layer from the thresholds found for the network."""
        floor = entry.selection.floor or 0.0
        missing = [t for t, v in thresholds.items() if self._pruning(t, v, floor) is None]
        jobs: list[Job] = []
        for part in packs(len(missing), len(missing), self.share):
            keys = tuple(missing[i] for i in part)
            begun = tuple(thresholds[key] for key in keys)
            base: dict[str, Any] = {**vars(entry.job), "keys": keys}
            places = tuple(pruning_key(k, thresholds[k], floor) for k in keys)
            jobs.append(LayerScanJob(**base, starts=begun, places=places, floor=floor))
        yield from self._do(jobs)
        found = {}
        for trial, theta in thresholds.items():
            pruning = self._pruning(trial, theta, floor)
            if pruning is None:
                raise ClsearchError(f"the pruning of trial {trial} by layer was lost")
            found[trial] = pruning
        return found

    def _pruning(self, trial: str, theta: float, floor: float) -> LayerPruning | None:
        key = pruning_key(trial, theta, floor)
        try:
            return read_pruning(self.store, key)
        except DamagedError as error:
            self.note(f"{error}. It is looked for again.")
            self.store.remove("prunings", key)
            return None

    def _round(self, entry: Entry, number: int) -> Steps[None]:
        """Fine-tunes what was pruned, then prunes what was fine-tuned where rounds are left."""
        job = self._job(entry, number)
        if known_record(self.store, job.keys[0], self.note) is None:
            yield from self._do([job])
        record = known_record(self.store, job.keys[0], self.note)
        if record is None:
            raise ClsearchError(f"the fine-tuned trial {job.keys[0]} was lost")
        entry.tuned.append(record)
        _keep(entry, record)
        tune = entry.system.config.fine_tune
        entry.ended |= tune is None or number >= tune.rounds
        if entry.fine_tune is not None:
            yield from self._prune_again(entry)

    def _job(self, entry: Entry, number: int) -> FineTuneJob:
        """The job of a round. Its trial has the selected one's hyperparameters, but for those that
        fine-tuning has of its own."""
        chosen, tune = entry.selection, entry.system.config.fine_tune
        if tune is None or chosen.by_layer is None or chosen.trial_key is None:
            raise ValueError(f"{chosen.chain} has nothing to fine-tune")
        hypers = dict(chosen.hyperparameters)
        if tune.lr is not None:
            hypers["lr"] = tune.lr
        if tune.l1 is not None:
            hypers["l1"] = tune.l1
        key = fine_tune_key(chosen.trial_key, chosen.by_layer, hypers, tune.epochs, number)
        base: dict[str, Any] = {**vars(entry.job), "keys": (key,), "hypers": (hypers,)}
        return FineTuneJob(
            **base,
            trial=chosen.trial_key,
            thresholds=chosen.by_layer,
            epochs=tune.epochs,
            round=number,
        )

    def _prune_again(self, entry: Entry) -> Steps[None]:
        """Prunes a fine-tuned model as far as the margin allows; ends one that loses nothing."""
        chosen, tuned = entry.selection, entry.tuned[-1]
        point = highest(tuned, chosen.floor or 0.0)
        pruning = None
        if point is not None and self.config.selection.per_layer:
            found = yield from self._prunings(entry, {tuned.trial_key: point.threshold})
            pruning = found[tuned.trial_key]
        if point is None or sum((pruning or point).free) <= sum(chosen.free):
            entry.ended = True
            return
        entry.selection = replace(
            chosen,
            threshold=point.threshold,
            thresholds=pruning.thresholds if pruning else (),
            accuracy=(pruning or point).accuracy,
            free=(pruning or point).free,
            sparsity=sparsity((pruning or point).free, chosen.units),
        )

    def _do(self, jobs: Sequence[Job]) -> Steps[None]:
        lost = (yield jobs) if jobs else {}
        if lost:
            key, reason = next(iter(lost.items()))
            raise ClsearchError(f"trial {key} was not refined: {reason}")


def known_prunings(store: Store, selection: Selection) -> dict[str, LayerPruning]:
    """The prunings by layer of all candidates of a selection; empty unless all have been found."""
    found = {}
    for candidate in selection.candidates:
        if candidate.threshold is not None:
            key = pruning_key(candidate.trial_key, candidate.threshold, selection.floor or 0.0)
            pruning = read_pruning(store, key)
            if pruning is None:
                return {}
            found[candidate.trial_key] = pruning
    return found


def _keep(entry: Entry, record: TrialRecord) -> None:
    """Puts a fine-tuned trial in the place of the pruned one it came from, unless it is worse."""
    before = entry.selection
    recovered = record.scan[0].accuracy if record.scan else None
    kept = recovered is not None and recovered >= (before.accuracy or 0.0)
    pruned, share = before.accuracy or 0.0, before.sparsity or 0.0
    why = f"fine-tuned at sparsity {share:.4f}, from validation accuracy {pruned:.4f}"
    if recovered is None:
        why = f"failed when it was {why}: {record.reason}"
    else:
        why = f"{why} to {recovered:.4f}: {'kept' if kept else 'worse, and not kept'}"
    done = Round(record.trial_key, pruned, recovered, share, kept, why)
    entry.selection = replace(before, rounds=(*before.rounds, done))
    if not kept:
        entry.ended = True
        return
    least = record.scan[0]
    entry.selection = replace(
        entry.selection,
        reason=f"{before.reason}; then trial {record.trial_key}, {why}",
        trial_key=record.trial_key,
        threshold=least.threshold,
        thresholds=(),
        accuracy=least.accuracy,
        free=least.free,
        sparsity=sparsity(least.free, before.units),
    )
    tune = entry.system.config.fine_tune
    if tune is not None and tune.sparsity is not None:
        entry.ended |= (entry.selection.sparsity or 0.0) >= tune.sparsity
