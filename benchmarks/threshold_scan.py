"""Threshold scan: one masked forward per threshold against the scan, dense and convolutional.

    python -m benchmarks.threshold_scan

Both sides get the same weights, activities and validation samples, in one process on one thread,
alternating; the best of the repetitions counts, in seconds of CPU time. The naive side gets its
images normalised once and kept, the scan normalises them itself. The dense networks learn MNIST,
CLNP's narrow network CIFAR-10, or noise where there are no such images.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks._machine import machine
from clsearch.models.base import Backbone, Params, initial_head, initial_parameters
from clsearch.models.cnn_narrow import CLNPNarrow, NarrowOptions
from clsearch.models.mlp import MLP, MLPOptions
from clsearch.pruning.activity import mean_activity
from clsearch.pruning.scan import threshold_scan, thresholds
from clsearch.rng import generator
from clsearch.scenarios.base import InputTransform
from clsearch.training.batch import Batch, DeviceData, Readout, answer

SHAPE, CIFAR = (1, 28, 28), (3, 32, 32)
TRANSFORMS = {
    SHAPE: InputTransform(255.0, (0.1307,), (0.3081,)),
    CIFAR: InputTransform(255.0, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
}
READOUT = Readout((0,))


def idx(path: Path) -> Tensor:
    """An unpacked IDX file of bytes (the MNIST format) as a uint8 tensor."""
    raw = np.fromfile(path, dtype=np.uint8)
    shape = raw[4 : 4 + 4 * raw[3]].view(">i4").tolist()
    return torch.from_numpy(raw[4 + 4 * raw[3] :].reshape(shape))


def mnist(folder: Path) -> tuple[Tensor, Tensor] | None:
    """Training images and labels, if they are there."""
    raw = folder / "MNIST" / "raw"
    if not (raw / "train-images-idx3-ubyte").exists():
        return None
    images = idx(raw / "train-images-idx3-ubyte").unsqueeze(1)
    return images, idx(raw / "train-labels-idx1-ubyte").long()


def cifar(folder: Path) -> tuple[Tensor, Tensor] | None:
    """Training images and labels of the first file of CIFAR-10 as Parquet, if it is there."""
    files = sorted(folder.glob("cifar10*/train-*.parquet"))
    if not files:
        return None
    table = pq.read_table(files[0]).to_pydict()
    images = [np.asarray(Image.open(io.BytesIO(i["bytes"]))) for i in table["image"]]
    return torch.from_numpy(np.stack(images)).movedim(-1, 1), torch.tensor(table["label"])


def load(shape: tuple[int, int, int], samples: int) -> tuple[DeviceData, DeviceData, str]:
    """Training data, `samples` validation samples, and what they are: a real set, or noise."""
    folder = Path(os.environ.get("CLSEARCH_DATA", "../shared/data"))
    found, what = mnist(folder) if shape == SHAPE else cifar(folder), "real images"
    if found is None:
        source = generator("benchmark", "noise")
        images = torch.randint(0, 256, (20_000, *shape), generator=source, dtype=torch.uint8)
        found = images, torch.randint(0, 10, (20_000,), generator=source)
        what = f"noise, activities skewed by biases (no images in {folder})"
    images, labels = found
    parts = [(images[samples:], labels[samples:]), (images[:samples], labels[:samples])]
    train, validation = (DeviceData(x, y, None, TRANSFORMS[shape]) for x, y in parts)
    return train, validation, what


def trained(backbone: Backbone, data: DeviceData, steps: int, l1: float, skew: bool) -> Params:
    """Adam with L1 on the weights (CLNP §2.2), batches of 256."""
    params = initial_parameters(backbone, generator("benchmark", "initial"))
    params |= initial_head(0, 10, backbone.features, generator("benchmark", "head"))
    if skew:
        for unit in backbone.unit_layers:
            params[unit.bias] -= torch.linspace(0, 1, unit.units) ** 2
    leaves = [p.requires_grad_() for p in params.values()]
    adam = torch.optim.Adam(leaves, lr=1e-3, fused=True)
    order = torch.randperm(len(data), generator=generator("benchmark", "order"))
    for step in range(steps):
        start = step * 256 % (len(data) - 256)
        batch = data.batch(order[start : start + 256])
        logits, _ = answer(backbone, params, batch.x, READOUT, None)
        loss = cross_entropy(logits, batch.y)
        loss = loss + l1 * sum(p.abs().sum() for p in leaves if p.ndim > 1)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return {name: p.detach() for name, p in params.items()}


def naive(
    backbone: Backbone,
    params: Params,
    activity: dict[str, Tensor],
    batches: list[Batch],
    points: tuple[float, ...],
) -> list[int]:
    """Samples answered right at each threshold: one masked full forward per threshold."""
    hits = []
    with torch.inference_mode():
        for theta in points:
            gates = {name: values > theta for name, values in activity.items()}
            right = 0
            for batch in batches:
                logits, _ = answer(backbone, params, batch.x, READOUT, gates)
                right += int((logits.argmax(1) == batch.y).sum())
            hits.append(right)
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--thresholds", type=int, default=50)
    parser.add_argument("--samples", type=int, default=5000, help="for the dense networks")
    parser.add_argument("--images", type=int, default=1000, help="for the narrow network")
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--batch", type=int, default=1000, help="samples a forward, both sides")
    parser.add_argument("--repeat", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    for width in (256, 2000):
        mlp = MLP(MLPOptions(hidden=[width, width]), SHAPE)
        compare(f"784-{width}-{width}-10", mlp, given.samples, given)
    compare("clnp_narrow", CLNPNarrow(NarrowOptions(), CIFAR), given.images, given)


def compare(name: str, backbone: Backbone, samples: int, given: argparse.Namespace) -> None:
    """Measures both on one network and prints two lines."""
    train, validation, what = load(backbone.shape, samples)
    params = trained(backbone, train, given.steps, 1e-5, "noise" in what)
    size = min(given.batch, backbone.evaluation_batch)
    seen = DeviceData(train.inputs[:samples], train.labels[:samples], None, train.transform)
    activity = mean_activity(backbone, params, seen, None, size)
    prunable = {name: torch.ones(len(a), dtype=torch.bool) for name, a in activity.items()}
    points = thresholds(activity, prunable, given.thresholds)
    batches = list(validation.batches(size))
    slow, fast = float("inf"), float("inf")
    for _ in range(given.repeat):
        start = time.process_time()
        expected = naive(backbone, params, activity, batches, points)
        middle = time.process_time()
        scan = threshold_scan(
            backbone, params, READOUT, None, prunable, activity, validation, len(points), size
        )
        slow = min(slow, middle - start)
        fast = min(fast, time.process_time() - middle)
    found = [round(point.accuracy * len(validation)) for point in scan]
    apart = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    neurons = sum(unit.units for unit in backbone.unit_layers)
    print(f"{name}: {len(points)} thresholds, {samples} samples; trained on {what}")
    print(
        f"  naive {slow:.3f} s, scan {fast:.3f} s, {slow / fast:.1f} x; "
        f"largest difference {apart} samples; accuracy {scan[0].accuracy:.4f} at 0, "
        f"{scan[len(scan) // 2].accuracy:.4f} half-way; "
        f"{sum(scan[0].free)} of {neurons} neurons dead",
        flush=True,
    )


if __name__ == "__main__":
    main()
