"""Importance of parameters: a loop over batches of one against the closed form.

    python -m benchmarks.importance [--samples N] [--loop N]

MAS and EWC on MLP 784-256-256-10 and 784-2000-2000-10, one thread. The loop differentiates sample
after sample, as is common; it runs on the first `--loop` samples, and its time a sample counts.
Both give the same importance on these, and the largest relative difference is printed.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from benchmarks._machine import machine
from benchmarks.threshold_scan import READOUT, SHAPE, load
from clsearch.methods.base import ImportanceObjective
from clsearch.methods.ewc import FISHER
from clsearch.methods.mas import squared_norm
from clsearch.models.base import Params, initial_head, initial_parameters
from clsearch.models.mlp import MLP, MLPOptions
from clsearch.rng import generator
from clsearch.training.batch import DeviceData, answer
from clsearch.training.importance import mean_moment

TARGET = 20.0
OBJECTIVES = {"ewc": FISHER["empirical"], "mas": ImportanceObjective(squared_norm, "magnitude")}


def loop(
    backbone: MLP, params: Params, data: DeviceData, objective: ImportanceObjective
) -> dict[str, Tensor]:
    """The mean moment of per-sample gradients, one backward pass a sample."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    for batch in data.batches(1):
        logits, _ = answer(backbone, leaves, batch.x, READOUT, None)
        value = objective.value(logits, batch.y).sum()
        grads = torch.autograd.grad(value, list(leaves.values()))
        for name, grad in zip(total, grads, strict=True):
            total[name] += grad.abs() if objective.moment == "magnitude" else grad.square()
    return {name: value / len(data) for name, value in total.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--loop", type=int, default=200, help="samples of the loop")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    _, data, _ = load(SHAPE, given.samples)
    few = data.part(torch.arange(given.loop))
    print(machine())
    for width in (256, 2000):
        backbone = MLP(MLPOptions(hidden=[width, width]), SHAPE)
        source = generator("benchmark", "importance")
        params = initial_parameters(backbone, source) | initial_head(0, 10, width, source)
        for name, objective in OBJECTIVES.items():
            ours = theirs = float("inf")
            for _ in range(given.turns):
                begun = time.perf_counter()
                wanted = loop(backbone, params, few, objective)
                theirs = min(theirs, (time.perf_counter() - begun) / len(few))
                begun = time.perf_counter()
                mean_moment(
                    backbone,
                    params,
                    data,
                    READOUT,
                    None,
                    list(params),
                    objective,
                    backbone.evaluation_batch,
                )
                ours = min(ours, (time.perf_counter() - begun) / len(data))
            found = mean_moment(
                backbone,
                params,
                few,
                READOUT,
                None,
                list(params),
                objective,
                backbone.evaluation_batch,
            )
            apart = max(
                float((found[n] - v).abs().max() / v.abs().max()) for n, v in wanted.items()
            )
            ratio = theirs / ours
            verdict = "reached" if ratio >= TARGET else "NOT reached"
            print(
                f"784-{width}-{width}-10, {name}: loop {1e3 * theirs:.3f} ms a sample, closed form "
                f"{1e3 * ours:.4f} ms, {ratio:.0f} x (target {TARGET:g} x, {verdict}); largest "
                f"relative difference {apart:.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
