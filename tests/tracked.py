"""A search of two tasks as the tracker is told of it, and what MLflow then has."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clsearch.protocols import Committed, SearchInfo
from clsearch.records import (
    Candidate,
    LayerCapacity,
    ScanPoint,
    Selection,
    TaskResult,
    TrialRecord,
)
from clsearch.tracking import MLflowTracker, store_of

DIGEST = "d" * 32
CONFIG = {"scenario": {"name": "permuted", "source": "digits", "root": "/somewhere"}, "seeds": [0]}
TASKS = [
    {"number": n, "name": f"permuted-{n}", "classes": ["a", "b"], "digest": f"{n:032x}",
     "train": 90, "validation": 10, "test": 20}
    for n in (1, 2)
]  # fmt: skip
INFO = SearchInfo("demo", DIGEST, CONFIG, TASKS)


def trial(number: int, task: int = 1, **changes: Any) -> TrialRecord:
    fields: dict[str, Any] = {
        "trial_key": f"{number:032x}",
        "method": "ewc",
        "seed": 0,
        "task": task,
        "hyperparameters": {"lr": 0.001, "strength": 10.0 * number},
        "status": "COMPLETE",
        "validation_accuracy": 0.9 + number / 1000,
        "drift": 0.25,
        "layers": ("fc1", "fc2"),
        "units": (20, 10),
        "free": (5, 2),
        "scan": (ScanPoint(0.0, 0.9, (1, 0)), ScanPoint(0.5, 0.8, (4, 3))),
        "curve": (0.5, 0.7, 0.9),
        "epochs": 3,
        "duration": 2.5,
        "started": 1_700_000_000.0 + number,
    }
    return TrialRecord(**{**fields, **changes})


def selection(number: int, task: int = 1) -> Selection:
    seen = tuple(
        Candidate(
            f"{n:032x}", {"lr": 0.001}, "COMPLETE", 0.9 + n / 1000, 0.5, 0.9, (5, 2), 0.2, 0.1,
            n == number, "leaves the most free" if n == number else "leaves less free",
        )
        for n in (1, 2)
    )  # fmt: skip
    return Selection(
        "ewc", 0, task, "selected", "it leaves the most free capacity", 1.0, 0.902, 0.892,
        f"{number:032x}", {"lr": 0.001, "strength": 10.0 * number}, 0.9 + number / 1000, 0.5, 0.895,
        ("fc1", "fc2"), (20, 10), (5, 2), 7 / 30, seen,
    )  # fmt: skip


def committed(
    number: int, model: Path | None, task: int = 1, figures: Sequence[Path] = ()
) -> Committed:
    account = LayerCapacity("fc1", 20, 15, 6, 4), LayerCapacity("fc2", 10, 8, 3, 0)
    result = TaskResult(
        selection(number, task), f"commit-{number}-{task}", (0.91, None)[:task], (5, 2),
        capacity=account, transfer=task == 2,
    )  # fmt: skip
    before = ("f" * 32, f"commit-{number}-{task - 1}") if task > 1 else (None, None)

    def write(folder: Path) -> None:
        for source in (*(model.iterdir() if model else ()), *figures):
            shutil.copy(source, folder)

    return Committed(result, write if model else None, *before, {"retained": 0.5})


def play(tracker: MLflowTracker, model: Path, figure: Path) -> None:
    """A whole search of two tasks."""
    tracker.start(INFO)
    for task in (1, 2):
        for number in (1, 2):
            tracker.trial(trial(number, task))
        tracker.committed(committed(2, model, task, [figure]))
    tracker.finish([figure], {"average_accuracy/ewc.seed-0": 0.9}, "FINISHED")


def finished(tracker: MLflowTracker, model: Path, figure: Path) -> None:
    play(tracker, model, figure)
    assert tracker.close(60) == 0, tracker.problem
    assert tracker.rejected == []


def client(out: Path, uri: str | None = None) -> Any:
    from mlflow import MlflowClient

    address = store_of(out, uri)[0]
    return MlflowClient(tracking_uri=address, registry_uri=address)


def runs(look: Any) -> dict[str, Any]:
    """Every run of the search, by its name."""
    experiment = look.get_experiment_by_name("demo")
    found = look.search_runs([experiment.experiment_id])
    assert len({run.data.tags["clsearch.key"] for run in found}) == len(found), "duplicates"
    return {run.info.run_name.removesuffix(" · selected"): run for run in found}


def everything(look: Any) -> dict[str, Any]:
    """All a search left in MLflow that a replay must not change."""
    found: dict[str, Any] = {}
    for name, run in runs(look).items():
        history = {
            metric: [
                (m.value, m.step, m.timestamp)
                for m in look.get_metric_history(run.info.run_id, metric)
            ]
            for metric in run.data.metrics
        }
        info = (run.info.run_id, run.info.status, run.info.start_time, run.info.end_time)
        files = sorted(f.path for f in look.list_artifacts(run.info.run_id))
        found[name] = (info, run.data.tags, run.data.params, history, files)
    versions = look.search_model_versions("name = 'demo.ewc.seed-0'")
    registered = look.get_registered_model("demo.ewc.seed-0")
    found["models"] = (sorted((int(v.version), v.source) for v in versions), registered.aliases)
    return found
