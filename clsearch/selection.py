"""The CLNP selector: from the records of a chain at one task to its sparsest good model.

Pure: records in, a `Selection` with its reason out. No torch, no files, no clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from clsearch.errors import InputError
from clsearch.records import Candidate, Chain, LayerPruning, ScanPoint, Selection, TrialRecord

SLACK = 1e-9
"""Accuracies are k/N, the floor is a difference of such: they are compared with this slack, far
below the step 1/N of any validation set."""


def select(
    records: Sequence[TrialRecord],
    margin: float,
    *,
    chain: Chain | None = None,
    task: int = 0,
    by_layer: Mapping[str, LayerPruning] | None = None,
) -> Selection:
    """The sparsest model within `margin` percentage points of the best (CLNP §2.2).

    `records` are the trials of one chain at one task, in any order; `chain` and `task` name the
    outcome where there is no record to tell them. `by_layer` are candidates, by trial key, pruned
    further with a threshold for each layer.

    - best: the highest validation accuracy of a COMPLETE trial; floor = best - margin/100.
    - A candidate is a COMPLETE trial at or above the floor before pruning. It is pruned with the
      highest threshold of its scan that stays at or above the floor, whatever lower thresholds
      do; with none, nothing is pruned. Its pruning by layer takes that one's place.
    - The candidate that leaves most neurons free wins; ties go to the smaller drift, then the
      higher validation accuracy, then the smaller trial key.

    Without any COMPLETE trial the outcome is "failed". Raises `InputError` for a margin outside
    0 … 100, `ValueError` for records of several chains or tasks, or one trial twice.
    """
    if not 0 <= margin <= 100:
        step = "It is in percentage points: 1 gives up one point in a hundred."
        raise InputError("selection.margin", margin, "a number from 0 to 100", step)
    records = sorted(records, key=lambda r: r.trial_key)
    _check(records)
    if records:
        chain, task = records[0].chain, records[0].task
    best = max((_accuracy(r) for r in records if _usable(r)), default=None)
    if best is None:
        return _failed(records, margin, chain or Chain("", 0), task)
    floor = best - margin / 100
    offers = [
        _Offer.of(r, floor, (by_layer or {}).get(r.trial_key))
        for r in records
        if _usable(r) and reaches(_accuracy(r), floor)
    ]
    return _selected(records, offers, margin, best)


def _selected(
    records: Sequence[TrialRecord], offers: Sequence[_Offer], margin: float, best: float
) -> Selection:
    """The outcome with the first of the offers by rank."""
    floor = best - margin / 100
    winner = min(offers, key=_Offer.rank)
    by_key = {offer.record.trial_key: offer for offer in offers}
    candidates = [_candidate(r, by_key.get(r.trial_key), winner, floor) for r in records]
    record, why = winner.record, _why_won(winner, offers)
    return Selection(
        method=record.method,
        seed=record.seed,
        task=record.task,
        outcome="selected",
        reason=f"trial {record.trial_key[:8]} {why}; {len(offers)} of {len(records)} trials were "
        f"within {margin:g} points of the best validation accuracy, {100 * best:.2f} %",
        margin=margin,
        best=best,
        floor=floor,
        trial_key=record.trial_key,
        hyperparameters=dict(record.hyperparameters),
        validation_accuracy=record.validation_accuracy,
        threshold=winner.threshold,
        accuracy=winner.accuracy,
        layers=record.layers,
        units=record.units,
        free=winner.free,
        sparsity=sparsity(winner.free, record.units),
        candidates=tuple(replace(c, why=why) if c.chosen else c for c in candidates),
        thresholds=winner.thresholds,
    )


@dataclass(frozen=True)
class _Offer:
    """A trial within the margin, and what pruning it as far as the floor allows leaves free."""

    record: TrialRecord
    threshold: float | None
    accuracy: float
    free: tuple[int, ...]
    thresholds: tuple[float, ...] = ()

    @classmethod
    def of(cls, record: TrialRecord, floor: float, by_layer: LayerPruning | None) -> _Offer:
        """Prunes with the highest threshold at or above the floor; with none, not at all."""
        point = highest(record, floor)
        if point is None:
            return cls(record, None, _accuracy(record), record.free)
        found = by_layer or point
        thresholds = by_layer.thresholds if by_layer else ()
        return cls(record, point.threshold, found.accuracy, found.free, thresholds)

    @property
    def capacity(self) -> int:
        """Free neurons over all layers."""
        return sum(self.free)

    @property
    def drift(self) -> float:
        """The trial's drift; one that is not a number is the worst."""
        return math.inf if math.isnan(self.record.drift) else self.record.drift

    def rank(self) -> tuple[int, float, float, str]:
        """The smallest wins: capacity, then stability, then accuracy, then the key."""
        return (-self.capacity, self.drift, -_accuracy(self.record), self.record.trial_key)


def highest(record: TrialRecord, floor: float) -> ScanPoint | None:
    """The highest threshold of a trial's scan that stays at or above the floor, if one does."""
    holding = [point for point in record.scan if reaches(point.accuracy, floor)]
    return max(holding, key=lambda p: p.threshold, default=None)


