"""`import clsearch`: what a run left, as tables; other margins; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from command import write_config
from helpers import SerialSearcher, SilentProgress, SilentTracker

import clsearch
from clsearch.errors import DamagedError, InputError
from clsearch.folder import open_store
from clsearch.folder import write_config as write_resolved
from clsearch.sequence import Search
from clsearch.system import resolve


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search of two methods, two seeds and two tasks."""
    folder = tmp_path_factory.mktemp("api")
    config = resolve(clsearch.load_config(write_config(folder / "c.yaml", seeds=[0, 3])))
    search = Search(config, folder / "out", open_store(folder / "out"))
    search.run(SerialSearcher(), SilentTracker(), SilentProgress())
    write_resolved(folder / "out", config)
    return folder / "out"


def test_a_config_comes_from_a_file_its_name_or_a_mapping(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml")
    config = clsearch.load_config(path)
    assert clsearch.load_config(str(path)) == config
    assert clsearch.load_config(yaml.safe_load(path.read_text())) == config
    with pytest.raises(InputError, match="methods: \\[\\] is not allowed"):
        clsearch.load_config({**yaml.safe_load(path.read_text()), "methods": []})


@pytest.mark.parametrize("name", ["trials", "scan", "capacity"])
def test_tables_of_the_folder_are_its_files(out: Path, name: str) -> None:
    results = clsearch.Results(out)
    assert results.table(name).equals(pq.read_table(out / f"{name}.parquet"))  # type: ignore[arg-type]
    frame = results.frame(name)  # type: ignore[arg-type]
    assert len(frame) == results.table(name).num_rows > 0  # type: ignore[arg-type]


def test_accuracy_and_summary_are_those_of_the_matrix(out: Path) -> None:
    """ACC, forgetting and BWT of two tasks, worked out from the matrix by hand."""
    results = clsearch.Results(str(out))
    matrix = json.loads((out / "accuracy_matrix.json").read_text())
    long = results.frame("accuracy")
    summary = results.frame("summary").set_index(["method", "seed"])
    assert set(summary.index) == {(m, s) for m in ("finetune", "clnp") for s in (0, 3)}
    for method, seed in summary.index:
        (first,), (then, second) = matrix[method][str(seed)]
        own = long[(long.method == method) & (long.seed == seed)]
        assert own[["after_task", "task", "test_accuracy"]].to_numpy().tolist() == [
            [1, 1, first], [2, 1, then], [2, 2, second],
        ]  # fmt: skip
        row = summary.loc[(method, seed)]
        assert row.average_accuracy == pytest.approx((then + second) / 2)
        assert row.average_forgetting == pytest.approx(first - then)
        assert row.backward_transfer == pytest.approx(then - first)
        assert (row.tasks, row.outcome) == (2, "selected")
        assert [list(r) for r in results.matrix(method, seed)] == [[first], [then, second]]


def test_selections_are_those_of_the_file(out: Path) -> None:
    results = clsearch.Results(out)
    written = json.loads((out / "selections.json").read_text())
    rows = results.table("selections").to_pylist()
    for row, told in zip(rows, written, strict=True):
        for name in ("method", "seed", "task", "trial_key", "accuracy", "sparsity", "commit"):
            assert row[name] == told[name]
        assert row["hp_lr"] == told["hyperparameters"]["lr"]
        assert row["hp_l1"] == told["hyperparameters"].get("l1")
        assert row["candidates"] == len(told["candidates"])
    assert [s.to_json() for s in results.selections] == [
        r.selection.to_json() for r in results.tasks
    ]
    assert {r.trial_key for r in results.trials} == set(
        results.table("trials")["trial_key"].to_pylist()
    )


def test_the_runs_own_margin_selects_the_same_again(out: Path) -> None:
    own = {(s.method, s.seed, s.task): s for s in clsearch.Results(out).selections}
    again = clsearch.select(out, 1.0)
    assert {(s.method, s.seed, s.task): s for s in again} == own
    wide = clsearch.select(out, 100)
    assert all(s.sparsity >= own[s.method, s.seed, s.task].sparsity for s in wide)  # type: ignore[operator]


def test_a_run_that_has_only_begun_shows_what_is_there(out: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes((out / "config.yaml").read_bytes())
    results = clsearch.Results(tmp_path)
    assert results.selections == results.trials == ()
    for name in ("selections", "accuracy", "summary"):
        table = results.table(name)  # type: ignore[arg-type]
        full = clsearch.Results(out).table(name)  # type: ignore[arg-type]
        assert table.num_rows == 0
        fixed = [f for f in full.schema if not f.name.startswith("hp_")]
        assert pa.schema(fixed).equals(table.schema)
    with pytest.raises(InputError, match=r"trials\.parquet.*clsearch resume"):
        results.table("trials")


def test_what_is_refused(out: Path, tmp_path: Path) -> None:
    results = clsearch.Results(out)
    with pytest.raises(InputError, match=r"config\.yaml"):
        clsearch.Results(tmp_path)
    with pytest.raises(InputError, match=r"name: 'runs'.*accuracy, capacity, scan"):
        results.table("runs")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"method: 'ewc'.*clnp, finetune"):
        results.matrix("ewc")
    with pytest.raises(InputError, match=r"seed: 1.*0, 3"):
        results.matrix("clnp", 1)
    for margin in (-1, 101, float("nan")):
        with pytest.raises(InputError, match="margin"):
            clsearch.select(out, margin)


def test_an_option_out_of_range_is_refused(out: Path, tmp_path: Path) -> None:
    config = clsearch.load_config(out / "config.yaml")
    with pytest.raises(InputError, match=r"^workers: 0 is not allowed"):
        clsearch.run(config, tmp_path / "new", workers=0)
    assert not (tmp_path / "new").exists()


def test_a_damaged_table_is_said(out: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes((out / "config.yaml").read_bytes())
    (tmp_path / "scan.parquet").write_bytes((out / "scan.parquet").read_bytes()[:-10])
    with pytest.raises(DamagedError, match=r"scan\.parquet cannot be read.*clsearch resume"):
        clsearch.Results(tmp_path).table("scan")
