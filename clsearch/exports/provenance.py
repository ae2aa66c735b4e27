"""What an exported model says of where it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

import clsearch
from clsearch.identity import movable, without_folders
from clsearch.records import NOT_STATED

if TYPE_CHECKING:
    from clsearch.config import Config
    from clsearch.methods.base import Method
    from clsearch.records import TaskRecord, TaskResult


def provenance(
    config: Config,
    method: Method,
    tasks: Sequence[TaskRecord],
    result: TaskResult,
    licence: str = NOT_STATED,
) -> dict[str, Any]:
    """Metrics, how it was selected, digests, what it was trained on, licences, versions, config.

    `tasks` are those of the run; the model has been trained on all of them up to its own, or on
    its own alone where the method has a model for each. `licence` is the model's own. The same for
    the same model: no time, no place of the export, no folder of the machine.
    """
    selection = replace(result.selection, candidates=())
    statuses = Counter(c.status for c in result.selection.candidates)
    own = selection.task
    seen = [t for t in tasks if t.number == own or (t.number < own and not method.independent)]
    return {
        "metrics": {
            "test_accuracy": result.test[-1],
            "validation_accuracy": selection.validation_accuracy,
            "validation_accuracy_pruned": selection.accuracy,
            "sparsity": selection.sparsity,
        },
        "selection": {**selection.to_json(), "trials": dict(statuses)},
        "digests": {"trial": selection.trial_key, "commit": result.commit},
        "trained_on": {
            "scenario": config.scenario.name,
            "seed": selection.seed,
            "tasks": [_trained_on(task) for task in seen],
        },
        "licence": {"model": licence, "data": [_licence(task) for task in seen]},
        "versions": {"clsearch": clsearch.__version__, "torch": str(torch.__version__)},
        "config": _config(config),
    }


def _licence(task: TaskRecord) -> dict[str, Any]:
    """By task: two sets of the user's own have the same source."""
    return {"task": task.number, "source": task.source, "licence": task.licence}


def _config(config: Config) -> dict[str, Any]:
    data = config.model_dump(mode="json", exclude={"resources", "tracking"})
    moved = {name: without_folders(data[name]) for name in ("model", "methods")}
    return {**data, **moved, "scenario": movable(data["scenario"])}


def _trained_on(task: TaskRecord) -> dict[str, Any]:
    """A task's data, by what tells it from others; its classes stand with the model's task."""
    kept = ("number", "name", "source", "digest", "train", "validation", "test")
    return {name: getattr(task, name) for name in kept}
