"""What a pack gains on one CPU core: ms per trial-step by hidden width and members K.

    python -m benchmarks.pack_size

The table `CPU_PACKS` in `clsearch/search/plan.py` comes from this one. Batch 64 and 256, MLP
784-w-w-10, Adam, L1 + MAS. Sizes take turns; the best of the turns counts.
"""

from __future__ import annotations

import argparse
import time

from benchmarks import trial_throughput
from benchmarks._machine import machine
from benchmarks.threshold_scan import load
from benchmarks.trial_throughput import Pack
from clsearch.training.worker import prepare_worker

WIDTHS = (50, 64, 100, 128, 256, 400)
SIZES = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    prepare_worker()
    trial_throughput.BATCH = given.batch
    trial_throughput.STEPS = dict.fromkeys(WIDTHS, 16)
    data, _, _ = load(5000)
    print(machine())
    print(f"batch {given.batch}; ms of CPU time a trial-step, and in brackets the gain over K = 1")
    print(f"{'width':>6}" + "".join(f"{f'K = {k}':>16}" for k in SIZES))
    for width in WIDTHS:
        packs = {k: Pack(width, k, data) for k in SIZES}
        best = dict.fromkeys(SIZES, float("inf"))
        for _ in range(given.turns):
            for k, pack in packs.items():
                begun = time.process_time()
                done = pack.train(1)
                best[k] = min(best[k], (time.process_time() - begun) / done * 1e3)
        cells = [f"{best[k]:.3f} ({best[1] / best[k]:.2f})" for k in SIZES]
        print(f"{width:>6}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
