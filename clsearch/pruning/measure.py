"""What a narrower model saves: its size and its latency beside those of the full one."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clsearch.errors import ClsearchError
from clsearch.files import processor

RUNS = 9
"""Timed runs of each model at each batch size, after one that warms up; their median counts."""

TOLERANCE = 1e-5
"""Difference of logits, relative to the largest, that no rounding of sums explains."""


def compare(full: nn.Module, small: nn.Module, batches: Sequence[Tensor]) -> dict[str, Any]:
    """Size and latency of two models that answer alike, `before` and `after`, JSON-able.

    `batches` are what both are run on, by turns, in eager torch on one thread of this machine's
    CPU: milliseconds a batch. `bytes` are those of all tensors, statistics and transforms included;
    `difference` is the largest one of logits. Raises `ClsearchError` for models that answer
    otherwise.
    """
    models = {"before": full, "after": small}
    differences, latency = [], []
    with one_thread(), torch.inference_mode():
        for batch in batches:
            expected, found = full(batch), small(batch)
            differences.append(float((expected - found).abs().max()))
            if not differences[-1] <= TOLERANCE * max(1.0, float(expected.abs().max())):
                raise ClsearchError(
                    f"the narrower model's logits differ by {differences[-1]:.1e}: the forward of "
                    "its backbone does not take its widths from its parameters"
                )
            latency.append({"batch": len(batch), **_milliseconds(models, batch)})
    return {
        "parameters": {n: sum(p.numel() for p in m.parameters()) for n, m in models.items()},
        "bytes": {n: sum(t.nbytes for t in m.state_dict().values()) for n, m in models.items()},
        "difference": max(differences),
        "latency": {"cpu": processor(), "threads": 1, "runs": RUNS, "ms": latency},
    }


def _milliseconds(models: dict[str, nn.Module], batch: Tensor) -> dict[str, float]:
    """The median time of each model on a batch."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(RUNS):
        for name, model in models.items():
            begun = time.perf_counter()
            model(batch)
            taken[name].append(1000 * (time.perf_counter() - begun))
    return {name: statistics.median(times) for name, times in taken.items()}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch computes in one thread: what is measured must not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
