"""Every method on two sequences of five tasks: accuracy, forgetting, sparsity, time.

    python -m benchmarks.method_table [--only permuted|split] [--out FOLDER]

Runs `experiments/method_table_permuted.yaml` and `…_split.yaml`, the search doing the tuning, and
prints what it selected. Real MNIST has to be there (`$CLSEARCH_DATA`). Seconds are those that a
method's trials took on their workers, all trials of the grid together. Run again with the same
`--out`, it trains nothing and prints the table again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._machine import machine
from clsearch.folder import records_of, results_of, run_config
from clsearch.metrics import accuracy_matrix, average_accuracy, average_forgetting
from clsearch.records import TaskResult
from clsearch.report.tables import kib, percent, spread

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def search(config: Path, out: Path) -> None:
    """Runs a search; its own output goes to stderr."""
    command = [str(Path(sys.executable).with_name("clsearch")), "run", str(config), "--out", out]
    subprocess.run(command, check=True, stdout=sys.stderr)


def table(out: Path) -> list[str]:
    """A line for each method of a run: means over its seeds, ± where there are several. Tasks are
    the fewest that one of its seeds has learned."""
    config, results = run_config(out), results_of(out)
    seconds: dict[str, float] = {}
    for record in records_of(out):
        seconds[record.method] = seconds.get(record.method, 0.0) + record.duration
    lines = [
        f"{'method':<14}{'tasks':>6}{'ACC %':>16}{'forgetting':>12}{'sparsity %':>12}"
        f"{'memory KiB':>12}{'s':>8}"
    ]
    for method in config.methods:
        name = method.chain_name
        chains = [found for seed in config.seeds if (found := _chain(results, name, seed))]
        matrices = [accuracy_matrix(chain) for chain in chains]
        lines.append(
            f"{name:<14}{min(map(len, chains), default=0):>6}"
            f"{spread(map(average_accuracy, matrices)):>16}"
            f"{percent(map(average_forgetting, matrices)):>12}"
            f"{percent(c[-1].selection.sparsity for c in chains):>12}"
            f"{kib(c[-1].memory_bytes for c in chains):>12}{seconds.get(name, 0.0):>8.0f}"
        )
    return lines


def _chain(results: list[TaskResult], method: str, seed: int) -> list[TaskResult]:
    own = [r for r in results if (r.selection.method, r.selection.seed) == (method, seed)]
    return [r for r in own if r.commit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["permuted", "split"])
    parser.add_argument("--config", type=Path, action="append", help="other experiments instead")
    parser.add_argument("--out", type=Path, help="folder that keeps the runs")
    given = parser.parse_args()
    names = [given.only] if given.only else ["permuted", "split"]
    configs = given.config or [EXPERIMENTS / f"method_table_{name}.yaml" for name in names]
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="clsearch-method-table-") as temporary:
        for config in configs:
            out = (given.out or Path(temporary)) / config.stem
            search(config, out)
            print(f"{config.stem}: {run_config(out).scenario.model_dump(exclude_none=True)}")
            print("\n".join(table(out)), flush=True)


if __name__ == "__main__":
    main()
