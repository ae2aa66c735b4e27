"""Time that `clsearch report` takes for a run of 10,000 trials: `python -m benchmarks.report`.

The folder is made by the writers of a search, from records like those of a real one: four methods,
five seeds, ten tasks, fifty trials a task, fifty thresholds a scan.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks._machine import machine as said
from clsearch.config import Config, parse_config
from clsearch.files import ABOUT, atomic_write, machine
from clsearch.folder import open_store, write_config
from clsearch.identity import without_places
from clsearch.records import LayerCapacity, ScanPoint, TaskRecord, TaskResult, TrialRecord, digest
from clsearch.report.run_files import RunFiles
from clsearch.selection import select
from clsearch.store import write_record
from clsearch.system import resolve

LAYERS, UNITS, THRESHOLDS, VALIDATION = ("fc1", "fc2"), (200, 200), 50, 1000
KEPT = {"finetune": 0.55, "ewc": 0.85, "mas": 0.8, "clnp": 1.0}
"""What is left of an earlier task's accuracy in the end."""
LIMIT = 20.0
"""Seconds."""


def config(tasks: int, trials: int, seeds: int) -> Config:
    rates = max(2, round(trials**0.5))
    strengths = {"logspace": [1e-3, 10, -(-trials // rates)]}
    grids = {"finetune": {"lr": {"logspace": [1e-4, 1e-2, trials]}}}
    return parse_config(
        {
            "name": "benchmark",
            "scenario": {"name": "permuted", "source": "digits", "tasks": tasks},
            "model": {"name": "mlp", "hidden": list(UNITS)},
            "search": {"grid": {"lr": {"logspace": [1e-4, 1e-2, rates]}}},
            "methods": [
                {"name": m, "grid": grids.get(m, {"l1" if m == "clnp" else "strength": strengths})}
                for m in KEPT
            ],
            "seeds": list(range(seeds)),
        }
    )


def trials_of(
    config: Config, method: str, seed: int, task: int, trials: int, dice: np.random.Generator
) -> Iterator[TrialRecord]:
    """Trials whose accuracy falls with the distance from the best setting; some fail."""
    rates = np.logspace(-4, -2, max(2, round(trials**0.5)))
    for i in range(trials):
        hyper = {"lr": float(rates[i % len(rates)])}
        if method != "finetune":
            hyper["l1" if method == "clnp" else "strength"] = float(10.0 ** (i // len(rates) - 3))
        else:
            hyper["lr"] = float(10.0 ** (2 * i / trials - 4))
        key = digest([config.name, method, seed, task, hyper])
        if dice.random() < 0.01:
            yield TrialRecord(key, method, seed, task, hyper, "FAILED", "loss is nan at epoch 3")
            continue
        lost = 0.02 * abs(np.log10(hyper["lr"]) + 3) ** 2 + 0.01 * dice.random()
        best = round((0.97 - lost - 0.002 * task) * VALIDATION) / VALIDATION
        thetas = np.concatenate([[0.0], np.logspace(-4, 1, THRESHOLDS - 1)])
        falls = np.cumsum(dice.random(THRESHOLDS) ** 6) / 30
        free = np.minimum(np.cumsum(dice.integers(0, 9, (THRESHOLDS, 2)), 0), 200)
        scan = tuple(
            ScanPoint(
                float(t), round((best - float(f)) * VALIDATION) / VALIDATION, tuple(map(int, n))
            )
            for t, f, n in zip(thetas, falls, free, strict=True)
        )
        yield TrialRecord(
            key, method, seed, task, hyper, "COMPLETE", "", best, float(dice.random()), LAYERS,
            UNITS, scan[0].free, scan, (best,), 20, 0.9, 1.7e9, "cpu", "host", 8,
        )  # fmt: skip


def make(out: Path, tasks: int, trials: int, seeds: int) -> int:
    """Fills a run's folder; returns how many trials it has."""
    resolved, dice, store = (
        resolve(config(tasks, trials, seeds)),
        np.random.default_rng(0),
        open_store(out),
    )
    records: list[TrialRecord] = []
    results: list[TaskResult] = []
    for task in range(1, tasks + 1):
        for method, kept in KEPT.items():
            for seed in range(seeds):
                own = list(trials_of(resolved, method, seed, task, trials, dice))
                selection = select(own, resolved.selection.margin)
                test = tuple(
                    (selection.accuracy or 0.0) * (kept ** (task - j)) for j in range(1, task + 1)
                )
                used = [min(200, 18 * task + 10 * i) for i in range(2)]
                account = tuple(
                    LayerCapacity(name, 200, used[i], min(18, used[i]), used[i] // 3)
                    for i, name in enumerate(LAYERS)
                )
                records += own
                results.append(
                    TaskResult(
                        selection, digest([method, seed, task]), test, selection.free, 1024,
                        account if method == "clnp" else (),
                    )
                )  # fmt: skip
    for record in records:
        write_record(store, record, None)
    write_config(out, resolved)
    described = [
        TaskRecord(
            n, f"permuted-{n}", "digits", "CC-BY-4.0", tuple(map(str, range(10))), (1, 8, 8),
            digest(n), 1295, 143, 359,
        ).to_json()
        for n in range(1, tasks + 1)
    ]  # fmt: skip
    scenario = without_places(resolved.scenario.model_dump(mode="json", exclude_none=True))
    atomic_write(out / ABOUT, json.dumps({"scenario": scenario, "tasks": described, **machine()}))
    RunFiles(out, LAYERS).write(records, results)
    return len(records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--trials", type=int, default=50, help="of a method, task and seed")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clsearch-report-") as folder:
        out = Path(folder) / "run"
        out.mkdir()
        count = make(out, given.tasks, given.trials, given.seeds)
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "clsearch", "report", str(out)], check=True)
        took = time.perf_counter() - begun
        size = (out / "report" / "index.html").stat().st_size / 2**20
        print(said())
        what = f"{count:,} trials, {given.tasks} tasks"
        print(f"{what}: {took:.1f} s (limit {LIMIT:.0f}), {size:.1f} MiB")
    sys.exit(took > LIMIT)


if __name__ == "__main__":
    main()
