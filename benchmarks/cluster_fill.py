"""How full a search keeps a cluster, and what that costs its driver.

    python -m benchmarks.cluster_fill [--workers N …] [--chains N] [--trials N] [--tasks N]
    python -m benchmarks.cluster_fill --record     trains the quickstart and records its times

The search, its packs, their order and Ray Tune's loop are the real ones; only the workers are
simulated (`benchmarks/_cluster.py`): they let the recorded time of a pack pass and report what a
worker would. Nothing trains. The seconds of trials and commits are those of the quickstart, in
`benchmarks/cluster_fill.json`, made longer by one factor for both, so that a trial takes
`--seconds` on the mean; then each trial has its own, spread evenly between a shortest and a
longest, `--spread` times the shortest. The driver's CPU time is its own: it moves the clock, and so
do the commits, during which it does nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks._cluster import Cluster
from benchmarks._machine import machine
from benchmarks.search_overhead import InProcess, Silent
from clsearch import sequence
from clsearch.commit import Commit, Learned, commit
from clsearch.config import Config, load_config, parse_config
from clsearch.folder import open_store
from clsearch.protocols import Job
from clsearch.records import ScanPoint, Selection, TrialRecord, digest
from clsearch.search._ray import ray
from clsearch.search.ray_backend import RaySearcher
from clsearch.store import Store, TrainedModel, write_record
from clsearch.system import resolve
from clsearch.tracking import MLflowTracker

ROOT = Path(__file__).parent.parent
TIMES = Path(__file__).with_suffix(".json")
METHODS = ("finetune", "ewc", "mas", "clnp")
FILL, LOAD = 0.95, 1.0
"""Targets."""
CORES = 64
"""Workers of a node."""


def record() -> None:
    """Trains the quickstart here and writes the mean seconds of its trials and of its commits."""
    trials: dict[str, list[float]] = defaultdict(list)
    commits: dict[str, list[float]] = defaultdict(list)

    def timed(learned: Learned, selection: Selection, store: Store) -> Commit:
        begun = time.perf_counter()
        made = commit(learned, selection, store)
        commits[selection.method].append(time.perf_counter() - begun)
        return made

    config = resolve(load_config(ROOT / "experiments" / "quickstart.yaml"))
    with tempfile.TemporaryDirectory(prefix="clsearch-fill-") as folder:
        search = sequence.Search(config, Path(folder), open_store(Path(folder)))
        silent: Any = Silent()
        with mock.patch.object(sequence, "commit", timed):
            found = search.run(InProcess(), silent, silent)
    for one in found.records:
        trials[one.method].append(one.duration)
    times = {
        "from": f"{config.name}, on {machine()}",
        "trial": {m: round(sum(s) / len(s), 4) for m, s in trials.items()},
        "commit": {m: round(sum(s) / len(s), 4) for m, s in commits.items()},
    }
    TIMES.write_text(json.dumps(times, indent=1) + "\n")
    print(TIMES.read_text(), end="")


@dataclass
class Given:
    """What is simulated: the command's options."""

    chains: int
    trials: int
    tasks: int
    seconds: float
    spread: float

    def config(self) -> Config:
        seeds = math.ceil(self.chains / len(METHODS))
        grid = {"lr": {"logspace": [1e-4, 1e-2, self.trials]}}
        fixed: dict[str, dict[str, Any]] = {"ewc": {"strength": 1}, "mas": {"strength": 1}}
        fixed["clnp"] = {"l1": 1e-4}
        return resolve(
            parse_config(
                {
                    "name": "cluster-fill",
                    "scenario": {"name": "permuted", "source": "digits", "tasks": self.tasks},
                    "model": {"name": "mlp", "hidden": [200, 200]},
                    "methods": [
                        {"name": name, "grid": grid | fixed.get(name, {})}
                        for name in METHODS[: self.chains]
                    ],
                    "seeds": list(range(seeds)),
                }
            )
        )


