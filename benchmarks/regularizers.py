"""What each regulariser adds to a training step, in one run.

    python -m benchmarks.regularizers [--turns N] [--quick]

MLP 784-2000-2000-10, batch 256, fp32, one member, one thread, Adam, fine-tuning: the step without
a regulariser is forward, backward and update, nothing else. Then the same step with one regulariser
at a time, through the package's own objective and optimiser, and with SLNI as its definition reads:
an N×N matrix, differentiated by autograd. All take turns; what is added is the median over the
turns of the difference to the bare step of the same turn, in CPU time, so that other load on the
machine counts as little as it can. Memory that others keep busy still shows.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks._machine import machine
from benchmarks.threshold_scan import SHAPE
from benchmarks.trial_throughput import BATCH, RATE, backbone_of, start_of
from clsearch.config import TrainingConfig
from clsearch.methods.base import MethodOptions, Start
from clsearch.methods.finetune import Finetune
from clsearch.models.mlp import MLP
from clsearch.plugins import discover
from clsearch.regularizers.base import Hypers, Regularizer
from clsearch.rng import generator
from clsearch.training.batch import Batch, Readout
from clsearch.training.step import Objective
from clsearch.training.update import PackOptimizer
from clsearch.training.worker import prepare_worker

TARGET = 10.0
"""Per cent of a step that SLNI is to add at most, at 2000 neurons a layer."""
BARE = "the step without a regulariser"


class Definition(Regularizer):
    """SLNI eq. 4 word for word, for autograd."""

    name = "definition"
    strength = "slni"

    def penalty(
        self,
        params: Mapping[str, Tensor],
        activations: Mapping[str, Tensor],
        importance: Mapping[str, Tensor],
        hyper: Hypers,
    ) -> Tensor:
        total = hyper["slni"].new_zeros(())
        for h in activations.values():
            place = torch.arange(h.shape[1])
            apart = (place.unsqueeze(1) - place).float()
            weight = (-apart.square() / (2 * hyper["sigma"] ** 2)).exp()
            total = total + ((weight - torch.eye(len(place))) * (h.mT @ h)).sum() / len(h)
        return hyper["slni"] * total


@dataclass(frozen=True)
class Case:
    """A regulariser with its options, the hyperparameters that differ from its defaults, and
    whether neurons are important already."""

    name: str
    label: str
    options: Mapping[str, Any]
    hyper: Mapping[str, float]
    important: bool = False


def cases(width: int) -> list[Case]:
    """SLNI for σ from narrow to wide, with discount, then every other regulariser as it comes."""
    authors = width / 6
    found = [
        Case("slni", f"slni, σ = {sigma:g}", {}, {"sigma": sigma}) for sigma in (3.0, 10.0, 30.0)
    ]
    found += [
        Case("slni", f"slni, σ = {width}/6 (authors')", {}, {"sigma": authors}),
        Case("slni", f"slni, σ = {width}/6, discounted", {}, {"sigma": authors}, True),
        Case("slni", "slni, discount: min", {"discount": "min"}, {"sigma": authors}, True),
        Case("definition", "slni by definition, N×N", {}, {"slni": 1e-3, "sigma": authors}),
    ]
    others = [name for name in discover("clsearch.regularizers", Regularizer) if name != "slni"]
    return found + [Case(name, name, {}, {}) for name in others]


def step_of(backbone: MLP, start: Start, case: Case | None) -> tuple[Objective, dict[str, Tensor]]:
    """The objective with a case's regulariser, and its hyperparameters `[1]`."""
    hyper, regularizers, state = {"lr": RATE}, [], {}
    if case is not None:
        known = discover("clsearch.regularizers", Regularizer) | {"definition": Definition}
        kind = known[case.name]
        regularizers = [kind(kind.Options(**case.options), backbone)]
        hyper |= {name: axis.default for name, axis in kind.space.items()} | case.hyper
        if case.important:
            state = {
                f"{case.name}.alpha.{layer.name}": torch.rand(layer.units)
                for layer in backbone.unit_layers
            }
    method = Finetune(MethodOptions(), backbone)
    objective = Objective(backbone, method, regularizers, start, Readout((0,)), state)
    return objective, {name: torch.tensor([value]) for name, value in hyper.items()}


def steps(width: int, found: list[Case]) -> dict[str, Callable[[], None]]:
    """A training step of each case by its label, all on the same weights, the bare one first."""
    backbone = backbone_of(width)
    params, _, _ = start_of(width)
    start = Start(params, {}, Finetune.everything(params))
    source = generator("benchmark", "batch")
    labels = torch.randint(0, 10, (BATCH,), generator=source)
    batch = Batch(torch.rand(BATCH, *SHAPE, generator=source), labels)
    stack = {name: value.unsqueeze(0).clone() for name, value in params.items()}
    optimizer = PackOptimizer(TrainingConfig(), stack, [RATE / 1000])

    def step(case: Case | None) -> Callable[[], None]:
        objective, hyper = step_of(backbone, start, case)
        gradient = objective.gradient()
        return lambda: optimizer.step(gradient(stack, hyper, batch).whole)

    return {BARE: step(None)} | {case.label: step(case) for case in found}


def measure(width: int, turns: int) -> dict[str, list[float]]:
    """Milliseconds of CPU time of every turn, by label."""
    timed = steps(width, cases(width))
    for step in timed.values():
        step()
    found: dict[str, list[float]] = {label: [] for label in timed}
    for _ in range(turns):
        for label, step in timed.items():
            begun = time.process_time()
            step()
            found[label].append((time.process_time() - begun) * 1e3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="three turns of a small network")
    given = parser.parse_args()
    width, turns = (64, 3) if given.quick else (2000, given.turns)
    prepare_worker()
    print(machine())
    print(f"load of the machine before the run: {os.getloadavg()[0]:.1f} (0 is idle)")
    print(f"784-{width}-{width}-10, batch {BATCH}, K = 1; target for SLNI: {TARGET:g} % of a step")
    found = measure(width, turns)
    bare = median(found[BARE])
    print(f"  {BARE:<34}{bare:8.2f} ms")
    for label, times in found.items():
        if label == BARE:
            continue
        added = median(a - b for a, b in zip(times, found[BARE], strict=True))
        line = f"  + {label:<32}{added:8.2f} ms{added / bare:9.1%}"
        if label.startswith("slni, σ"):
            line += "   reached" if added / bare <= TARGET / 100 else "   NOT reached"
        print(line)


if __name__ == "__main__":
    main()
