"""The selector against a second one written from the rules, and each rule by hand."""

from __future__ import annotations

import json
import math
import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clsearch.errors import InputError
from clsearch.records import Chain, ScanPoint, Selection, TrialRecord
from clsearch.selection import select

UNITS = (6, 4)
SAMPLES = 20


def trial(key: str, accuracy: float | None = 0.9, **given: Any) -> TrialRecord:
    scan = tuple(ScanPoint(t, a, f) for t, a, f in given.pop("scan", ()))
    fields: dict[str, Any] = {
        "trial_key": key, "method": "clnp", "seed": 1, "task": 2, "hyperparameters": {"lr": 0.1},
        "status": "COMPLETE", "validation_accuracy": accuracy, "layers": ("fc1", "fc2"),
        "units": UNITS, "free": (0, 0), "scan": scan, **given,
    }  # fmt: skip
    return TrialRecord(**fields)


def whys(selection: Selection) -> dict[str, str]:
    return {c.trial_key: c.why for c in selection.candidates}


# --- a second selector, in exact fractions of SAMPLES, by elimination ---------------------------


def by_elimination(
    records: list[TrialRecord], margin: Fraction
) -> tuple[str, float | None, float, tuple[int, ...]] | None:
    def exact(value: float) -> Fraction:
        return Fraction(round(value * SAMPLES), SAMPLES)

    whole = [r for r in records if r.status == "COMPLETE"]
    if not whole:
        return None
    floor = max(exact(r.validation_accuracy or 0.0) for r in whole) - margin / 100
    field = []
    for r in whole:
        accuracy = r.validation_accuracy or 0.0
        if exact(accuracy) < floor:
            continue
        kept: tuple[str, float | None, float, tuple[int, ...]]
        kept = (r.trial_key, None, accuracy, r.free)
        for point in sorted(r.scan, key=lambda p: p.threshold):
            if exact(point.accuracy) >= floor:
                kept = (r.trial_key, point.threshold, point.accuracy, point.free)
        field.append((r, kept))
    most = max(sum(kept[3]) for _, kept in field)
    field = [(r, kept) for r, kept in field if sum(kept[3]) == most]
    calmest = min(r.drift for r, _ in field)
    field = [(r, kept) for r, kept in field if r.drift == calmest]
    top = max(exact(r.validation_accuracy or 0.0) for r, _ in field)
    field = [(r, kept) for r, kept in field if exact(r.validation_accuracy or 0.0) == top]
    return min(kept for _, kept in field)


@st.composite
def tables(draw: st.DrawFn) -> list[TrialRecord]:
    fraction = st.integers(10, SAMPLES).map(lambda k: k / SAMPLES)
    free = st.tuples(st.integers(0, 3), st.integers(0, 3))
    records = []
    for key in draw(st.lists(st.text("abc", min_size=1, max_size=3), unique=True, max_size=8)):
        grid = sorted(draw(st.sets(st.integers(0, 9), max_size=4)))
        scan = [(t / 10, draw(fraction), draw(free)) for t in grid]
        status = draw(st.sampled_from(["COMPLETE", "COMPLETE", "COMPLETE", "FAILED", "PRUNED"]))
        drift = draw(st.sampled_from([0.0, 0.5, 2.0]))
        reason = "" if status == "COMPLETE" else draw(st.sampled_from(["NaN", "slow"]))
        accuracy = draw(fraction) if status == "COMPLETE" else None
        own = draw(st.integers(0, 2))
        records.append(
            trial(key, accuracy, scan=scan, status=status, drift=drift, reason=reason,
                  free=(own, 0))
        )  # fmt: skip
    return records