class Times:
    """The seconds of trials and commits: recorded, and made longer."""

    def __init__(self, given: Given) -> None:
        recorded = json.loads(TIMES.read_text())
        self.source, self.trial, self.commit = (
            recorded[name] for name in ("from", "trial", "commit")
        )
        self.factor = given.seconds * len(self.trial) / sum(self.trial.values())
        self.shortest = 2 / (1 + given.spread)
        self.range = self.shortest * (given.spread - 1)

    def of(self, job: Job) -> float:
        """A pack: its members' seconds, one after the other."""
        places = (int(key[:8], 16) / 16**8 for key in job.keys)
        one = self.factor * self.trial[job.chain.method]
        return sum(one * (self.shortest + self.range * place) for place in places)


def made_up(job: Job, member: int) -> TrialRecord:
    """A record of the usual size; its accuracy is drawn by its key."""
    key = job.keys[member]
    best = 0.9 + int(key[8:12], 16) / 16**4 / 20
    free = tuple(min(4 * i, 150) for i in range(50))
    scan = tuple(ScanPoint(i / 50, round(best - i / 500, 4), (n, n)) for i, n in enumerate(free))
    return TrialRecord(
        key, job.chain.method, job.chain.seed, job.task, dict(job.hypers[member]), "COMPLETE", "",
        best, 0.0, ("fc1", "fc2"), (200, 200), (0, 0), scan, (best,) * 20, 20, 1.0, 1.7e9, "cpu",
        "worker", len(job.keys),
    )  # fmt: skip


class Commits:
    """Commits that take the recorded seconds and come to the state of an untrained model."""

    def __init__(self, cluster: Cluster, times: Times) -> None:
        self.cluster, self.times = cluster, times
        self.made: dict[str, Commit] = {}
        self.seconds = 0.0

    def __call__(self, learned: Learned, selection: Selection, store: Store) -> Commit:
        with self.cluster.clock.aside():
            method = selection.method
            if method not in self.made:
                self.made[method] = self._first(learned, selection, store)
            seconds = self.times.factor * self.times.commit[method]
        self.seconds += seconds
        self.cluster.clock.charge(seconds)
        known = self.made[method]
        tests = {str(task.number): 0.9 for task in learned.tasks}
        return Commit(digest([selection.trial_key]), known.state, 0.9, tests)

    def _first(self, learned: Learned, selection: Selection, store: Store) -> Commit:
        key = str(selection.trial_key)
        _, start = learned.system.begin(
            learned.parent, sequence.context_of(learned.config, 0, learned.parts, True)
        )
        activity = {
            unit.name: torch.linspace(0, 1, unit.units)
            for unit in learned.system.backbone.unit_layers
        }
        record = next(c for c in selection.candidates if c.trial_key == key)
        trial = TrialRecord(
            key, selection.method, selection.seed, 1, record.hyperparameters, "COMPLETE"
        )
        store.remove("trials", key)
        write_record(store, trial, TrainedModel(start.params, activity, {}))
        return commit(learned, selection, store)


def cost_of_a_group() -> float:
    """CPU seconds that the driver takes for a placement group: asked for, waited for, removed."""
    begun = time.process_time()
    for _ in range(20):
        group = ray.util.placement_group([{"CPU": 0.01}])
        ray.get(group.ready())
        ray.util.remove_placement_group(group)
    return (time.process_time() - begun) / 20


def seconds_to_start() -> float:
    """Seconds until a new worker has imported what trains."""

    class Trains:
        def __init__(self) -> None:
            import clsearch.jobs  # noqa: F401

        def ready(self) -> bool:
            return True

    begun = time.perf_counter()
    actor = ray.remote(num_cpus=1)(Trains).remote()
    ray.get(actor.ready.remote())
    ray.kill(actor)
    return time.perf_counter() - begun


