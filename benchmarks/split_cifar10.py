"""Split CIFAR-10 on CLNP's narrow network: what CLNP keeps, forgets and uses up, task by task.

    python -m benchmarks.split_cifar10 [--out FOLDER]

Runs `experiments/split_cifar10.yaml` on real images (`$CLSEARCH_DATA`) and prints the minutes it
took, each method's accuracy and forgetting, and how many neurons of each layer CLNP uses after each
task. Run again with the same `--out`, it trains nothing and prints the same again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks._machine import machine
from benchmarks.method_table import EXPERIMENTS, search, table
from clsearch.folder import results_of
from clsearch.metrics import accuracy_matrix, average_accuracy
from clsearch.records import TaskResult


def account(results: Sequence[TaskResult]) -> list[str]:
    """A line for each task of a chain: in percent of each layer, used neurons, and of these the new
    ones and those of earlier tasks that it reads."""
    layers = [layer.layer for layer in results[0].capacity]
    lines = ["used % (new, reused)".ljust(22) + "".join(f"{name:>18}" for name in layers)]
    for result in results:
        cells = [
            "{:.0f} ({:.0f}, {:.0f})".format(
                *(100 * n / c.units for n in (c.used, c.new, c.reused))
            )
            for c in result.capacity
        ]
        lines.append(f"task {result.selection.task}".ljust(22) + "".join(f"{c:>18}" for c in cells))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder that keeps the run")
    given = parser.parse_args()
    config = EXPERIMENTS / "split_cifar10.yaml"
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="clsearch-split-cifar10-") as temporary:
        out = (given.out or Path(temporary)) / config.stem
        begun = time.perf_counter()
        search(config, out)
        print(f"{config.stem}: {(time.perf_counter() - begun) / 60:.1f} minutes")
        print("\n".join(table(out)))
        results = [r for r in results_of(out) if r.commit]
        chains = {
            n: [r for r in results if r.selection.method == n] for n in ("clnp", "from_scratch")
        }
        after = {n: 100 * (average_accuracy(accuracy_matrix(c)) or 0) for n, c in chains.items()}
        print(f"clnp is {after['from_scratch'] - after['clnp']:.2f} points below from_scratch")
        print("\n".join(account(chains["clnp"])))


if __name__ == "__main__":
    main()
