"""What a report says: tables worked out by hand, notes, escaping, and how it is written."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import Ended, refused
from helpers import SerialSearcher, SilentProgress, SilentTracker
from made_up import Made, accounted, run, told

from clsearch.config import parse_config
from clsearch.errors import DamagedError, StoreError
from clsearch.files import ABOUT
from clsearch.folder import open_store, records_of, write_config
from clsearch.identity import without_places
from clsearch.report import write_report
from clsearch.report.content import document
from clsearch.report.cost_tables import cost_sheet, failures_sheet, other_protocol
from clsearch.report.document import Document, markdown
from clsearch.report.outcome_tables import mean_std, result_sheet, task_sheets
from clsearch.report.page import page
from clsearch.report.plain import as_csv, as_latex, latex_text
from clsearch.report.setup_tables import honest
from clsearch.report.source import Run, labelled, lines_of
from clsearch.report.tables import Sheet, number
from clsearch.reporting import read_run, report
from clsearch.sequence import Search
from clsearch.system import resolve

Call = Callable[..., Ended]


def searched(out: Path, tasks: int = 2, **sections: Any) -> Path:
    """A small search without Ray and MLflow; its folder."""
    config = resolve(
        parse_config(
            {
                "name": "small",
                "scenario": {"name": "permuted", "source": "digits", "tasks": tasks},
                "model": {"name": "mlp", "hidden": [16]},
                "training": {"epochs": 2, "batch_size": 100},
                "methods": [{"name": "clnp", "grid": {"l1": [1e-4, 1e-3], "lr": [0.01]}}],
            }
            | sections
        )
    )
    out.mkdir(parents=True)
    write_config(out, config)
    Search(config, out, open_store(out)).run(SerialSearcher(), SilentTracker(), SilentProgress())
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched(tmp_path_factory.mktemp("small") / "run")


@pytest.fixture(scope="module")
def written(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small run's report."""
    return report([small], tmp_path_factory.mktemp("report"), csv=True, latex=True)[0].parent


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    """A copy of the small run, to be damaged."""
    return Path(shutil.copytree(small, tmp_path / "run"))


def sheet_of(found: Document, title: str) -> Sheet:
    return next(sheet for sheet in found.sheets if sheet.title == title)


def test_final_figures_are_means_and_deviations_over_seeds() -> None:
    sheet = result_sheet(told(accounted(run(["clnp", "ewc"], 3, seeds=2)), 3))
    rows = {row[0]: dict(zip(sheet.header, row, strict=True)) for row in sheet.rows}
    # ewc: (0.8 + 0.8 + 0.9) / 3 at seed 0, 0.01 more at seed 1: 83.33 and 84.33
    assert rows["ewc"]["ACC (%)"] == "83.83 ± 0.71"
    assert rows["ewc"]["forgetting (pp)"] == "10.00 ± 0.00"
    assert rows["ewc"]["BWT (pp)"] == "-10.00 ± 0.00"
    assert rows["clnp"]["BWT (pp)"] == "0.00 ± 0.00"
    assert rows["clnp"]["tasks"] == "3/3‡"
    assert rows["ewc"]["sparsity (%)"] == "26.7 ± 0.0"
    assert rows["ewc"]["memory (KiB)"] == "4.5 ± 0.0"
    assert rows["ewc"]["seeds"] == "2"
    assert "n − 1" in sheet.note


def test_a_mean_of_one_has_no_deviation_and_of_none_no_value() -> None:
    assert mean_std([0.5, None, 0.7]) == "60.00 ± 14.14"
    assert mean_std([0.5]) == "50.00"
    assert mean_std([-1e-9]) == "0.00"
    assert mean_std([None]) == "-"


def test_accuracy_and_forgetting_of_each_task() -> None:
    made = told(run(["clnp", "ewc"], 3), 3)
    so_far, final, forgotten = task_sheets(lines_of([made]), 3)
    assert so_far.rows == (
        ("1", "90.00", "90.00"),
        ("2", "90.00", "85.00"),
        ("3", "90.00", "83.33"),
    )
    assert final.rows == (("1", "90.00", "80.00"), ("2", "90.00", "80.00"), ("3", "90.00", "90.00"))
    assert forgotten.rows == (("1", "0.00", "10.00"), ("2", "0.00", "10.00"))


