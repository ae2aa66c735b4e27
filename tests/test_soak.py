"""The soak: its arithmetic, and a short one."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import shared_data

from benchmarks._growth import COLUMNS, curves, draw, growths, read_samples, table, theil_sen
from benchmarks.soak import TOO_FEW, _lost, config_of
from clsearch.records import DIVERGENCE

ROOT = Path(__file__).parent.parent


def samples(tasks: int, leak: float = 0.0, pace: float = 0.0) -> list[dict[str, float]]:
    """Six looks a task; a worker is gone at one of them. `leak`: MiB of the driver a task."""
    found = []
    for look in range(6 * tasks + 1):
        task = look // 6
        one = dict.fromkeys(COLUMNS, 10.0)
        one |= {"tasks": look / 6, "seconds": 5.0 * look, "trials": 100.0 * task}
        one |= {"processes": 9.0 if look % 6 == 3 else 10.0, "driver_memory": 400.0 + leak * task}
        one |= {"driver_cpu": 2.0 * look + pace * task**2}
        found.append(one)
    return found


def grown(tasks: int, **more: float) -> list[str]:
    return [g.quantity.column for g in growths(samples(tasks, **more)) if g.grows]


def test_what_grows_from_task_to_task_is_found_and_what_does_not_is_not() -> None:
    assert grown(20) == []
    assert grown(20, leak=0.27) == []  # of it, the names and rows of 100 trials a task are 0.08
    assert grown(20, leak=0.29) == ["driver_memory"]
    assert grown(20, pace=0.5) == ["driver_cpu"]
    by_column = {g.quantity.column: g for g in growths(samples(20, leak=2.0, pace=0.5))}
    assert by_column["driver_memory"].slope == pytest.approx(2.0)
    assert by_column["driver_cpu"].slope == pytest.approx(1.0)
    assert by_column["lasted"].medians == (30.0,) * 20
    assert by_column["processes"].medians == (10.0,) * 20


def test_single_outliers_move_no_slope() -> None:
    assert theil_sen([1, 2, 3, 4, 5], [1, 1, 90, 1, 1]) == 0.0
    assert theil_sen([1, 2, 3, 4, 5], [3, 5, 7, 90, 11]) == pytest.approx(2.0)


def test_what_too_few_tasks_say_is_no_verdict() -> None:
    found = growths(samples(3, leak=100.0))
    assert {g.slope for g in found} == {None}
    assert not any(g.grows for g in found)
    assert all(line.endswith("too few tasks") for line in table(found)[1:])
    assert {g.slope is None for g in growths(samples(6))} == {False}


def test_the_report_is_made_from_the_file_alone_even_one_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "samples.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(samples(10, leak=2.0))
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[-1][:20])
    assert len(read_samples(path)) == 61
    command = [sys.executable, "-m", "benchmarks.soak", "--report", path]
    command += ["--png", tmp_path / "soak.png"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found = growths(samples(10, leak=2.0))
    assert [line for line in table(found) if line.endswith("GROWS")] == [
        line for line in done.stdout.splitlines() if line.endswith("GROWS")
    ]
    assert curves(found)[-1] in done.stdout
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_a_trial_that_diverged_has_ended_and_one_that_is_missing_has_not(tmp_path: Path) -> None:
    config = config_of(2, 12)  # three trials of both methods in each task
    whole = [{"status": "COMPLETE", "reason": ""}] * 11

    def lost(*last: dict[str, str]) -> list[str]:
        rows = [{**row, "trial_key": str(i)} for i, row in enumerate([*whole, *last])]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "trials.parquet")
        return _lost(tmp_path, config)

    assert lost({"status": "COMPLETE", "reason": ""}) == []
    assert (
        lost({"status": "FAILED", "reason": f"{DIVERGENCE}: a loss of 9; take a smaller lr"}) == []
    )
    killed = {"status": "FAILED", "reason": "six workers died: of it"}
    assert lost(killed) == ["1 trials are FAILED six workers died"]
    assert lost() == ["12 trials were asked for"]


def test_a_file_without_a_column_of_today_is_read_all_the_same(tmp_path: Path) -> None:
    path, columns = tmp_path / "samples.csv", [c for c in COLUMNS if c != "delivery_memory"]
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(samples(10, leak=2.0))
    found = {g.quantity.column: g for g in growths(read_samples(path))}
    assert found["driver_memory"].slope == pytest.approx(2.0)
    assert "delivery_memory" not in found
    draw(read_samples(path), list(found.values()), tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_a_short_soak_kills_a_worker_and_loses_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"CLSEARCH_DATA": str(shared_data())}
    command = [sys.executable, "-m", "benchmarks.soak", "--tasks", "3", "--trials", "60"]
    command += ["--kill-every", "1", "--kills", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + (tmp_path / "stderr").read_text()
    assert "60 trials of 60: {'COMPLETE': 60}" in done.stdout
    assert "1 workers killed" in done.stdout
    assert json.loads((tmp_path / "wrong.json").read_text()) == [TOO_FEW]