@settings(max_examples=400, deadline=None)
@given(tables(), st.integers(0, 40), st.randoms(use_true_random=False))
def test_agrees_with_elimination(
    records: list[TrialRecord], half_points: int, shuffler: random.Random
) -> None:
    selection = select(records, half_points / 2)
    expected = by_elimination(records, Fraction(half_points, 2))
    if expected is None:
        assert selection.outcome == "failed"
        assert selection.trial_key is None
        assert not any(c.chosen for c in selection.candidates)
    else:
        found = (selection.trial_key, selection.threshold, selection.accuracy, selection.free)
        assert selection.outcome == "selected"
        assert found == expected
        assert [c.trial_key for c in selection.candidates if c.chosen] == [expected[0]]
        assert selection.sparsity == sum(expected[3]) / sum(UNITS)
    assert [c.trial_key for c in selection.candidates] == sorted(r.trial_key for r in records)
    assert all(c.why for c in selection.candidates)
    assert selection.reason
    assert Selection.from_json(json.loads(json.dumps(selection.to_json()))) == selection
    shuffled = list(records)
    shuffler.shuffle(shuffled)
    assert select(shuffled, half_points / 2) == selection


# --- each rule by hand ---------------------------------------------------------------------------


def test_highest_threshold_above_the_floor_though_a_lower_one_is_below() -> None:
    scan = [(0.0, 0.90, (1, 0)), (0.1, 0.80, (2, 1)), (0.2, 0.895, (3, 2)), (0.3, 0.5, (6, 4))]
    selection = select([trial("a", 0.9, scan=scan)], 1.0)
    assert (selection.threshold, selection.accuracy) == (0.2, 0.895)
    assert (selection.free, selection.sparsity) == ((3, 2), 0.5)
    assert selection.best == 0.9
    assert selection.floor == pytest.approx(0.89)
    assert (selection.layers, selection.units) == (("fc1", "fc2"), UNITS)


def test_the_order_of_the_scan_does_not_matter() -> None:
    scan = [(0.3, 0.9, (3, 0)), (0.1, 0.9, (1, 0)), (0.2, 0.9, (2, 0))]
    assert select([trial("a", 0.9, scan=scan)], 0).threshold == 0.3


def test_margin_zero_keeps_the_best_and_counts_equal_accuracy_as_within() -> None:
    scan = [(0.0, 0.9, (1, 0)), (0.5, 0.9 - 1e-4, (5, 4))]
    worse = trial("b", 0.8999, scan=[(0.0, 0.8999, (6, 4))])
    selection = select([trial("a", 0.9, scan=scan), worse], 0)
    assert (selection.trial_key, selection.threshold) == ("a", 0.0)
    assert whys(selection)["b"] == "below the floor by 0.01 points"


def test_the_floor_is_met_despite_rounding() -> None:
    assert 0.8 - 10.0 / 100 > 0.7  # in floating point: without slack b would be out
    selection = select([trial("a", 0.8), trial("b", 0.7, free=(1, 0))], 10.0)
    assert selection.trial_key == "b"


def test_no_scan_point_within_the_margin_prunes_nothing() -> None:
    only = trial("a", 0.9, scan=[(0.0, 0.5, (5, 4))], free=(1, 1))
    selection = select([only], 1.0)
    assert (selection.threshold, selection.accuracy, selection.free) == (None, 0.9, (1, 1))


def test_a_trial_below_the_floor_is_out_even_if_pruning_would_lift_it() -> None:
    lifted = trial("b", 0.80, scan=[(0.1, 0.95, (6, 4))])
    selection = select([trial("a", 0.9), lifted], 1.0)
    assert selection.trial_key == "a"
    assert whys(selection)["b"] == "below the floor by 9.00 points"
    assert selection.candidates[1].threshold is None
    assert selection.candidates[1].accuracy is None


def test_capacity_is_the_sum_over_layers() -> None:
    wide = trial("a", 0.9, scan=[(0.1, 0.9, (3, 0))])
    spread = trial("b", 0.9, scan=[(0.1, 0.9, (2, 2))])
    selection = select([wide, spread], 1.0)
    assert selection.trial_key == "b"
    assert whys(selection)["a"] == "leaves 3 free neurons, 1 fewer than the selected"
    assert whys(selection)["b"].endswith(": the most")