def test_cost_of_both_protocols() -> None:
    """Two of three trials a task are complete, of 2 epochs and 1.5 s; task 1 selected the first."""
    made = told(run(["ewc"], 3), 3)
    (ran, other) = cost_sheet(made).rows
    assert ran == ("ewc", "current_task", "9", "12", "9.0", "4.5")
    assert other == ("ewc", "first_task (not run)", "5", "8", "6.0", "-")


def test_cost_of_the_protocol_that_was_not_run_is_not_guessed() -> None:
    records, results = run(["ewc"], 2)
    gone = [r for r in records if r.task == 1 or r.hyperparameters["lr"] != 0.001]
    made = told((gone, results), 2)
    assert other_protocol(made, made.records, made.methods["ewc"]) is None
    one = told(([r for r in records if r.hyperparameters["lr"] == 0.001], results), 2)
    assert len(cost_sheet(one).rows) == 1


def test_first_task_is_counted_against_the_grid_at_every_task() -> None:
    records, results = run(["ewc"], 3)
    made = told(
        ([r for r in records if r.task == 1 or r.hyperparameters["lr"] == 0.001], results), 3
    )
    search = made.config.search.model_copy(update={"protocol": "first_task"})
    made = replace(made, config=made.config.model_copy(update={"search": search}))
    assert [row[1:5] for row in cost_sheet(made).rows] == [
        ("first_task", "5", "8", "6.0"), ("current_task (not run)", "9", "-", "-"),
    ]  # fmt: skip


def test_hyperparameters_are_short() -> None:
    written = {1000.0: "1000", 30000.0: "30000", 1e-5: "1e-05", 0.00106266: "0.00106", 2e7: "2e+07"}
    assert {value: number(value) for value in written} == written


def test_failures_are_grouped_by_reason() -> None:
    records, results = run(["ewc", "mas"], 2)
    failed = [i for i, r in enumerate(records) if r.status == "FAILED"]
    records[failed[-1]] = replace(records[failed[-1]], reason="out of memory", lost=True)
    sheet = failures_sheet(told((records, results), 2))
    assert [row[:4] for row in sheet.rows] == [
        ("ewc", "loss is nan", "2", "1, 2"),
        ("mas", "loss is nan", "1", "1"),
        ("mas", "out of memory (lost by its machine)", "1", "2"),
    ]
    assert sheet.rows[2][4] == records[failed[-1]].trial_key


def test_what_was_run_and_how_it_was_tuned() -> None:
    found = document(labelled([told(run(["ewc"], 2, seeds=2), 2)]))
    facts = dict(sheet_of(found, "What was run").rows)
    assert facts["scenario"] == "permuted (source=digits)"
    assert facts["tasks"] == "2: permuted-1, permuted-2"
    assert facts["samples of a task"] == "1,295 training, 143 validation, 359 test; 10 classes"
    assert facts["search"].startswith("current_task: ")
    assert "within 1 percentage points" in facts["selection"]
    assert facts["seeds"] == "0, 1"
    assert facts["trials"] == "12 (8 complete, 4 failed)"
    assert "8 trials on host (cpu)" in facts["machines"]
    assert "torch 2.13" in facts["versions"]
    (row,) = sheet_of(found, "Methods").rows
    assert row[3:6] == ("lr: 0.001, 0.003, 0.01; strength: 1, 10, 100", "3", "1")
    assert "validation data" in found.sections[0].words[0]


def test_a_look_at_test_inputs_is_said() -> None:
    made = told(run(["ewc"], 1), 1)
    assert "without their labels" not in honest([made])
    method = made.config.methods[0].model_copy(update={"options": {"source": "test-inputs"}})
    looked = replace(made, config=made.config.model_copy(update={"methods": [method]}))
    assert "without their labels" in honest([looked])


def test_an_unfinished_run_is_reported_as_such() -> None:
    records, results = run(["clnp", "ewc"], 2)
    made = told((records, [r for r in results if r.selection.task == 1]), 2, stored=99)
    (note,) = document(labelled([made])).notes
    assert "clnp, seed 0: 1 of 2 tasks; ewc, seed 0: 1 of 2 tasks" in note
    assert f"{99 - len(records)} finished trials" in note
    ended = told(run(["ewc"], 3, end=("ewc", 0, 2)), 3)
    assert document(labelled([ended])).notes == []


