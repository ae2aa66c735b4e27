"""Time of a trial-step by hidden width and members K: on one CPU core, or on a GPU.

    python -m benchmarks.pack_size [--device cuda]

The tables `CPU_PACKS` and `CUDA_PACK` in `clsearch/search/plan.py` come from this one. MLP
784-w-w-10, Adam, L1 + MAS. Sizes take turns; the best of the turns counts.
"""

from __future__ import annotations

import argparse
import time

import torch

from benchmarks import trial_throughput
from benchmarks._machine import machine
from benchmarks.threshold_scan import SHAPE, load
from benchmarks.trial_throughput import Pack
from clsearch.training.batch import DeviceData
from clsearch.training.worker import prepare_worker

WIDTHS = {"cpu": (50, 64, 100, 128, 256, 400), "cuda": (64, 256, 1000, 2000)}
SIZES = {"cpu": (1, 2, 4, 8, 16), "cuda": (1, 2, 4, 8, 16, 32, 64)}


def clock(device: str) -> float:
    """Seconds: of CPU time, or, on a GPU, until its work is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", choices=list(WIDTHS), default="cpu")
    given = parser.parse_args()
    device: str = given.device
    prepare_worker()
    trial_throughput.BATCH = given.batch
    trial_throughput.STEPS = dict.fromkeys(WIDTHS[device], 16)
    whole, _, what = load(SHAPE, 5000)
    data = DeviceData(
        whole.inputs.to(device), whole.labels.to(device), whole.group, whole.transform
    )
    print(machine())
    kind = "CPU time" if device == "cpu" else "time until the GPU is done"
    print(f"{what.removeprefix('trained on ')}; batch {given.batch}")
    print(f"ms of {kind} a trial-step; in brackets the gain over K = 1")
    print(f"{'width':>6}" + "".join(f"{f'K = {k}':>16}" for k in SIZES[device]))
    for width in WIDTHS[device]:
        packs = {k: Pack(width, k, data) for k in SIZES[device]}
        packs[1].train(1)  # what is set up once
        best = dict.fromkeys(SIZES[device], float("inf"))
        for _ in range(given.turns):
            for k, pack in packs.items():
                begun = clock(device)
                done = pack.train(1)
                best[k] = min(best[k], (clock(device) - begun) / done * 1e3)
        cells = [f"{best[k]:.3f} ({best[1] / best[k]:.2f})" for k in SIZES[device]]
        print(f"{width:>6}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
