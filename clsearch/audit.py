"""What the audit trail says of trials and selections: names, tags and metrics. No MLflow.

One scale everywhere: accuracies and sparsity in percent, what is given up and the margin in
percentage points, capacity in neurons. A metric has one name, on a trial as on a selection.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Points = list[tuple[str, float | None, int]]
"""Metrics: name, value (None and non-finite ones are dropped) and step."""

FINE_TUNE = ("pruned", "recovered", "sparsity")
"""Metrics of a round of fine-tuning; the round is their step."""
OUTCOME = ("validation_accuracy", "pruned_accuracy", "accuracy_cost", "sparsity", "free")
"""Metrics that trials and selections have in common."""
SEPARATOR = " · "


def percent(fraction: float | None) -> float | None:
    """To four decimals: no validation set is so large that they could hide a difference."""
    return None if fraction is None else round(100 * fraction, 4)


def numbered(task: int, tasks: int) -> str:
    """A task's number, as wide as that of the last of `tasks`: text sorts as numbers do."""
    return str(task).zfill(len(str(tasks)))


def place_of(at_task: Mapping[str, Any], tasks: int) -> dict[str, str]:
    """Method, seed and task of a trial or a selection, as text that sorts."""
    number = numbered(at_task["task"], tasks)
    return {"method": at_task["method"], "seed": str(at_task["seed"]), "task": number}


def name_of(place: Mapping[str, str]) -> str:
    return f"{place['method']}{SEPARATOR}seed {place['seed']}{SEPARATOR}task {place['task']}"


def trial_name(place: Mapping[str, str], body: Mapping[str, Any], selected: bool) -> str:
    parts = [name_of(place), words(body["hyperparameters"], " ")]
    parts += ["fine-tuned"] * bool(body["fine_tuned"]) + ["selected"] * selected
    return SEPARATOR.join(part for part in parts if part)


def tags_of(
    kind: str,
    place: Mapping[str, str] | None = None,
    trial: str = "none",
    status: str = "RUNNING",
    selected: bool = False,
) -> dict[str, str]:
    """The tags every run has, besides those that identify it."""
    return chain_tags(place or dict.fromkeys(("method", "seed", "task"), "all")) | {
        "clsearch.kind": kind,
        "clsearch.trial_key": trial,
        "clsearch.status": status,
        "clsearch.selected": str(selected).lower(),
    }


def chain_tags(place: Mapping[str, str]) -> dict[str, str]:
    return {f"clsearch.{name}": place[name] for name in ("method", "seed", "task")}


def trial_points(body: Mapping[str, Any]) -> Points:
    """A trial's metrics. The step of its curve is the epoch (from 1), that of its scan the number
    of neurons that the threshold frees."""
    points: Points = [("validation_accuracy", percent(body["validation_accuracy"]), 0)]
    points += [(name, body[name], 0) for name in ("drift", "duration", "epochs")]
    points += [("epoch/validation_accuracy", percent(a), i) for i, a in enumerate(body["curve"], 1)]
    for point in body["scan"]:
        freed = sum(point["free"])
        points += [
            ("scan/accuracy", percent(point["accuracy"]), freed),
            ("scan/threshold", point["threshold"], freed),
        ]
        points += by_layer("scan/free", body["layers"], point["free"], freed)
    return points


def outcome_points(outcome: Mapping[str, Any], best: float | None, layers: Sequence[str]) -> Points:
    """What the selector made of a trial, or the selection it ended with: the same metrics.

    As in the tables of a run, a trial below the floor has no accuracy after pruning, and one whose
    neurons were not counted no sparsity.
    """
    reached = outcome["accuracy"]
    cost = None if reached is None or best is None else best - reached
    points: Points = [
        ("validation_accuracy", percent(outcome["validation_accuracy"]), 0),
        ("pruned_accuracy", percent(reached), 0),
        ("accuracy_cost", percent(cost), 0),
        ("sparsity", percent(outcome["sparsity"]) if outcome["free"] else None, 0),
        ("threshold", outcome["threshold"], 0),
    ]
    points += by_layer("threshold", layers, outcome["thresholds"], 0)
    return points + free_points("free", layers, outcome["free"])


def selection_points(body: Mapping[str, Any]) -> Points:
    """What stands on the run of a chain at a task."""
    chosen = body["selection"]
    points: Points = [("margin", chosen["margin"], 0)]
    points += [(name, percent(chosen[name]), 0) for name in ("best", "floor")]
    points += outcome_points(chosen, chosen["best"], chosen["layers"])
    points += free_points("stored/free", chosen["layers"], body["free"])
    points += [("stored/bytes", body["memory_bytes"], 0)]
    for i, done in enumerate(chosen["rounds"], start=1):
        points += [(f"fine_tune/{name}", percent(done[name]), i) for name in FINE_TUNE]
    account = body["capacity"]
    for name in ("units", "used", "new", "reused") if account else ():
        points += [(f"capacity/{name}", sum(layer[name] for layer in account), 0)]
        points += [(f"capacity/{name}.{layer['layer']}", layer[name], 0) for layer in account]
    points += [
        (f"test_accuracy/task_{numbered(j, body['tasks'])}", percent(a), 0)
        for j, a in enumerate(body["test"], 1)
    ]
    points += [(name, percent(value), 0) for name, value in test_accuracies(body).items()]
    points += [("candidates", len(chosen["candidates"]), 0)]
    points += [("candidates_within_margin", len(within_margin(chosen)), 0)]
    return points + [(name, percent(value), 0) for name, value in body["metrics"].items()]


def test_accuracies(body: Mapping[str, Any]) -> dict[str, float]:
    """Fractions: on the task just learned, and the mean over the tasks so far."""
    known = [a for a in body["test"] if a is not None]
    found = {"test_accuracy": body["test"][-1]} if known else {}
    if len(known) == len(body["test"]) and known:
        found["average_test_accuracy"] = sum(known) / len(known)
    return {name: a for name, a in found.items() if a is not None}


def by_layer(name: str, layers: Sequence[str], values: Sequence[float], step: int) -> Points:
    return [(f"{name}.{layer}", v, step) for layer, v in zip(layers, values, strict=False)]


def free_points(name: str, layers: Sequence[str], free: Sequence[int]) -> Points:
    """Free neurons: all of them, and by layer."""
    return [(name, sum(free), 0), *by_layer(name, layers, free, 0)] if free else []


def within_margin(chosen: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The candidates that reach the floor before pruning, in the order of the selector's rules."""
    # The selector gives an accuracy at a threshold to those, and to no other.
    found = [c for c in chosen["candidates"] if c["accuracy"] is not None]
    return sorted(found, key=_rank)


def _rank(c: Mapping[str, Any]) -> tuple[bool, int, float, float, str]:
    """As the selector ranks, the chosen one first. The outbox has None for a drift of NaN."""
    drift = math.inf if c["drift"] is None else c["drift"]
    return (not c["chosen"], -sum(c["free"]), drift, -c["validation_accuracy"], c["trial_key"])


def word(value: object) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def words(values: Mapping[str, object], between: str) -> str:
    """By name, so that a trial and its selection say the same."""
    return between.join(f"{name}={word(value)}" for name, value in sorted(values.items()))


def slug(name: str) -> str:
    return re.sub(r"[^\w.\-]+", "-", name)


def flat(value: object, name: str = "") -> dict[str, str]:
    """A nested config as parameters: `a.b.0` to its value."""
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        parts = [flat(part, f"{name}.{key}" if name else str(key)) for key, part in items]
        return {key: part for found in parts for key, part in found.items()}
    return {name or "config": str(value)}