def test_runs_side_by_side() -> None:
    a, b = told(run(["clnp"], 2), 2, "one"), told(run(["clnp", "mas"], 3), 3, "two")
    found = document(labelled([a, b]))
    result = sheet_of(found, "Result")
    assert [row[:2] for row in result.rows] == [("one", "clnp"), ("two", "clnp"), ("two", "mas")]
    assert result.note.count("ACC: ") == 1
    curves = sheet_of(found, "Average test accuracy after each task (%)")
    assert curves.header == ("task", "one: clnp", "two: clnp", "two: mas")
    assert curves.rows[2] == ("3", "-", "90.00", "83.33")
    names = [drawing.name for drawing in found.drawings]
    assert len(set(names)) == len(names)
    assert {"accuracy", "tradeoff_run1_clnp", "tradeoff_run2_clnp"} <= set(names)
    assert found.notes == []


def test_runs_of_equal_names_have_labels_of_their_own() -> None:
    made = told(run(["clnp"], 1), 1)
    other = replace(made, folder="elsewhere")
    assert [r.label for r in labelled([made, other])] == ["test (test-folder)", "test (elsewhere)"]
    assert [r.label for r in labelled([made, made])] == [
        "test (test-folder) 1", "test (test-folder) 2",
    ]  # fmt: skip
    assert [r.label for r in labelled([made])] == ["test"]


def test_runs_of_different_sequences_are_not_drawn_together() -> None:
    a, b = told(run(["clnp"], 2), 2, "one"), told(run(["clnp"], 2), 2, "two")
    tasks = [replace(task, digest="of other data") for task in b.tasks]
    found = document(labelled([a, replace(b, about={**b.about, "tasks": tasks})]))
    assert "cannot be compared: one; two" in found.notes[0]
    assert {"accuracy_1", "accuracy_2"} <= {d.name for d in found.drawings}
    found = document(labelled([a, replace(b, about={**b.about, "scenario": {"name": "split"}})]))
    assert "cannot be compared: one; two" in found.notes[0]


EVIL = '<script>alert("x")</script> & [a](http://b) | *c* `d`'


def evil() -> Run:
    """A run whose labels, reasons and values are all hostile."""
    records, results = run(["ewc"], 2)
    records = [replace(r, reason=EVIL if r.status == "FAILED" else "", host=EVIL) for r in records]
    made = told((records, results), 2)
    return replace(made, folder=EVIL, about={**made.about, "versions": {EVIL: EVIL}})


def test_every_value_is_escaped_in_the_page() -> None:
    found = document([replace(evil(), label=EVIL)])
    text = page(found, {drawing.name: b"" for drawing in found.drawings})
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 5


def test_every_value_is_escaped_in_markdown() -> None:
    text = markdown(document([replace(evil(), label=EVIL)]))
    assert "<script" not in text.replace("\\<script", "")
    assert not re.search(r"(?<!\\)\[a(?<!\\)\]\(http", text)
    header = next(line for line in text.splitlines() if line.startswith("| method | reason"))
    row = text.splitlines()[text.splitlines().index(header) + 2]
    assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", header))


def test_csv_has_numbers_in_columns_of_their_own() -> None:
    rows = (("a,b", "1,234.50 ± 0.10", "5/5†"), ("c", "2.00", "-"))
    sheet = Sheet("Result", ("method", "ACC (%)", "tasks"), rows)
    read = list(csv.reader(io.StringIO(as_csv(sheet), newline="")))
    assert read == [
        ["method", "ACC (%)", "ACC (%), standard deviation", "tasks"],
        ["a,b", "1234.50", "0.10", "5/5"],
        ["c", "2.00", "", ""],
    ]


