"""What a compact model saves: measured, and printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console

from clsearch.exports.standalone import StandaloneModel
from clsearch.messages import say
from clsearch.pruning.measure import compare
from clsearch.rng import generator


def compaction(full: StandaloneModel, small: StandaloneModel) -> dict[str, Any]:
    """What was cut, as the description of a compact model says it: `before` and `after`.

    Neurons by unit layer, parameters, bytes, the largest difference of logits, and the latency of
    both (`compare`) on random pixels: one image, and 256 or as many as are evaluated at once.
    Raises `ClsearchError` for a backbone that answers otherwise when it is narrower.
    """
    task, models = full.task, {"before": full, "after": small}
    draw = generator("compaction")
    images = (
        torch.rand(count, *task.shape, generator=draw).mul(task.transform.scale)
        for count in (1, min(256, full.backbone.evaluation_batch))
    )
    units = {n: {u.name: u.units for u in m.backbone.unit_layers} for n, m in models.items()}
    return {"units": units, **compare(full, small, tuple(images))}


def print_compaction(found: Mapping[str, Any], console: Console) -> None:
    """Prints what a compact model saves, in a line each for size and latency."""
    units, parameters, size = (found[name] for name in ("units", "parameters", "bytes"))
    neurons = {n: sum(layers.values()) for n, layers in units.items()}
    if units["before"] == units["after"]:
        say(
            console,
            "Nothing was cut: the task reads every neuron by weights that are not zero, as it does "
            "in the models of methods that do not prune.",
        )
    say(
        console,
        f"neurons {neurons['before']:,} → {neurons['after']:,}, parameters "
        f"{parameters['before']:,} → {parameters['after']:,}, {size['before'] / 1024:,.0f} → "
        f"{size['after'] / 1024:,.0f} KiB; logits differ by {found['difference']:.0e} at most",
    )
    latency = found["latency"]
    times = ", ".join(
        f"{ms['before']:.3g} → {ms['after']:.3g} ms at batch {ms['batch']}" for ms in latency["ms"]
    )
    say(console, f"{times} (median of {latency['runs']}, one thread, {latency['cpu']})")