def cost_of_tracking(count: int = 50) -> float:
    """CPU seconds that MLflow takes of the driver for a trial."""
    with tempfile.TemporaryDirectory(prefix="clsearch-fill-") as folder:
        given = Given(1, count, 1, 1.0, 1.0)
        search = sequence.Search(given.config(), Path(folder), open_store(Path(folder)))
        tracker = MLflowTracker(Path(folder))
        tracker.start(search.info())
        chain = sequence.Chain("finetune", 0)
        begun = time.process_time()
        for i in range(count):
            job = Job(chain, 0, 1, None, (1,), True, (digest(i),), ({"lr": 0.1},))
            tracker.trial(made_up(job, 0))
        tracker.close(120.0)
        return (time.process_time() - begun) / count


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
    commits: float
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
    searcher: RaySearcher, workers: int, given: Given, start: float, group: float, tracking: float
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
        cluster = Cluster(workers, store, times.of, made_up, start, group)
        commits = Commits(cluster, times)
        try:
            with cluster.in_place_of_actors(), mock.patch.object(sequence, "commit", commits):
                begun = cluster.clock.now
                found = search.run(searcher, silent, silent)
                cluster.clock.charge(tracking * len(found.records))
                ended, busy = cluster.clock.now, cluster.clock.busy
        finally:
            cluster.close()
    took = ended - begun
    return Outcome(
        workers, cluster.trials, cluster.packs, took / 3600, cluster.trained / took / workers,
        busy / took, cluster.started, commits.seconds, put, cluster.job_bytes, cluster.report_bytes,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--chains", type=int, default=20, help="methods × seeds")
    parser.add_argument(
        "--trials", type=int, default=0,
        help="of a chain and task; by default as many as give every worker two, 5 at least",
    )  # fmt: skip
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0, help="mean time of a trial")
    parser.add_argument("--spread", type=float, default=3.0, help="longest trial ÷ shortest")
    parser.add_argument("--record", action="store_true", help="train the quickstart, write times")
    asked = parser.parse_args()
    print(machine())
    if asked.record:
        record()
        return
    with one_core() as searcher:
        start, group, tracking = seconds_to_start(), cost_of_a_group(), cost_of_tracking()
        print(
            f"measured here: a worker starts in {start:.1f} s; of the driver's CPU, a placement "
            f"group takes {1e3 * group:.1f} ms and a trial {1e3 * tracking:.1f} ms for MLflow"
        )
        times = Times(Given(asked.chains, 1, 1, asked.seconds, asked.spread))
        print(
            f"trials and commits take {times.factor:.0f} × what they took in {times.source}: "
            f"{asked.seconds:g} s a trial on the mean, spread by {asked.spread:g} ×"
        )
        head = ("workers", "trials", "packs", "hours", "fill %", "driver", "starts", "commits s",
                "data MB", "× nodes", "jobs MB", "reports MB")  # fmt: skip
        print("".join(f"{name:>11}" for name in head))
        reached = True
        for workers in asked.workers:
            trials = asked.trials or max(5, round(2 * workers / asked.chains))
            given = Given(asked.chains, trials, asked.tasks, asked.seconds, asked.spread)
            found = simulate(searcher, workers, given, start, group, tracking)
            _print(found)
            reached &= workers < 1000 or (found.fill >= FILL and found.load < LOAD)
    print(f"target at 1000 workers: {100 * FILL:.0f} % fill, driver under {LOAD:g} core: "
          f"{'reached' if reached else 'NOT reached'}")  # fmt: skip


def _print(found: Outcome) -> None:
    nodes = math.ceil(found.workers / CORES)
    row = (
        f"{found.workers}", f"{found.trials}", f"{found.packs}", f"{found.hours:.2f}",
        f"{100 * found.fill:.1f}", f"{found.load:.2f}", f"{found.started}", f"{found.commits:.0f}",
        f"{found.puts / 1e6:.1f}", f"{nodes}", f"{found.jobs / 1e6:.1f}",
        f"{found.reports / 1e6:.1f}",
    )  # fmt: skip
    print("".join(f"{cell:>11}" for cell in row), flush=True)


if __name__ == "__main__":
    main()
