"""The benchmarks' own arithmetic, where they have any."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers import SerialSearcher, SilentProgress, SilentTracker, shared_data

from benchmarks.method_table import table
from benchmarks.report import make
from clsearch.config import parse_config
from clsearch.folder import open_store, write_config
from clsearch.reporting import read_run
from clsearch.sequence import Search
from clsearch.system import resolve

ROOT = Path(__file__).parent.parent


def test_the_method_table_is_what_the_run_selected(tmp_path: Path) -> None:
    """A method whose trials all diverge has no figures, and is no zero."""
    config = resolve(
        parse_config(
            {
                "name": "table",
                "scenario": {"name": "permuted", "tasks": 2},
                "model": {"name": "mlp", "hidden": [8]},
                "training": {"epochs": 2, "batch_size": 100},
                "methods": [
                    {"name": "finetune", "grid": {"lr": [0.01]}},
                    {"name": "l2", "label": "far-too-fast", "grid": {"lr": [1e9]}},
                ],
                "seeds": [0, 1],
            }
        )
    )
    search = Search(config, tmp_path, open_store(tmp_path))
    search.run(SerialSearcher(), SilentTracker(), SilentProgress())
    write_config(tmp_path, config)
    head, finetune, failed = (line.split() for line in table(tmp_path))
    assert head[:4] == ["method", "tasks", "ACC", "%"]
    assert failed == ["far-too-fast", "0", "-", "-", "-", "-", failed[-1]]
    matrix = json.loads((tmp_path / "accuracy_matrix.json").read_text())["finetune"]
    accuracies = [100 * sum(matrix[seed][1]) / 2 for seed in "01"]
    forgotten = [100 * (matrix[seed][0][0] - matrix[seed][1][0]) for seed in "01"]
    assert finetune[:4] == ["finetune", "2", f"{sum(accuracies) / 2:.2f}", "±"]
    assert finetune[5] == f"{sum(forgotten) / 2:.1f}"


def test_the_run_of_the_report_benchmark_is_one_that_a_report_reads(tmp_path: Path) -> None:
    count = make(tmp_path, tasks=2, trials=4, seeds=1)
    read = read_run(tmp_path)
    assert len(read.records) == count == 2 * 4 * 4
    assert read.unfinished == []


def test_the_importance_benchmark_runs() -> None:
    environment = os.environ | {"CLSEARCH_DATA": str(shared_data())}
    command = [sys.executable, "-m", "benchmarks.importance"]
    command += ["--samples", "200", "--loop", "5", "--turns", "1"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("reached") == 4