def test_latex_escapes_what_it_would_read_as_commands() -> None:
    assert latex_text(r"50 % of_a & b\c {d} ~^#$ ± θ‡") == (
        r"50 \% of\_a \& b\textbackslash{}c \{d\} \textasciitilde{}\textasciicircum{}\#\$ $\pm$ "
        r"$\theta$$^{\ddagger}$"
    )
    text = as_latex(Sheet("A\nB", ("method", "x"), (("[m]", "1 ± 2"),), note="n\nn"))
    assert text.splitlines()[:2] == ["% A B", "% n n"]
    assert r"{[m]} & 1 $\pm$ 2 \\" in text
    assert r"\begin{tabular}{lr}" in text


def test_latex_tables_compile(tmp_path: Path) -> None:
    if not (latex := shutil.which("pdflatex")):
        pytest.skip("no LaTeX here: apt-get install texlive-latex-recommended")
    tables = [as_latex(sheet) for sheet in document([replace(evil(), label=EVIL)]).sheets]
    text = "\n\n".join([
        r"\documentclass{article}\usepackage{booktabs}\usepackage[T1]{fontenc}\begin{document}",
        *tables, r"\end{document}",
    ])  # fmt: skip
    (tmp_path / "t.tex").write_text(text, encoding="utf-8")
    command = [latex, "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_report_leaves_these_files(written: Path) -> None:
    assert {p.name for p in written.iterdir()} == {"index.html", "index.md", "figures", "tables"}
    figures = {p.name for p in (written / "figures").iterdir()}
    assert figures == {
        f"{name}.{kind}"
        for kind in ("png", "svg")
        for name in ("accuracy", "accuracy_by_task", "accuracy_matrix", "capacity", "capacity_clnp",
                     "tradeoff_clnp", "scan_clnp", "hyperparameters_clnp", "parallel_clnp")
    }  # fmt: skip
    assert {p.suffix for p in (written / "tables").iterdir()} == {".csv", ".tex"}
    linked = re.findall(r"\]\((figures/\S+)\)", (written / "index.md").read_text())
    assert {Path(target).name for target in linked} == figures


def test_the_report_from_tables_is_that_from_the_journal(
    small: Path, written: Path, tmp_path: Path
) -> None:
    """Reading Parquet, which leaves the models on the disk, changes nothing; nor does the time."""
    full = replace(read_run(small), records=records_of(small))
    assert all(r.curve for r in full.records)
    page = write_report(tmp_path, [full])[0]
    assert page.read_bytes() == (written / "index.html").read_bytes()


def test_what_an_earlier_report_left_goes_and_other_files_stay(folder: Path, call: Call) -> None:
    earlier = folder / "report"
    for part in ("figures", "tables", ".new-killed"):
        (earlier / part).mkdir(parents=True)
        (earlier / part / "old.png").write_text("of a method that is gone")
    (earlier / "index.html").write_text("old")
    (earlier / "notes.md").write_text("mine")
    assert call("report", folder).code == 0
    names = {p.name for p in earlier.iterdir()}
    assert names == {"index.html", "index.md", "figures", "notes.md"}
    assert not (earlier / "figures" / "old.png").exists()
    assert (earlier / "index.html").read_text() != "old"


@pytest.mark.parametrize("what", ["no run", "taken", "file", "several"])
def test_bad_input_is_refused(what: str, small: Path, tmp_path: Path, call: Call) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("mine")
    arguments, words = {
        "no run": ([taken], ("DIR", "config.yaml", "clsearch run")),
        "taken": ([small, "--to", taken], ("to", "empty", "--force")),
        "file": ([small, "--to", taken / "thesis.tex"], ("to", "no folder")),
        "several": ([small, small], ("to", "several runs")),
    }[what]
    refused(call("report", *arguments), *words)
    assert [p.name for p in tmp_path.rglob("*")] == ["taken", "thesis.tex"]


@pytest.mark.parametrize("name", ["figures", "tables", "index.html", "index.md"])
def test_force_takes_nothing_that_is_of_no_report(
    name: str, small: Path, tmp_path: Path, call: Call
) -> None:
    mine = tmp_path / name
    if "." not in name:
        mine.mkdir()
        mine /= "thesis.png"
    mine.write_text("mine")
    refused(call("report", small, "--to", tmp_path, "--force"), "--to", f"{tmp_path / name} is not")
    assert mine.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_report_that_is_stopped_leaves_the_earlier_one(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of its parts is just being put in place."""
    report([small], tmp_path, csv=True)
    (tmp_path / "figures" / "mark").write_text("of the earlier one")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    left, rename = 0, Path.rename

    def stopped(self: Path, target: Path) -> Path:
        nonlocal left
        if {self.parent, target.parent} > {tmp_path}:
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    for part in range(1, 9):
        left = part
        with pytest.raises(KeyboardInterrupt):
            report([small], tmp_path, latex=True, force=True)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_report_that_is_stopped_leaves_no_folder(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("clsearch.report.page.page", stopped)
    with pytest.raises(KeyboardInterrupt):
        report([small], tmp_path / "above" / "new")
    assert list(tmp_path.iterdir()) == []


def test_force_writes_beside_what_is_there(small: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    done = call("report", small, "--to", tmp_path, "--force")
    assert done.code == 0
    assert str(tmp_path / "index.html") in done.out.replace("\n", "")
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_run_without_its_scenario_is_of_the_same_sequence(small: Path, folder: Path) -> None:
    """It ended before that was written."""
    (folder / ABOUT).unlink()
    runs = [read_run(small), read_run(folder)]
    assert runs[0].sequence == runs[1].sequence != {}
    assert not any("cannot be compared" in note for note in document(labelled(runs)).notes)


def test_a_scenario_that_is_none_is_named(folder: Path) -> None:
    about = json.loads((folder / ABOUT).read_bytes())
    (folder / ABOUT).write_text(json.dumps(about | {"scenario": [3]}))
    with pytest.raises(DamagedError, match=re.escape(ABOUT)):
        report([folder])


@pytest.mark.parametrize("name", ["selections.json", "trials.parquet", "scan.parquet", ABOUT])
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    with pytest.raises(DamagedError, match=re.escape(name)):
        report([folder])


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_a_number_that_is_not_finite_is_damage(folder: Path, value: str) -> None:
    text = (folder / "selections.json").read_text()
    changed = re.sub(r'"margin": [0-9.]+', f'"margin": {value}', text, count=1)
    assert changed != text
    (folder / "selections.json").write_text(changed)
    with pytest.raises(DamagedError, match="selections"):
        report([folder])


def test_a_page_that_is_a_pipe_is_no_report(folder: Path, tmp_path: Path, call: Call) -> None:
    there = tmp_path / "there"
    there.mkdir()
    os.mkfifo(there / "index.html")
    for more in ((), ("--force",)):
        assert call("report", folder, "--to", there, *more).code == 2


def test_an_unfinished_folder_is_reported_with_what_is_there(folder: Path, call: Call) -> None:
    for name in ("trials.parquet", "scan.parquet", "selections.json", "accuracy_matrix.json"):
        (folder / name).unlink()
    assert call("report", folder).code == 0
    text = (folder / "report" / "index.html").read_text()
    assert "This run is not finished" in text
    assert "4 finished trials of its journal" in text
    assert "no task has been finished yet" in text
    (folder / ABOUT).unlink()
    assert call("report", folder).code == 0


def test_a_report_is_made_without_torch(small: Path, tmp_path: Path) -> None:
    """Its import takes longer than a small report, and so does that of pandas."""
    code = (
        "import sys; from pathlib import Path; from clsearch.reporting import report;"
        "report([Path(sys.argv[1])], Path(sys.argv[2]));"
        "assert 'matplotlib' in sys.modules;"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(small), str(tmp_path / "to")], check=True)


def test_the_search_leaves_what_the_report_says_of_it(small: Path) -> None:
    about = json.loads((small / ABOUT).read_bytes())
    assert [task["name"] for task in about["tasks"]] == ["permuted-1", "permuted-2"]
    assert about["versions"].keys() == {"python", "clsearch", "torch", "ray", "mlflow", "numpy"}
    assert about["machine"]["cores"] >= 1
    assert about["scenario"] == without_places(read_run(small).config.scenario.model_dump())
    made: Made = (list(read_run(small).records), list(read_run(small).results))
    assert len(made[0]) == 4
    assert read_run(small).unfinished == []


def test_a_report_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    made = told(run(["clnp"], 1), 1)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        with pytest.raises(StoreError, match="No space left on device"):
            write_report(disk / "new" / "report", [made])
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
