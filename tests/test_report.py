"""Tables and Parquet files from made-up records."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_up import LAYERS, Made, accounted, run, trials
from rich.console import Console

from clsearch.errors import DamagedError
from clsearch.records import Tally, TaskResult
from clsearch.report.parquet import Tables, read_table, trials_of
from clsearch.report.tables import print_tables


def printed(found: Made, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    trials = Tally()
    for record in found[0]:
        trials.add(record)
    print_tables(console, trials, found[1])
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row_of(text: str, title: str, label: str) -> str:
    """The row that starts with `label` in the table called `title`."""
    lines = text[text.index(title) :].splitlines()
    return next(line for line in lines[1:] if line.split()[:1] == [label])


def test_numbers_of_the_result() -> None:
    text = printed(run(["clnp", "ewc"], 3, seeds=2), width=90)
    assert row_of(text, "Result", "clnp").split()[1:] == [
        "3/3", "90.50", "±", "0.71", "0.00", "±", "0.00", "26.7", "4.5", "fc1", "5/20",
        "fc2", "3/10",
    ]  # fmt: skip
    # ewc: (0.8 + 0.8 + 0.9) / 3 at seed 0, 0.01 more at seed 1; forgot 0.1 of tasks 1 and 2
    assert row_of(text, "Result", "ewc").split()[1:7] == [
        "3/3", "83.83", "±", "0.71", "10.00", "±",
    ]  # fmt: skip
    assert row_of(text, "Average", "ewc").split() == ["ewc", "90.5", "85.5", "83.8"]
    assert "lr=0.001, strength=1" in text
    assert "seed 0: 1-3; seed 1: 1-3" in text
    assert "36 trials (24 complete, 12 failed)" in " ".join(text.split())
    assert "†" not in text


def test_one_seed_has_no_deviation() -> None:
    text = printed(run(["clnp"], 1))
    assert "±" not in text
    assert row_of(text, "Result", "clnp").split()[1:5] == ["1/1", "90.00", "-", "26.7"]


def test_a_chain_that_ended_is_shown_with_its_task_and_reason() -> None:
    found = run(["clnp", "ewc"], 3, seeds=2, end=("ewc", 1, 2))
    text = printed(found)
    assert "1-3/3†" in row_of(text, "Result", "ewc")
    assert "3/3†" not in row_of(text, "Result", "clnp")
    assert row_of(text, "Average", "ewc").split() == ["ewc", "90.5", "85.0†", "83.3†"]
    assert row_of(text, "Chains that ended", "ewc").split()[1:4] == ["1", "2", "failed"]
    assert "all trials [3] failed: loss is nan" in text


def test_a_method_without_any_learned_task() -> None:
    found = run(["clnp", "ewc"], 2, end=("ewc", 0, 1))
    assert row_of(printed(found), "Result", "ewc").split() == [
        "ewc",
        "0/2†",
        "-",
        "-",
        "-",
        "-",
        "-",
    ]
    assert row_of(printed(found), "Average", "ewc").split() == ["ewc", "-", "-"]


@pytest.mark.parametrize("tasks", [8, 25])
def test_tables_fit_80_columns(tasks: int) -> None:
    methods = ["clnp", "ewc", "mas", "finetune", "joint", "a-label-of-some-length", "l1", "x" * 64]
    found = run(methods, tasks, seeds=2)
    text = printed(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for method in methods[:-1]:
        assert method in text
    assert printed(found, width=200).count("x" * 64) >= 3


def test_no_results_yet() -> None:
    assert "No task has been finished yet" in printed(([], []))


def test_trials_parquet(tmp_path: Path) -> None:
    records, results = run(["ewc", "finetune"], 2, seeds=2, end=("ewc", 1, 2))
    Tables(tmp_path, LAYERS).write(records[::-1], results)
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert {
        "method", "seed", "task", "trial_key", "status", "reason", "hyperparameters", "hp_lr",
        "hp_strength", "validation_accuracy", "sparsity", "duration", "device", "pack_size",
        "epochs", "selected", "drift",
    } <= rows[0].keys()  # fmt: skip
    order = [(r["task"], r["method"], r["seed"], r["trial_key"]) for r in rows]
    assert order == sorted(order)
    assert len(rows) == len(records)
    by_key = {r["trial_key"]: r for r in rows}
    won, lost, failed = (by_key[r.trial_key] for r in records[:3])
    assert (won["selected"], lost["selected"], failed["selected"]) == (True, False, False)
    assert won["sparsity"] == pytest.approx(8 / 30)
    assert won["free_by_layer"] == {"fc1": 5, "fc2": 3}
    assert won["threshold"] == 0.01
    assert won["why"] == "sparsest"
    assert json.loads(won["hyperparameters"]) == {"lr": 0.001, "strength": 1.0}
    assert (won["hp_lr"], won["hp_strength"]) == (0.001, 1.0)
    assert (won["epochs"], won["duration"], won["device"], won["pack_size"]) == (2, 1.5, "cpu", 2)
    assert failed["status"] == "FAILED"
    assert failed["reason"] == "loss is nan"
    assert failed["validation_accuracy"] is None
    assert failed["sparsity"] is None
    finetuned = by_key[next(r for r in records if r.method == "finetune").trial_key]
    assert finetuned["hp_strength"] is None


def test_tables_written_task_by_task_are_those_written_at_once(tmp_path: Path) -> None:
    """With hyperparameters that only later tasks have, and a first task that only failed."""
    records, results = accounted(run(["clnp", "finetune"], 3, seeds=2))
    first = [r for r in records if r.task == 1 and r.status == "FAILED"]
    rest = [[r for r in records if r.task == task] for task in (2, 3)]
    assert all([first, *rest])
    for record in rest[1]:
        record.hyperparameters["l1"] = 0.5
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    Tables(whole, LAYERS).write([*first, *rest[0], *rest[1]], results)
    tables = Tables(parts, LAYERS)
    for task, own in enumerate((first, *rest), 1):
        tables.write(own, [r for r in results if r.selection.task == task])
    for name in ("trials", "scan", "capacity"):
        assert read_table(parts / f"{name}.parquet") == read_table(whole / f"{name}.parquet")
    added = pq.read_table(parts / "trials.parquet").column("hp_l1").to_pylist()
    assert {None, 0.5} == set(added)


def test_scan_parquet(tmp_path: Path) -> None:
    records, results = run(["ewc"], 2)
    Tables(tmp_path).write(records, results)
    rows = pq.read_table(tmp_path / "scan.parquet").to_pylist()
    assert len(rows) == 2 * 2 * 3
    mine = [r for r in rows if r["trial_key"] == records[0].trial_key]
    assert [r["threshold"] for r in mine] == [0.0, 0.01, 0.3]
    assert mine[1] == {
        "method": "ewc", "seed": 0, "task": 1, "trial_key": records[0].trial_key,
        "threshold": 0.01, "accuracy": records[0].scan[1].accuracy, "free": 8,
        "free_by_layer": {"fc1": 5, "fc2": 3},
    }  # fmt: skip


def test_parquet_of_nothing_and_of_failures_alone(tmp_path: Path) -> None:
    for records in ([], trials("ewc", 0, 1, fail=True)):
        Tables(tmp_path).write(records, [])
        assert pq.read_table(tmp_path / "trials.parquet").num_rows == len(records)
        assert pq.read_table(tmp_path / "scan.parquet").num_rows == 0
        assert pq.read_table(tmp_path / "capacity.parquet").num_rows == 0
    names = ["capacity.parquet", "scan.parquet", "trials.parquet"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_capacity_parquet(tmp_path: Path) -> None:
    Tables(tmp_path).write(*accounted(run(["clnp", "ewc"], 2)))
    rows = pq.read_table(tmp_path / "capacity.parquet").to_pylist()
    assert [(r["method"], r["task"], r["layer"]) for r in rows] == [
        ("clnp", task, layer) for task in (1, 2) for layer in LAYERS
    ]
    assert rows[2] == {
        "method": "clnp", "seed": 0, "task": 2, "layer": "fc1", "units": 24,
        "used": 12, "new": 4, "reused": 7, "free": 12, "transfer": True,
    }  # fmt: skip


def test_last_layer_transfer_is_marked() -> None:
    text = printed(accounted(run(["clnp", "ewc"], 3, seeds=2)), width=90)
    assert row_of(text, "Result", "clnp").split()[1] == "3/3‡"
    assert row_of(text, "Result", "ewc").split()[1] == "3/3"
    assert row_of(text, "Average", "clnp").split()[1:] == ["90.5", "90.5‡", "90.5"]
    assert "‡ Last-layer transfer" in text
    assert "‡" not in printed(run(["clnp", "ewc"], 3))


def test_free_neurons_are_of_the_width_that_a_layer_has_grown_to() -> None:
    records, results = run(["clnp"], 2, seeds=2)
    grown = [
        replace(r, selection=replace(r.selection, units=(20 + 4 * r.selection.seed, 10)))
        for r in results
    ]
    assert "fc1 5/22" in printed((records, grown))


def test_a_task_result_comes_back_from_json() -> None:
    for result in accounted(run(["clnp", "ewc"], 2, end=("ewc", 0, 2)))[1]:
        again = TaskResult.from_json(json.loads(json.dumps(result.to_json())), result.test)
        assert again == replace(result, free=tuple(c.free for c in result.capacity))


def test_what_the_parquet_files_hold_comes_back_exactly(tmp_path: Path) -> None:
    records, results = run(["clnp", "ewc"], 2, seeds=2, end=("ewc", 1, 2))
    Tables(tmp_path, LAYERS).write(records, results)
    tables = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("trials", "scan"))
    read = {(r.method, r.seed, r.task, r.trial_key): r for r in trials_of(*tables)}
    assert len(read) == len(records)
    selections = [result.selection for result in results]
    pruned = {c.trial_key for s in selections for c in s.candidates if c.accuracy is not None}
    assert 0 < len(pruned) < len(records)
    for record in records:
        again = read[record.method, record.seed, record.task, record.trial_key]
        scan = record.scan if record.trial_key in pruned else ()
        assert again == replace(record, layers=(), units=(), free=(), curve=(), scan=scan)


def test_trials_of_failures_alone_come_back(tmp_path: Path) -> None:
    records = trials("ewc", 0, 1, fail=True)
    Tables(tmp_path).write(records, [])
    tables = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("trials", "scan"))
    assert sorted(r.trial_key for r in trials_of(*tables)) == sorted(r.trial_key for r in records)


@pytest.mark.parametrize("name", ["trials", "scan", "capacity"])
def test_no_flipped_bit_of_a_table_is_read_as_something_else(tmp_path: Path, name: str) -> None:
    records, results = accounted(run(["clnp"], 2))
    Tables(tmp_path, LAYERS).write(records, results)
    path = tmp_path / f"{name}.parquet"
    whole, sound, found = path.read_bytes(), read_table(path), 0
    assert sound.equals(pq.read_table(path))
    for place in [*range(0, len(whole), 11), len(whole) - 1]:
        raw = bytearray(whole)
        raw[place] ^= 1 << place % 8
        path.write_bytes(raw)
        try:
            assert read_table(path).equals(sound), place  # a byte that nobody reads
        except DamagedError:
            found += 1
    assert found > len(whole) // 11 // 2


def test_imports_are_lazy() -> None:
    code = (
        "import sys, clsearch.report, clsearch.report.tables, clsearch.exports, clsearch.metrics;"
        "heavy = {'matplotlib', 'pyarrow', 'rich', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
