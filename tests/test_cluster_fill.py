"""The simulated cluster: its arithmetic, and a small one whose fill is known."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import cluster_fill
from benchmarks._fill_costs import Given
from clsearch.protocols import ConsolidateJob, Job, Shown
from clsearch.records import Chain

GIVEN = Given(chains=4, trials=6, tasks=2, seconds=60.0, spread=3.0)


def job(*keys: str, method: str = "ewc") -> Job:
    place = (Chain(method, 0), 0, 1, None, (1,), True)
    return Job(*place, keys=keys, hypers=tuple({} for _ in keys))


def test_a_trial_takes_what_was_recorded_made_longer_and_spread_by_its_key() -> None:
    times = cluster_fill.Times(GIVEN)
    mean = times.factor * times.trial["ewc"]
    shortest, longest = times.of(job("00000000")), times.of(job("ffffffff"))
    assert (shortest, longest) == pytest.approx((mean / 2, 1.5 * mean))
    assert times.of(job("00000000", "ffffffff")) == pytest.approx(2 * mean)
    methods = [times.of(job("80000000", method=m)) for m in times.trial]
    assert sum(methods) / len(methods) == pytest.approx(60.0)
    commit = ConsolidateJob(
        **vars(job("00000000")), commit="c", thresholds=None, tasks=(), shown=Shown()
    )
    assert times.of(commit) == times.factor * times.commit["ewc"]


@pytest.mark.slow
def test_a_small_cluster_trains_all_and_is_as_full_as_its_trials_allow() -> None:
    """Two workers and four chains of equal trials: what is left empty is their start and the last
    consolidations."""
    given = dataclasses.replace(GIVEN, spread=1.0)
    with cluster_fill.one_core() as searcher:
        found = cluster_fill.simulate(searcher, 2, given, 5.0, 0.0, (0.0, 0.0))
    assert found.trials == given.chains * given.trials * given.tasks
    assert found.started == 2
    assert 0.9 < found.fill < 1
    assert found.hours * 3600 * 2 * found.fill > 60 * found.trials
    assert found.load < 1
