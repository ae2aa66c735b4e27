"""What Ray, the store and MLflow add to a search: per task and per trial.

    python -m benchmarks.search_overhead [--trials N]

Trivial trials (a tiny net on scikit-learn's digits, one epoch, packs of one, one method, two
tasks) run three ways: by the Ray searcher with MLflow as `clsearch run` does, by the Ray searcher
without MLflow, and in this process alone with nothing but the training. Two sizes of grid are
fitted by a line: its slope is the cost per trial, its start the cost per task.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import machine
from clsearch.config import Config, parse_config
from clsearch.folder import open_store
from clsearch.jobs import run_job
from clsearch.protocols import Ended, Job, Tracker
from clsearch.records import TrialRecord
from clsearch.scenarios.base import TaskData
from clsearch.search.ray_backend import RaySearcher
from clsearch.sequence import Search
from clsearch.store import Store, read_commit
from clsearch.system import resolve
from clsearch.tracking import MLflowTracker

TASKS = 2
PER_TRIAL, PER_TASK = 0.1, 5.0
"""Targets in seconds."""


class Silent:
    """A tracker and a progress that do nothing."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *args, **kwargs: 0


class InProcess:
    """A searcher without workers: one pack after the other, here."""

    workers, device, memory = 1, "cpu", None

    def begin(self, config: Config, store: Store) -> None:
        self.config, self.store = config, store
        self.events: list[Iterator[TrialRecord | Ended]] = []

    def submit(self, jobs: Sequence[Job], data: Mapping[int, TaskData]) -> None:
        self.events += [self.run(job, [data[n] for n in job.parts]) for job in jobs]

    def wait(self) -> TrialRecord | Ended:
        while True:
            for event in self.events[0]:
                return event
            self.events.pop(0)

    def run(self, job: Job, parts: Sequence[TaskData]) -> Iterator[TrialRecord | Ended]:
        commit = None if job.parent is None else read_commit(self.store, job.parent)
        parent = None if commit is None else commit[0]
        yield from run_job(self.config, job, parts, parent, self.store, torch.device("cpu"))
        yield Ended(job)

    def close(self) -> None:
        return


class NoStore(Store):
    """A store that keeps bundles in memory."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.kept: dict[tuple[str, str], dict[str, bytes]] = {}

    def write(self, kind: str, key: str, files: Mapping[str, bytes]) -> None:
        self.kept[kind, key] = dict(files)

    def read(self, kind: str, key: str) -> dict[str, bytes] | None:
        return self.kept.get((kind, key))


def config_of(trials: int) -> Config:
    return resolve(
        parse_config(
            {
                "name": "overhead",
                "scenario": {"name": "permuted", "source": "digits", "tasks": TASKS},
                "model": {"name": "mlp", "hidden": [20]},
                "training": {"epochs": 1},
                "methods": [
                    {"name": "finetune", "grid": {"lr": {"logspace": [1e-4, 1e-2, trials]}}}
                ],
                "resources": {"pack": 1},
            }
        )
    )


def seconds(trials: int, searcher: Any, mlflow: bool, stored: bool) -> tuple[float, float, float]:
    """Seconds a task of `trials` trials takes; what MLflow then still delivers, and all of it."""
    config = config_of(trials)
    with tempfile.TemporaryDirectory(prefix="clsearch-overhead-") as folder:
        out = Path(folder)
        store = open_store(out) if stored else NoStore(str(out))
        search = Search(config, out, store)
        tracker: Tracker | Silent = MLflowTracker(out, apart=True) if mlflow else Silent()
        tracker.start(search.info())
        begun = time.perf_counter()
        found = search.run(searcher, tracker, Silent())  # type: ignore[arg-type]
        ran = time.perf_counter() - begun
        tracker.close(120.0)
        delivered = time.perf_counter() - begun - ran
    if set(found.trials.statuses) != {"COMPLETE"}:
        raise RuntimeError(f"a trial failed: {found.trials}")
    return ran / TASKS, delivered, delivered + ran


def fit(few: int, many: int, run: Callable[[int], float]) -> tuple[float, float]:
    """(seconds per task, seconds per trial) from runs of `few` and of `many` trials a task."""
    short, long = run(few), run(many)
    slope = (long - short) / (many - few)
    return short - few * slope, slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40, help="trials of a task, at most")
    given = parser.parse_args()
    print(machine())
    begun = time.perf_counter()
    searcher = RaySearcher(config_of(1).resources)
    started = time.perf_counter() - begun
    late = 0.0

    def whole(trials: int) -> float:
        nonlocal late
        ran, late, _ = seconds(trials, searcher, True, True)
        return ran

    try:
        seconds(1, searcher, False, True)  # the first run pays for imports
        ways: dict[str, Callable[[int], float]] = {
            "training alone, in process": lambda n: seconds(n, InProcess(), False, False)[0],
            "+ store": lambda n: seconds(n, InProcess(), False, True)[0],
            "+ Ray": lambda n: seconds(n, searcher, False, True)[0],
            "+ MLflow": whole,
        }
        print(f"Ray starts in {started:.1f} s, with {searcher.workers} workers")
        print(f"{'':<28}{'s a task':>10}{'ms a trial':>12}")
        found = {name: fit(2, given.trials, run) for name, run in ways.items()}
    finally:
        searcher.close()
    for name, (task, trial) in found.items():
        print(f"{name:<28}{task:>10.2f}{1e3 * trial:>12.1f}")
    (task0, trial0), (task1, trial1) = found["training alone, in process"], found["+ MLflow"]
    task = task1 - task0
    # Workers share the training between them; their overhead is what the wall clock shows beyond.
    trial = trial1 - trial0 / searcher.workers
    print(f"added per task  {task:6.2f} s   target {PER_TASK:g} s   {_verdict(task, PER_TASK)}")
    print(
        f"added per trial {1e3 * trial:6.1f} ms  target {1e3 * PER_TRIAL:g} ms  "
        f"{_verdict(trial, PER_TRIAL)}"
    )
    print(f"MLflow had {late:.1f} s left to deliver after {TASKS} tasks of {given.trials} trials")


def _verdict(value: float, target: float) -> str:
    return "reached" if value <= target else "NOT reached"


if __name__ == "__main__":
    main()