def _check(records: Sequence[TrialRecord]) -> None:
    """Raises `ValueError` for records of several chains or tasks, or one trial twice."""
    places = {(str(r.chain), r.task) for r in records}
    if len(places) > 1:
        raise ValueError(f"records of several chains or tasks: {sorted(places)}")
    twice = [key for key, n in Counter(r.trial_key for r in records).items() if n > 1]
    if twice:
        raise ValueError(f"trials recorded more than once: {', '.join(twice)}")


def _usable(record: TrialRecord) -> bool:
    """COMPLETE, with a validation accuracy that is a number."""
    accuracy = record.validation_accuracy
    return record.status == "COMPLETE" and accuracy is not None and math.isfinite(accuracy)


def _accuracy(record: TrialRecord) -> float:
    """The validation accuracy of a usable record."""
    return math.nan if record.validation_accuracy is None else record.validation_accuracy


def reaches(accuracy: float, floor: float) -> bool:
    """Whether an accuracy is at or above the floor; never for NaN."""
    return accuracy >= floor - SLACK


def sparsity(free: Sequence[int], units: Sequence[int]) -> float:
    """Free neurons as a fraction of all, over all layers."""
    return sum(free) / sum(units) if sum(units) else 0.0


def _candidate(
    record: TrialRecord, offer: _Offer | None, winner: _Offer | None, floor: float
) -> Candidate:
    """The row of the outcome for `record`; unpruned without an offer."""
    free = offer.free if offer else record.free
    return Candidate(
        trial_key=record.trial_key,
        hyperparameters=dict(record.hyperparameters),
        status=record.status,
        validation_accuracy=record.validation_accuracy,
        threshold=offer.threshold if offer else None,
        accuracy=offer.accuracy if offer else None,
        free=free,
        sparsity=sparsity(free, record.units),
        drift=record.drift,
        chosen=offer is not None and offer is winner,
        thresholds=offer.thresholds if offer else (),
        why=_why_lost(offer, winner) if offer and winner else _why_out(record, floor),
    )


def _why_out(record: TrialRecord, floor: float) -> str:
    """Why a trial was no candidate."""
    if record.status != "COMPLETE":
        word = "failed" if record.status == "FAILED" else "stopped early"
        return f"{word}: {record.reason or 'no reason given'}"
    if not _usable(record):
        return "complete, but without a validation accuracy"
    short = 100 * (floor - _accuracy(record))
    return f"below the floor by {f'{short:.2f}' if short >= 0.005 else f'{short:.1g}'} points"


def _why_lost(offer: _Offer, winner: _Offer) -> str:
    """Why a candidate lost against the winner: the first rule that tells them apart."""
    if offer.capacity != winner.capacity:
        fewer = winner.capacity - offer.capacity
        return f"leaves {_neurons(offer.capacity)}, {fewer} fewer than the selected"
    if offer.drift != winner.drift:
        return f"ties in capacity, larger drift ({offer.drift:g} against {winner.drift:g})"
    ours, theirs = _accuracy(offer.record), _accuracy(winner.record)
    if ours != theirs:
        against = f"{100 * ours:.2f} % against {100 * theirs:.2f} %"
        return f"ties in capacity and drift, lower accuracy ({against})"
    return "ties in capacity, drift and accuracy, later trial key"


def _why_won(winner: _Offer, offers: Sequence[_Offer]) -> str:
    """Why the winner won, and by which rule where others leave as much free."""
    pruned = "unpruned" if winner.threshold is None else f"pruned at {winner.threshold:g}"
    if winner.thresholds:
        pruned = f"pruned layer by layer at {', '.join(f'{t:.3g}' for t in winner.thresholds)}"
    accuracy = f"validation accuracy {100 * winner.accuracy:.2f} %"
    why = f"leaves {_neurons(winner.capacity)} {pruned}, {accuracy}"
    tied = [o for o in offers if o is not winner and o.capacity == winner.capacity]
    if not tied:
        return f"{why}: the most"
    second = min(tied, key=_Offer.rank)
    if second.drift != winner.drift:
        rule = "smallest drift"
    elif _accuracy(second.record) != _accuracy(winner.record):
        rule = "highest accuracy before pruning"
    else:
        rule = "first trial key"
    return f"{why}: the most, tied with {len(tied)} and chosen by the {rule}"


def _neurons(count: int) -> str:
    return f"{count} free neuron{'' if count == 1 else 's'}"


def _failed(records: Sequence[TrialRecord], margin: float, chain: Chain, task: int) -> Selection:
    """The outcome without any COMPLETE trial: never a fallback."""
    candidates = tuple(_candidate(r, None, None, math.nan) for r in records)
    failed = [r for r in records if r.status == "FAILED"]
    if not records:
        reason = "there is no trial to select from"
    else:
        reasons = Counter(c.why.partition(": ")[2] or c.why for c in candidates)
        if failed:
            reasons = Counter(r.reason or "no reason given" for r in failed)
        common, times = min(reasons.items(), key=lambda item: (-item[1], item[0]))
        reason = (
            f"none of {len(records)} trials is complete, {len(failed)} failed; "
            f"most frequent reason ({times}×): {common}"
        )
    return Selection(
        chain.method, chain.seed, task, "failed", reason, margin, candidates=candidates
    )