@pytest.mark.parametrize(
    ("a", "b", "lost", "won"),
    [
        ({"drift": 0.5}, {"drift": 0.2}, "larger drift (0.5 against 0.2)", "smallest drift"),
        ({"drift": math.nan}, {"drift": 9.0}, "larger drift (inf against 9)", "smallest drift"),
        (
            {"validation_accuracy": 0.89},
            {"validation_accuracy": 0.9},
            "ties in capacity and drift, lower accuracy (89.00 % against 90.00 %)",
            "highest accuracy before pruning",
        ),
    ],
)
def test_ties(a: dict[str, Any], b: dict[str, Any], lost: str, won: str) -> None:
    selection = select([trial("a", **{"accuracy": 0.9} | rename(a)), trial("b", **rename(b))], 2.0)
    assert selection.trial_key == "b"
    assert lost in whys(selection)["a"]
    assert won in whys(selection)["b"]
    assert won in selection.reason


def rename(fields: dict[str, Any]) -> dict[str, Any]:
    return {"accuracy" if k == "validation_accuracy" else k: v for k, v in fields.items()}


def test_last_tie_goes_to_the_smaller_key() -> None:
    selection = select([trial("b"), trial("a"), trial("c")], 1.0)
    assert selection.trial_key == "a"
    assert "first trial key" in whys(selection)["a"]
    assert whys(selection)["b"] == "ties in capacity, drift and accuracy, later trial key"


def test_drift_decides_before_accuracy() -> None:
    selection = select([trial("a", 0.9, drift=1.0), trial("b", 0.895, drift=0.1)], 1.0)
    assert selection.trial_key == "b"


def test_failed_and_stopped_trials_are_listed_but_never_chosen() -> None:
    records = [
        trial("a", 0.99, status="FAILED", reason="loss is NaN", free=(6, 4)),
        trial("b", 0.98, status="PRUNED", reason="under the median", free=(6, 4)),
        trial("c", 0.5),
        trial("d", None),
        trial("e", math.nan),
    ]
    selection = select(records, 1.0)
    assert (selection.trial_key, selection.best) == ("c", 0.5)
    assert whys(selection)["a"] == "failed: loss is NaN"
    assert whys(selection)["b"] == "stopped early: under the median"
    assert whys(selection)["d"] == whys(selection)["e"]
    assert whys(selection)["d"] == "complete, but without a validation accuracy"


def test_all_failed_is_an_outcome_with_its_reason() -> None:
    records = [
        trial("a", None, status="FAILED", reason="loss is NaN"),
        trial("b", None, status="FAILED", reason="out of memory"),
        trial("c", None, status="FAILED", reason="loss is NaN"),
        trial("d", None, status="PRUNED", reason="slow"),
    ]
    selection = select(records, 1.0)
    assert (selection.outcome, selection.trial_key, selection.best) == ("failed", None, None)
    assert (selection.method, selection.seed, selection.task) == ("clnp", 1, 2)
    assert selection.reason == (
        "none of 4 trials is complete, 3 failed; most frequent reason (2×): loss is NaN"
    )
    assert len(selection.candidates) == 4
    assert Selection.from_json(json.loads(json.dumps(selection.to_json()))) == selection


def test_none_complete_without_a_failure() -> None:
    selection = select([trial("a", None, status="PRUNED", reason="slow"), trial("b", None)], 1.0)
    assert selection.outcome == "failed"
    assert "0 failed" in selection.reason
    assert "(1×): complete, but without" in selection.reason


def test_no_records() -> None:
    selection = select([], 1.0, chain=Chain("ewc", 3), task=4)
    assert (selection.outcome, selection.method, selection.seed, selection.task) == (
        "failed", "ewc", 3, 4,
    )  # fmt: skip
    assert selection.reason == "there is no trial to select from"
    assert select([], 1.0).outcome == "failed"


def test_timings_leave_no_trace() -> None:
    once = select([trial("a", duration=1.0, started=2.0, host="x", pack_size=4)], 1.0)
    assert once == select([trial("a", duration=9.0, started=8.0, host="y")], 1.0)


@pytest.mark.parametrize("margin", [-0.1, math.nan, math.inf, 101.0])
def test_margin_out_of_range(margin: float) -> None:
    with pytest.raises(InputError) as caught:
        select([trial("a")], margin)
    assert caught.value.field == "selection.margin"


def test_mixed_records_are_refused() -> None:
    with pytest.raises(ValueError, match="several chains"):
        select([trial("a"), trial("b", task=3)], 1.0)
    with pytest.raises(ValueError, match="more than once: a"):
        select([trial("a"), trial("a", 0.5)], 1.0)
