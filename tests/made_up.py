"""Records and results of runs that never were, for tests of what is made of them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace

from clsearch.config import parse_config
from clsearch.folder import open_chains
from clsearch.records import (
    Candidate,
    LayerCapacity,
    ScanPoint,
    Selection,
    TaskRecord,
    TaskResult,
    TrialRecord,
)
from clsearch.report.source import Run

LAYERS = ("fc1", "fc2")
UNITS = (20, 10)
RATES = (0.001, 0.003, 0.01)
Made = tuple[list[TrialRecord], list[TaskResult]]


def trials(method: str, seed: int, task: int, *, fail: bool) -> list[TrialRecord]:
    """Three trials, the last one failed; all of them with `fail`."""
    dice = random.Random(f"{method} {seed} {task}")
    records = []
    for i, rate in enumerate(RATES):
        key = hashlib.sha256(f"{method} {seed} {task} {i}".encode()).hexdigest()[:32]
        hyper = {"lr": rate} if method == "finetune" else {"lr": rate, "strength": 10.0**i}
        if fail or i == 2:
            records.append(TrialRecord(key, method, seed, task, hyper, "FAILED", "loss is nan"))
            continue
        best = 0.95 - 0.002 * i - 0.001 * task
        scan = tuple(
            ScanPoint(t, best - drop, (4 + n, 2 + n))
            for n, (t, drop) in enumerate([(0.0, 0), (0.01, 0.003), (0.3, 0.2 * dice.random())])
        )
        records.append(
            TrialRecord(
                key, method, seed, task, hyper, "COMPLETE", "", best, 0.5, LAYERS, UNITS,
                (4, 2), scan, (0.5, best), 2, 1.5, 100.0, "cpu", "host", 2,
            )
        )  # fmt: skip
    return records


def select(records: Sequence[TrialRecord]) -> Selection:
    """The first trial at θ = 0.01; the second lost, the third failed."""
    first = records[0]
    place = (first.method, first.seed, first.task)
    if first.status == "FAILED":
        return Selection(*place, "failed", "all trials [3] failed: loss is nan", 1.0)
    candidates = tuple(
        Candidate(
            r.trial_key, r.hyperparameters, r.status, r.validation_accuracy,
            0.01 if r.scan else None, r.scan[1].accuracy if r.scan else None,
            r.scan[1].free if r.scan else (), 8 / 30 if r.scan else 0.0, r.drift,
            r is first, "sparsest" if r is first else "less free",
        )
        for r in records
    )  # fmt: skip
    best = first.validation_accuracy or 0.0
    return Selection(
        *place, "selected", "sparsest", 1.0, best, best - 0.01, first.trial_key,
        first.hyperparameters, best, 0.01, best - 0.003, LAYERS, UNITS, (5, 3), 8 / 30, candidates,
    )  # fmt: skip


def run(
    methods: Sequence[str], tasks: int, seeds: int = 1, end: tuple[str, int, int] | None = None
) -> Made:
    """A run; `end` names the method, seed and task at which a chain fails."""
    records, results = [], []
    for method in methods:
        for seed in range(seeds):
            for task in range(1, tasks + 1):
                ends = end == (method, seed, task)
                found = trials(method, seed, task, fail=ends)
                records += found
                lost = 0.0 if method == "clnp" else 0.1
                row = [0.9 + 0.01 * seed - lost * (j < task) for j in range(1, task + 1)]
                selection = select(found)
                results.append(
                    TaskResult(selection, None)
                    if ends
                    else TaskResult(selection, "c0ffee", tuple(row), (5, 3), 1536 * task)
                )
                if ends:
                    break
    return records, results


def accounted(found: Made) -> Made:
    """The run with an account of clnp's neurons, whose fc1 grows; task 2 is learned by transfer."""
    records, results = found
    return records, [
        replace(
            r,
            capacity=(
                LayerCapacity("fc1", 16 + 4 * task, used=4 + 4 * task, new=4, reused=3 * task + 1),
                LayerCapacity("fc2", 10, used=min(10, 3 + 2 * task), new=2, reused=0),
            ),
            transfer=task == 2,
        )
        if (task := r.selection.task) and r.selection.method == "clnp" and r.commit
        else r
        for r in results
    ]


def told(found: Made, tasks: int, name: str = "test", stored: int = 0) -> Run:
    """The run as a report gets it, of permuted digits."""
    records, results = found
    labels = list(dict.fromkeys(r.method for r in records))
    config = parse_config(
        {
            "name": name,
            "scenario": {"name": "permuted", "source": "digits", "tasks": tasks},
            "methods": [{"name": "finetune", "label": label} for label in labels],
            "seeds": sorted({r.seed for r in records}),
        }
    )
    about = {
        "scenario": config.scenario.model_dump(),
        "tasks": [
            TaskRecord(
                n, f"permuted-{n}", "digits", "CC-BY-4.0", tuple(map(str, range(10))), (1, 8, 8),
                f"d{n}", 1295, 143, 359,
            )
            for n in range(1, tasks + 1)
        ],
        "machine": {"host": "host", "cpu": "a cpu", "cores": 2, "system": "Linux"},
        "versions": {"python": "3.11", "torch": "2.13"},
    }  # fmt: skip
    unfinished = open_chains(config, results, tasks)
    stored = stored or len(records)
    return Run(config, records, results, about, unfinished, stored, f"{name}-folder")
