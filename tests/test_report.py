"""Tables, Parquet files and figures from made-up records."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from clsearch.records import (
    Candidate,
    LayerCapacity,
    ScanPoint,
    Selection,
    TaskResult,
    TrialRecord,
)
from clsearch.report import write_report
from clsearch.report.figures import write_figures
from clsearch.report.tables import markdown_table, print_tables, write_tables

LAYERS = ("fc1", "fc2")
UNITS = (20, 10)
RATES = (0.001, 0.003, 0.01)
Run = tuple[list[TrialRecord], list[TaskResult]]


def trials(method: str, seed: int, task: int, *, fail: bool) -> list[TrialRecord]:
    """Three trials, the last one failed; all of them with `fail`."""
    dice = random.Random(f"{method} {seed} {task}")
    records = []
    for i, rate in enumerate(RATES):
        key = hashlib.sha256(f"{method} {seed} {task} {i}".encode()).hexdigest()[:32]
        hyper = {"lr": rate} if method == "finetune" else {"lr": rate, "strength": 10.0**i}
        if fail or i == 2:
            records.append(TrialRecord(key, method, seed, task, hyper, "FAILED", "loss is nan"))
            continue
        best = 0.95 - 0.002 * i - 0.001 * task
        scan = tuple(
            ScanPoint(t, best - drop, (4 + n, 2 + n))
            for n, (t, drop) in enumerate([(0.0, 0), (0.01, 0.003), (0.3, 0.2 * dice.random())])
        )
        records.append(
            TrialRecord(
                key, method, seed, task, hyper, "COMPLETE", "", best, 0.5, LAYERS, UNITS,
                (4, 2), scan, (0.5, best), 2, 1.5, 100.0, "cpu", "host", 2,
            )
        )  # fmt: skip
    return records


def select(records: Sequence[TrialRecord]) -> Selection:
    """The first trial at θ = 0.01; the second lost, the third failed."""
    first = records[0]
    place = (first.method, first.seed, first.task)
    if first.status == "FAILED":
        return Selection(*place, "failed", "all trials [3] failed: loss is nan", 1.0)
    candidates = tuple(
        Candidate(
            r.trial_key, r.hyperparameters, r.status, r.validation_accuracy,
            0.01 if r.scan else None, r.scan[1].accuracy if r.scan else None,
            r.scan[1].free if r.scan else (), 8 / 30 if r.scan else 0.0, r.drift,
            r is first, "sparsest" if r is first else "less free",
        )
        for r in records
    )  # fmt: skip
    best = first.validation_accuracy or 0.0
    return Selection(
        *place, "selected", "sparsest", 1.0, best, best - 0.01, first.trial_key,
        first.hyperparameters, best, 0.01, best - 0.003, LAYERS, UNITS, (5, 3), 8 / 30, candidates,
    )  # fmt: skip


def run(
    methods: Sequence[str], tasks: int, seeds: int = 1, end: tuple[str, int, int] | None = None
) -> Run:
    """A run; `end` names the method, seed and task at which a chain fails."""
    records, results = [], []
    for method in methods:
        for seed in range(seeds):
            for task in range(1, tasks + 1):
                ends = end == (method, seed, task)
                found = trials(method, seed, task, fail=ends)
                records += found
                lost = 0.0 if method == "clnp" else 0.1
                row = [0.9 + 0.01 * seed - lost * (j < task) for j in range(1, task + 1)]
                selection = select(found)
                results.append(
                    TaskResult(selection, None)
                    if ends
                    else TaskResult(selection, "c0ffee", tuple(row), (5, 3), 1536 * task)
                )
                if ends:
                    break
    return records, results


def accounted(found: Run) -> Run:
    """The run with an account of clnp's neurons, whose fc1 grows; task 2 is learned by transfer."""
    records, results = found
    return records, [
        replace(
            r,
            capacity=(
                LayerCapacity("fc1", 18 + 2 * task, used=4 + 4 * task, new=4, reused=3 * task + 1),
                LayerCapacity("fc2", 10, used=min(10, 3 + 2 * task), new=2, reused=0),
            ),
            transfer=task == 2,
        )
        if (task := r.selection.task) and r.selection.method == "clnp" and r.commit
        else r
        for r in results
    ]


