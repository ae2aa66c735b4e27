"""What the audit trail says of trials and selections: tags, metrics and plain words. No MLflow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Points = list[tuple[str, float | None, int]]
"""Metrics: name, value (None and non-finite ones are dropped) and step."""


FINE_TUNE = ("pruned", "recovered", "sparsity")
"""Metrics of a round of fine-tuning; the round is their step."""


def tags_of(
    kind: str,
    at_task: Mapping[str, Any] | None = None,
    trial: str = "none",
    status: str = "RUNNING",
    selected: bool = False,
) -> dict[str, str]:
    """The tags every run has, besides those that identify it."""
    chain = {"method": "all", "seed": "all", "task": "all"} if at_task is None else at_task
    return chain_tags(chain) | {
        "clsearch.kind": kind,
        "clsearch.trial_key": trial,
        "clsearch.status": status,
        "clsearch.selected": str(selected).lower(),
    }


def chain_tags(at_task: Mapping[str, Any]) -> dict[str, str]:
    return {f"clsearch.{name}": str(at_task[name]) for name in ("method", "seed", "task")}


def trial_points(body: Mapping[str, Any]) -> Points:
    """A trial's metrics; the curve has the epoch (from 1) as its step, the scan its index."""
    points: Points = [(name, body[name], 0) for name in ("validation_accuracy", "drift")]
    points += [("duration", body["duration"], 0), ("epochs", body["epochs"], 0)]
    points += [("validation_accuracy_by_epoch", a, i) for i, a in enumerate(body["curve"], 1)]
    for i, point in enumerate(body["scan"]):
        points += [
            ("scan_accuracy", point["accuracy"], i),
            ("scan_threshold", point["threshold"], i),
        ]
        points += free_points("scan_free", body["layers"], point["free"], i)
    return points


def selection_points(body: Mapping[str, Any]) -> Points:
    chosen = body["selection"]
    names = ("margin", "best", "floor", "validation_accuracy", "threshold", "accuracy", "sparsity")
    points: Points = [(name, chosen[name], 0) for name in names]
    points += free_points("free", chosen["layers"], chosen["free"], 0)
    points += free_points("free_stored", chosen["layers"], body["free"], 0)
    points += [
        (f"threshold.{layer}", theta, 0)
        for layer, theta in zip(chosen["layers"], chosen["thresholds"], strict=False)
    ]
    for i, done in enumerate(chosen["rounds"], start=1):
        points += [(f"fine_tune.{name}", done[name], i) for name in FINE_TUNE]
    account = body.get("capacity", ())
    for name in ("units", "used", "new", "reused") if account else ():
        points += [(name, sum(layer[name] for layer in account), 0)]
        points += [(f"{name}.{layer['layer']}", layer[name], 0) for layer in account]
    points += [(f"test_accuracy.task_{j}", a, 0) for j, a in enumerate(body["test"], 1)]
    points += [("candidates", len(chosen["candidates"]), 0)]
    points += [("candidates_within_margin", within_margin(chosen), 0)]
    return points + [(name, value, 0) for name, value in body["metrics"].items()]


def free_points(name: str, layers: Sequence[str], free: Sequence[int], step: int) -> Points:
    """Free neurons: all of them, and by layer."""
    by_layer: Points = [
        (f"{name}.{layer}", n, step) for layer, n in zip(layers, free, strict=False)
    ]
    return [(name, sum(free), step), *by_layer] if free else []


def within_margin(chosen: Mapping[str, Any]) -> int:
    """How many candidates reach the floor before pruning."""
    # The selector gives an accuracy at a threshold to those, and to no other.
    return sum(c["accuracy"] is not None for c in chosen["candidates"])


def story(body: Mapping[str, Any]) -> str:
    """What was chosen and why, in plain words."""
    chosen = body["selection"]
    lines = [f"{chosen['method']}, seed {chosen['seed']}, task {chosen['task']}."]
    if chosen["trial_key"] is None:
        lines.append(f"Nothing was chosen ({chosen['outcome']}): {chosen['reason']}")
    else:
        hyper = words(chosen["hyperparameters"], ", ") or "no hyperparameters"
        won = next((c for c in chosen["candidates"] if c["chosen"]), chosen)
        lines += [
            f"Chosen: trial `{won['trial_key']}` with {hyper}.",
            f"Why: {chosen['reason']}",
        ]
    if chosen["floor"] is not None:
        lines.append(
            f"{within_margin(chosen)} of {len(chosen['candidates'])} candidates are within the "
            f"margin of {chosen['margin']:g} percentage points: best validation accuracy "
            f"{chosen['best']:.4f}, floor {chosen['floor']:.4f}."
        )
    for i, done in enumerate(chosen["rounds"], start=1):
        lines.append(f"Round {i}: trial `{done['trial_key']}`, {done['why']}.")
    if body.get("transfer"):
        lines.append(
            "Last-layer transfer: the last hidden layer had no free neurons left, so that the "
            "output layer alone was learned."
        )
    if body["seeded_by"]:
        lines.append(f"It started from trial `{body['seeded_by']}` of the task before.")
    return "\n\n".join(lines)


def word(value: object) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def words(values: Mapping[str, object], between: str) -> str:
    return between.join(f"{name}={word(value)}" for name, value in values.items())


def slug(name: str) -> str:
    return re.sub(r"[^\w.\-]+", "-", name)


def flat(value: object, name: str = "") -> dict[str, str]:
    """A nested config as parameters: `a.b.0` to its value."""
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        parts = [flat(part, f"{name}.{key}" if name else str(key)) for key, part in items]
        return {key: part for found in parts for key, part in found.items()}
    return {name or "config": str(value)}
