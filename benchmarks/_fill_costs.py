"""The search whose scheduling is simulated, and what it takes that is measured first: MLflow and
exports of its driver, the start of a worker."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.search_overhead import InProcess, Silent
from clsearch import sequence
from clsearch.config import Config, parse_config
from clsearch.folder import open_store
from clsearch.protocols import Committed, Job
from clsearch.records import ScanPoint, TrialRecord, digest
from clsearch.search._ray import ray
from clsearch.system import resolve
from clsearch.tracking import MLflowTracker

METHODS = ("finetune", "ewc", "mas", "clnp")


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


class Kept(Silent):
    """A tracker that keeps what is committed."""

    def __init__(self) -> None:
        self.commits: list[Committed] = []

    def committed(self, commit: Committed) -> None:
        self.commits.append(commit)


def costs_of_tracking(apart: bool = True, count: int = 50) -> tuple[float, float]:
    """CPU seconds that what MLflow is told takes of the driver, for a trial, and for a selection
    with the export of its model. Not `apart`: with those of MLflow's client and database, which
    are else of another process on its host."""
    with tempfile.TemporaryDirectory(prefix="clsearch-fill-") as folder:
        out = Path(folder)
        config = Given(1, 2, 4, 1.0, 1.0).config()
        short = config.training.model_copy(update={"epochs": 1})
        config = config.model_copy(update={"training": short})
        search = sequence.Search(config, out, open_store(out))
        kept: Any = Kept()
        search.run(InProcess(), kept, kept)
        place = (sequence.Chain("finetune", 0), 0, 1, None, (1,), True)
        jobs = [Job(*place, keys=(digest(i),), hypers=({"lr": 0.1},)) for i in range(count)]

        def taken(entries: Sequence[Callable[[MLflowTracker], None]]) -> float:
            for some in (entries[:1], entries[1:]):  # the first imports what it takes
                tracker = MLflowTracker(out, apart=apart)
                tracker.start(search.info())
                begun = time.process_time()
                for entry in some:
                    entry(tracker)
                tracker.close(120.0)
            return (time.process_time() - begun) / (len(entries) - 1)

        trials = [partial(_trial, made_up(job, 0)) for job in jobs]
        return taken(trials), taken([partial(_committed, one) for one in kept.commits])


def _trial(record: TrialRecord, tracker: MLflowTracker) -> None:
    tracker.trial(record)


def _committed(commit: Committed, tracker: MLflowTracker) -> None:
    tracker.committed(commit)
