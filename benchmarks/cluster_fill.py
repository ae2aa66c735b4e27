"""How full a search keeps a cluster, and what that costs its driver.

    python -m benchmarks.cluster_fill [--workers N …] [--chains N] [--trials N] [--tasks N]
    python -m benchmarks.cluster_fill --record     trains the quickstart and records its times

The search, its packs, their order and Ray Tune's loop are the real ones; only the workers are
simulated (`benchmarks/_cluster.py`): they let the recorded time of a pack pass and report what a
worker would. Nothing trains. The seconds of trials and of consolidations are those of the
quickstart, in `benchmarks/cluster_fill.json`, made longer by one factor for both, so that a trial
takes `--seconds` on the mean; then each trial has its own, spread evenly between a shortest and a
longest, `--spread` times the shortest. The driver's CPU time is its own and moves the clock: what
it does is done, but for MLflow and the export of selected models, whose time is measured first.
A consolidation's recorded seconds are the worker's; the driver stores and tests beside it.
Selected models are tested on the digits, whose test data is small: a larger set takes more of the
driver. Exit code 1 where 1,000 workers are asked for and the target is not reached.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._cluster import Clock, Cluster
from benchmarks._fill_costs import (
    METHODS,
    Given,
    cost_of_a_group,
    costs_of_tracking,
    made_up,
    seconds_to_start,
)
from benchmarks._machine import machine
from benchmarks.search_overhead import InProcess, Silent
from clsearch import sequence
from clsearch.config import load_config
from clsearch.consolidation import consolidate_trial
from clsearch.folder import open_store
from clsearch.methods.base import ChainState
from clsearch.protocols import Committed, ConsolidateJob, Ended, Job
from clsearch.records import TrialRecord
from clsearch.scenarios.base import TaskData
from clsearch.search.ray_backend import RaySearcher
from clsearch.store import TrainedModel, read_commit, write_commit, write_record
from clsearch.system import resolve
from clsearch.trial import Bench

ROOT = Path(__file__).parent.parent
TIMES = Path(__file__).with_suffix(".json")
FILL, LOAD = 0.95, 1.0
"""Targets."""
CORES = 64
"""Workers of a node."""


def record() -> None:
    """Trains the quickstart here and writes the mean seconds of its trials and of its commits."""
    trials: dict[str, list[float]] = defaultdict(list)
    commits: dict[str, list[float]] = defaultdict(list)

    class Timed(InProcess):
        def run(self, job: Job, parts: Sequence[TaskData]) -> Iterator[TrialRecord | Ended]:
            begun = time.perf_counter()
            for event in super().run(job, parts):
                if isinstance(event, TrialRecord):
                    trials[event.method].append(event.duration)
                elif isinstance(job, ConsolidateJob):  # before the search goes on with it
                    commits[job.chain.method].append(time.perf_counter() - begun)
                yield event

    config = resolve(load_config(ROOT / "experiments" / "quickstart.yaml"))
    with tempfile.TemporaryDirectory(prefix="clsearch-fill-") as folder:
        search = sequence.Search(config, Path(folder), open_store(Path(folder)))
        silent: Any = Silent()
        search.run(Timed(), silent, silent)
    times = {
        "from": f"{config.name}, on {machine()}",
        "trial": {m: round(sum(s) / len(s), 4) for m, s in trials.items()},
        "commit": {m: round(sum(s) / len(s), 4) for m, s in commits.items()},
    }
    TIMES.write_text(json.dumps(times, indent=1) + "\n")
    print(TIMES.read_text(), end="")


class Times:
    """The seconds of trials and of consolidations: recorded, and made longer."""

    def __init__(self, given: Given) -> None:
        recorded = json.loads(TIMES.read_text())
        self.source, self.trial, self.commit = (
            recorded[name] for name in ("from", "trial", "commit")
        )
        self.factor = given.seconds * len(self.trial) / sum(self.trial.values())
        self.shortest = 2 / (1 + given.spread)
        self.range = self.shortest * (given.spread - 1)

    def of(self, job: Job) -> float:
        """A pack: its members' seconds, one after the other. Or a consolidation."""
        if isinstance(job, ConsolidateJob):
            return self.factor * self.commit[job.chain.method]
        places = (int(key[:8], 16) / 16**8 for key in job.keys)
        one = self.factor * self.trial[job.chain.method]
        return sum(one * (self.shortest + self.range * place) for place in places)


class Made:
    """What jobs leave: made-up trials, and of each method the state of an untrained model."""

    def __init__(self, search: sequence.Search) -> None:
        self.search, self.states = search, dict[str, ChainState]()

    def __call__(self, job: Job, member: int) -> TrialRecord | None:
        if not isinstance(job, ConsolidateJob):
            return made_up(job, member)
        method, store = job.chain.method, self.search.store
        if method not in self.states:
            self.states[method] = self._first(job)
        write_commit(store, job.commit, self.states[method], {"validation_accuracy": 0.9})
        return None

    def _first(self, job: ConsolidateJob) -> ChainState:
        (key,), store = job.keys, self.search.store
        parts = [self.search.scenario.data(number) for number in job.parts]
        cpu = torch.device("cpu")
        bench = Bench.set_up(self.search.config, job, parts, None, cpu)
        activity = {
            unit.name: torch.linspace(0, 1, unit.units)
            for unit in bench.system.backbone.unit_layers
        }
        record = TrialRecord(key, job.chain.method, job.chain.seed, job.task, {}, "COMPLETE")
        store.remove("trials", key)
        write_record(store, record, TrainedModel(bench.start.params, activity, {}))
        consolidate_trial(self.search.config, job, parts, None, store)
        state, _ = read_commit(store, job.commit) or (None, None)
        if state is None:
            raise RuntimeError("nothing was consolidated")
        return state