def printed(found: Run, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_tables(console, *found)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row_of(text: str, title: str, label: str) -> str:
    """The row that starts with `label` in the table called `title`."""
    lines = text[text.index(title) :].splitlines()
    return next(line for line in lines[1:] if line.split()[:1] == [label])


def test_numbers_of_the_result() -> None:
    text = printed(run(["clnp", "ewc"], 3, seeds=2), width=90)
    assert row_of(text, "Result", "clnp").split()[1:] == [
        "3/3", "90.50", "±", "0.71", "0.00", "±", "0.00", "26.7", "4", "fc1", "5/20",
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
    assert "| ewc | 1 | 2 | failed | all trials [3] failed: loss is nan |" in markdown_table(*found)


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
    assert "No task has been finished yet" in markdown_table([], [])


def test_trials_parquet(tmp_path: Path) -> None:
    records, results = run(["ewc", "finetune"], 2, seeds=2, end=("ewc", 1, 2))
    write_tables(tmp_path, records[::-1], results, LAYERS)
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


def test_scan_parquet(tmp_path: Path) -> None:
    records, results = run(["ewc"], 2)
    write_tables(tmp_path, records, results)
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
        write_tables(tmp_path, records, [])
        assert pq.read_table(tmp_path / "trials.parquet").num_rows == len(records)
        assert pq.read_table(tmp_path / "scan.parquet").num_rows == 0
        assert pq.read_table(tmp_path / "capacity.parquet").num_rows == 0
    names = ["capacity.parquet", "scan.parquet", "trials.parquet"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_capacity_parquet(tmp_path: Path) -> None:
    write_tables(tmp_path, *accounted(run(["clnp", "ewc"], 2)))
    rows = pq.read_table(tmp_path / "capacity.parquet").to_pylist()
    assert [(r["method"], r["task"], r["layer"]) for r in rows] == [
        ("clnp", task, layer) for task in (1, 2) for layer in LAYERS
    ]
    assert rows[2] == {
        "method": "clnp", "seed": 0, "task": 2, "layer": "fc1", "units": 22,
        "used": 12, "new": 4, "reused": 7, "free": 10, "transfer": True,
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


@pytest.mark.parametrize(
    ("methods", "tasks", "seeds", "end"),
    [
        (["clnp"], 1, 1, None),
        (["clnp", "ewc"], 2, 2, ("ewc", 1, 2)),
        (["clnp", "ewc"], 12, 1, ("ewc", 0, 1)),
        (["clnp"], 1, 1, ("clnp", 0, 1)),
    ],
)
def test_figures(
    tmp_path: Path, methods: list[str], tasks: int, seeds: int, end: tuple[str, int, int] | None
) -> None:
    found = accounted(run(methods, tasks, seeds, end))
    paths = write_figures(tmp_path, *found, "test")
    names = {"accuracy", "accuracy_matrix", "capacity"}
    names |= {f"{kind}_{m}" for m in methods for kind in ("tradeoff", "scan")}
    if any(r.capacity for r in found[1]):
        names.add("capacity_clnp")
    assert {p.stem for p in paths} == names
    assert sorted(paths) == sorted(tmp_path.iterdir())
    for path in paths:
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", content[16:24])
        assert 300 < width < 3000
        assert 200 < height < 3000
        assert len(content) > 5000


def test_figures_are_the_same_every_time(tmp_path: Path) -> None:
    found = run(["clnp", "ewc"], 2)
    first = [p.read_bytes() for p in write_figures(tmp_path, *found, "test")]
    assert [p.read_bytes() for p in write_figures(tmp_path, *found, "test")] == first


def test_report(tmp_path: Path) -> None:
    found = accounted(run(["clnp", "ewc"], 2, seeds=2))
    index, *figures = write_report(tmp_path, *found, "quickstart")
    text = index.read_text()
    assert index == tmp_path / "report" / "index.md"
    assert text.startswith("# quickstart\n")
    assert "| clnp | 2/2‡ | 90.50 ± 0.71 |" in text
    for figure in figures:
        assert f"]({figure.name})" in text
        assert (index.parent / figure.name).is_file()


def test_report_before_the_first_task(tmp_path: Path) -> None:
    (index,) = write_report(tmp_path, [], [], "quickstart")
    assert "No task has been finished yet" in index.read_text()


def test_imports_are_lazy() -> None:
    code = (
        "import sys, clsearch.report, clsearch.report.tables, clsearch.exports, clsearch.metrics;"
        "heavy = {'matplotlib', 'pyarrow', 'rich', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
