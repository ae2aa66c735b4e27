"""A training step of CLNP's narrow network on one CPU core, ours against a plain torch loop.

    python -m benchmarks.conv_step

Images of 32 x 32 in 3 channels, 10 classes, Adam, cross-entropy. All take the same uint8 images
and turn them into batches in the same way; one line flips them and shifts them by up to 4 pixels
besides. They take turns; the best of the turns counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks._machine import machine
from clsearch.config import AugmentConfig, TrainingConfig
from clsearch.methods.base import MethodOptions, Start
from clsearch.methods.finetune import Finetune
from clsearch.models import _convnet
from clsearch.models.base import initial_head, initial_parameters
from clsearch.models.cnn_narrow import CLNPNarrow, NarrowOptions
from clsearch.rng import generator
from clsearch.scenarios.base import InputTransform
from clsearch.training.augment import Views
from clsearch.training.batch import DeviceData, Readout
from clsearch.training.step import Objective
from clsearch.training.tap import Noise
from clsearch.training.update import PackOptimizer
from clsearch.training.worker import prepare_worker

SHAPE, CLASSES, RATE = (3, 32, 32), 10, 1e-3
AUGMENT = AugmentConfig(flip=True, crop=4)

Step = Callable[[Tensor], object]


def images(count: int) -> DeviceData:
    source = generator("conv-step")
    pixels = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=source)
    labels = torch.randint(0, CLASSES, (count,), generator=source)
    return DeviceData(pixels, labels, None, InputTransform(255.0, (0.5,) * 3, (0.25,) * 3))


def plain(data: DeviceData, layout: torch.memory_format) -> Step:
    """The loop as torch's tutorials write it, all tensors in one layout."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1), nn.Dropout(0.25),
        nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(4096, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, CLASSES),
    ).to(memory_format=layout)  # fmt: skip
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=RATE), nn.CrossEntropyLoss()

    def step(index: Tensor) -> None:
        batch = data.batch(index)
        optimizer.zero_grad()
        loss(model(batch.x.contiguous(memory_format=layout)), batch.y).backward()
        optimizer.step()

    return step


def ours(
    data: DeviceData, members: int, channels_last: bool = True, augment: AugmentConfig | None = None
) -> Step:
    """The step of a pack, as the epoch loop takes it; with `augment` its draws too."""
    backbone = CLNPNarrow(NarrowOptions(), SHAPE)
    source = generator("conv-step", "weights")
    params = initial_parameters(backbone, source)
    params |= initial_head(0, CLASSES, backbone.features, source)
    method = Finetune(MethodOptions(), backbone)
    start = Start(params, {}, method.everything(params))
    gradient = Objective(backbone, method, [], start, Readout((0,))).gradient()
    stack = {name: torch.stack([value] * members) for name, value in params.items()}
    hyper = {"lr": torch.full((members,), RATE)}
    optimizer = PackOptimizer(TrainingConfig(epochs=1), stack, [RATE] * members)
    layout = _convnet._channels_last if channels_last else torch.Tensor.contiguous

    def step(index: Tensor) -> None:
        views = None
        if augment is not None:
            views = Views.draw(augment, [source] * members, len(index), index.device)
        with patch.object(_convnet, "_channels_last", layout):
            optimizer.step(gradient(stack, hyper, data.batch(index, Noise(source), views)).whole)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--batch", type=int, default=256)
    given = parser.parse_args()
    prepare_worker()
    data = images(2 * given.batch)
    loops = {
        "plain torch loop, default layout": (plain(data, torch.contiguous_format), 1),
        "plain torch loop, channels last": (plain(data, torch.channels_last), 1),
        "clsearch, default layout, K = 1": (ours(data, 1, channels_last=False), 1),
        "clsearch, channels last, K = 1": (ours(data, 1), 1),
        "clsearch, flips and shifts, K = 1": (ours(data, 1, augment=AUGMENT), 1),
        "clsearch, channels last, K = 4": (ours(data, 4), 4),
    }
    print(machine())
    print(f"batch {given.batch}; trial-steps per second of CPU time, and over the first line")
    best = dict.fromkeys(loops, float("inf"))
    for turn in range(given.turns + 1):
        for name, (step, members) in loops.items():
            index = torch.arange(given.batch) + turn % 2 * given.batch
            begun = time.process_time()
            step(index)
            took = (time.process_time() - begun) / members
            best[name] = min(best[name], took) if turn else best[name]  # the first warms up
    first = next(iter(best.values()))
    for name, took in best.items():
        print(f"{name:<34}{1 / took:8.2f}   {first / took:5.2f} x")


if __name__ == "__main__":
    main()