class Charged(Silent):
    """A tracker that only takes the driver's time."""

    def __init__(self, clock: Clock, costs: tuple[float, float]) -> None:
        self.clock, self.costs = clock, costs

    def trial(self, record: TrialRecord) -> None:
        self.clock.charge(self.costs[0])

    def committed(self, commit: Committed) -> None:
        self.clock.charge(self.costs[1])


@dataclass
class Outcome:
    """What a simulated search came to."""

    workers: int
    trials: int
    packs: int
    hours: float
    fill: float
    load: float
    started: int
    puts: int
    jobs: int
    reports: int


@contextmanager
def one_core() -> Iterator[RaySearcher]:
    """A real Ray of one core, which the driver speaks to."""
    searcher = RaySearcher(
        Given(1, 1, 1, 1.0, 1.0).config().resources.model_copy(update={"workers": 1})
    )
    try:
        yield searcher
    finally:
        searcher.close()


def simulate(
    searcher: RaySearcher,
    workers: int,
    given: Given,
    start: float,
    group: float,
    tracking: tuple[float, float],
) -> Outcome:
    """One search on a cluster of so many workers."""
    times, searcher.workers = Times(given), workers
    silent: Any = Silent()
    with tempfile.TemporaryDirectory(prefix="clsearch-fill-") as folder:
        store = open_store(Path(folder))
        search = sequence.Search(given.config(), Path(folder), store)
        put = sum(
            samples.inputs.numel() + 8 * samples.labels.numel()
            for task in search.tasks
            for samples in (search.scenario.data(task.number).train,
                            search.scenario.data(task.number).validation)
        )  # fmt: skip
        cluster = Cluster(workers, store, times.of, Made(search), start, group)
        tracker: Any = Charged(cluster.clock, tracking)
        try:
            with cluster.in_place_of_actors():
                begun = cluster.clock.now
                search.run(searcher, tracker, silent)
                ended, busy = cluster.clock.now, cluster.clock.busy
                cluster.end()
                searcher.end()
        finally:
            cluster.close()
    took = ended - begun
    return Outcome(
        workers, cluster.trials, cluster.packs, took / 3600, cluster.trained / took / workers,
        busy / took, cluster.started, put, cluster.job_bytes, cluster.report_bytes,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--chains", type=int, default=20, help="methods × seeds")
    parser.add_argument(
        "--trials", type=int, default=0,
        help="of a chain and task; by default as many as give every worker four, 5 at least",
    )  # fmt: skip
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0, help="mean time of a trial")
    parser.add_argument("--spread", type=float, default=3.0, help="longest trial ÷ shortest")
    parser.add_argument("--record", action="store_true", help="train the quickstart, write times")
    asked = parser.parse_args()
    if asked.chains > len(METHODS) and asked.chains % len(METHODS):
        parser.error(f"--chains: {len(METHODS)} methods × seeds make no {asked.chains} chains")
    torch.set_num_threads(1)
    print(machine())
    if asked.record:
        record()
        return 0
    with one_core() as searcher:
        start, group, tracking = seconds_to_start(), cost_of_a_group(), costs_of_tracking()
        beside = [b - a for a, b in zip(tracking, costs_of_tracking(apart=False), strict=True)]
        print(
            f"measured here: a worker starts in {start:.1f} s; of the driver's CPU, a placement "
            f"group takes {1e3 * group:.1f} ms, a trial {1e3 * tracking[0]:.1f} ms for what MLflow "
            f"is told, and a selection {1e3 * tracking[1]:.0f} ms with the export of its model; "
            f"the process that delivers takes {1e3 * beside[0]:.1f} and {1e3 * beside[1]:.0f} ms "
            "beside it, which is in no column"
        )
        times = Times(Given(asked.chains, 1, 1, asked.seconds, asked.spread))
        print(
            f"trials and consolidations take {times.factor:.0f} × what they took in "
            f"{times.source}: {asked.seconds:g} s a trial on the mean, spread by {asked.spread:g} ×"
        )
        head = ("workers", "trials", "packs", "hours", "fill %", "driver", "starts",
                "data MB", "× nodes", "jobs MB", "reports MB")  # fmt: skip
        print("".join(f"{name:>11}" for name in head))
        reached = True
        for workers in asked.workers:
            trials = asked.trials or max(5, round(4 * workers / asked.chains))
            given = Given(asked.chains, trials, asked.tasks, asked.seconds, asked.spread)
            found = simulate(searcher, workers, given, start, group, tracking)
            _print(found)
            reached &= workers < 1000 or (found.fill >= FILL and found.load < LOAD)
    if max(asked.workers) >= 1000:
        target = f"{100 * FILL:.0f} % fill, driver under {LOAD:g} core"
        print(f"target at 1000 workers: {target}: {'reached' if reached else 'NOT reached'}")
    return 0 if reached else 1


def _print(found: Outcome) -> None:
    nodes = math.ceil(found.workers / CORES)
    row = (
        f"{found.workers}", f"{found.trials}", f"{found.packs}", f"{found.hours:.2f}",
        f"{100 * found.fill:.1f}", f"{found.load:.2f}", f"{found.started}",
        f"{found.puts / 1e6:.1f}", f"{nodes}", f"{found.jobs / 1e6:.1f}",
        f"{found.reports / 1e6:.1f}",
    )  # fmt: skip
    print("".join(f"{cell:>11}" for cell in row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
