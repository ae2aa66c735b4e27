"""Whole searches in this process: files, resuming, damage, depletion, and who sees test data."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import Learner, SerialSearcher, SilentProgress, SilentTracker
from rich.console import Console

import clsearch.sequence
from clsearch.config import parse_config
from clsearch.data.base import Samples
from clsearch.errors import InputError, StoreError
from clsearch.folder import ABOUT, open_store, records_of, results_of, write_config
from clsearch.identity import identity
from clsearch.methods.base import Method
from clsearch.metrics import average_forgetting
from clsearch.plugins import discover
from clsearch.progress import ConsoleProgress, _Count
from clsearch.protocols import Ended, Job
from clsearch.records import Chain
from clsearch.scenarios._common import SourceScenario
from clsearch.selected import open_selected
from clsearch.sequence import Found, Search
from clsearch.status import print_status
from clsearch.store import MANIFEST, Store, read_commit
from clsearch.system import resolve
from clsearch.training.batch import DeviceData, Readout, answer

METHODS = [
    name
    for name, kind in discover("clsearch.methods", Method).items()
    if {"task_incremental", "domain_incremental"} <= set(kind.scenarios)
]
WRITTEN = ("selections.json", "accuracy_matrix.json")
PERMUTED = {"name": "permuted", "source": "digits", "tasks": 2, "validation": 0.3}
SPLIT = {"name": "split", "source": "digits", "classes_per_task": 3,
         "class_order": [3, 1, 4, 0, 5, 9], "validation": 0.3}  # fmt: skip


def settings(
    methods: Sequence[str | dict[str, Any]] = ("finetune", "clnp"), **sections: Any
) -> dict[str, Any]:
    entries = [{"name": m} if isinstance(m, str) else m for m in methods]
    return {
        "name": "tiny",
        "scenario": PERMUTED,
        "model": {"name": "mlp", "hidden": [10, 8]},
        "methods": entries,
        "training": {"epochs": 1, "batch_size": 128},
        "search": {"grid": {"lr": [0.003, 0.01]}},
        "selection": {"margin": 5, "thresholds": 10},
        **sections,
    }


def run(
    out: Path,
    data: dict[str, Any],
    searcher: SerialSearcher | None = None,
    progress: SilentProgress | None = None,
    tracker: SilentTracker | None = None,
) -> Found:
    out.mkdir(exist_ok=True)
    search = Search(resolve(parse_config(data)), out, open_store(out))
    return search.run(
        searcher or SerialSearcher(), tracker or SilentTracker(), progress or SilentProgress()
    )


def written(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in WRITTEN]


def outcomes(found: Found) -> dict[str, list[str]]:
    by_chain: dict[str, list[str]] = {}
    for result in found.results:
        by_chain.setdefault(str(result.selection.chain), []).append(result.selection.outcome)
    return by_chain


# --- files, and the second run -------------------------------------------------------------------


@pytest.mark.parametrize("scenario", [PERMUTED, SPLIT], ids=["permuted", "split"])
def test_all_methods_and_a_second_run_that_trains_nothing(
    scenario: dict[str, Any], tmp_path: Path
) -> None:
    data = settings(METHODS, scenario=scenario, selection={"margin": 30, "thresholds": 10})
    tracker = SilentTracker()
    found = run(tmp_path, data, tracker=tracker)
    trials = len(METHODS) * 2 * 2
    assert found.trained == trials
    assert found.reused == 0
    assert found.trials.statuses == {"COMPLETE": trials}
    assert found.trials.seconds == pytest.approx(sum(r.duration for r in records_of(tmp_path)))
    assert set(map(tuple, outcomes(found).values())) == {("selected", "selected")}
    assert {p.name for p in tmp_path.iterdir()} >= {*WRITTEN, "trials.parquet", "scan.parquet"}
    assert pq.read_table(tmp_path / "trials.parquet").num_rows == trials
    assert {r.trial_key for r in tracker.trials} == {r.trial_key for r in records_of(tmp_path)}
    assert len(tracker.commits) == len(METHODS) * 2
    first = written(tmp_path)

    again = run(tmp_path, data)
    assert (again.trained, again.reused) == (0, trials)
    assert written(tmp_path) == first

    matrix = json.loads(first[1])
    for method in METHODS:
        rows = matrix[method]["0"]
        assert [len(row) for row in rows] == [1, 2]
        assert all(0 <= a <= 1 for row in rows for a in row)
    # A model for each task keeps its old answers; CLNP forgets nothing.
    for method in ("from_scratch", "clnp"):
        assert matrix[method]["0"][1][0] == matrix[method]["0"][0][0]
        assert average_forgetting(matrix[method]["0"]) == 0
    assert matrix["finetune"]["0"][0] == matrix["from_scratch"]["0"][0]
    assert matrix["joint"]["0"][1][0] != matrix["from_scratch"]["0"][1][0]


def test_memory_is_given_back_after_every_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When what is written of it is let go of, and not before."""
    file, written = tmp_path / "selections.json", []
    monkeypatch.setattr(
        clsearch.sequence, "give_back", lambda: written.append(len(json.loads(file.read_text())))
    )
    run(tmp_path, settings(scenario={**PERMUTED, "tasks": 3}))
    assert written == [2, 4, 6]


@pytest.mark.parametrize("scenario", [PERMUTED, SPLIT], ids=["permuted", "split"])
def test_what_a_method_remembers_is_counted(scenario: dict[str, Any], tmp_path: Path) -> None:
    """64-10-8 with one output layer of 10 classes, or two of 3; float32, and int64 of a count."""
    found = run(tmp_path, settings(["finetune", "mas", "ebll"], scenario=scenario))
    shared = scenario is PERMUTED
    weights = 64 * 10 + 10 + 10 * 8 + 8 + (8 * 10 + 10 if shared else 2 * (8 * 3 + 3))
    heads, encoders = (1 if shared else 2), 2 * (8 * 2 + 2)  # a code is of 8 / 4 numbers
    last = {r.selection.method: r.memory_bytes for r in found.results if r.selection.task == 2}
    assert last == {
        "finetune": 0,
        "mas": 2 * 4 * weights + 8,  # importance, anchor, the count of tasks
        "ebll": 4 * encoders + 8 * heads,
    }
    stored = json.loads((tmp_path / "selections.json").read_bytes())
    assert {s["method"]: s["memory_bytes"] for s in stored if s["task"] == 2} == last


def test_the_matrix_is_what_the_stored_models_reach(tmp_path: Path) -> None:
    data = settings(["from_scratch", "joint", "mas"], scenario=SPLIT)
    search = Search(resolve(parse_config(data)), tmp_path, open_store(tmp_path))
    found = search.run(SerialSearcher(), SilentTracker(), SilentProgress())
    commits = {(r.selection.method, r.selection.task): r for r in found.results}
    for (method, number), result in commits.items():
        for other in range(1, number + 1):
            source = result if method != "from_scratch" else commits[method, other]
            stored = read_commit(search.store, str(source.commit))
            assert stored is not None
            task, samples = search.tasks[other - 1], search.scenario.test(other)
            device = DeviceData(samples.inputs, samples.labels, None, task.transform)
            (batch,) = device.batches(len(samples))
            backbone = search.systems[0].backbone
            logits, _ = answer(backbone, stored[0].params, batch.x, Readout((task.head,)), {})
            right = int((logits.argmax(1) == samples.labels).sum()) / len(samples)
            assert result.test[other - 1] == pytest.approx(right)


def test_clnp_forgets_nothing_in_a_search(tmp_path: Path) -> None:
    """Logits on real test images, bit for bit, from the stored checkpoints of three tasks."""
    for shared in (True, False):
        incremental = "domain_incremental" if shared else "task_incremental"
        scenario = {**PERMUTED, "tasks": 3, "incremental": incremental}
        out = tmp_path / incremental
        out.mkdir()
        data = settings(
            [{"name": "clnp", "grid": {"l1": [0.0, 1e-3]}}],
            scenario=scenario,
            model={"name": "mlp", "hidden": [24, 16]},
            training={"epochs": 2, "batch_size": 64},
            selection={"margin": 25, "thresholds": 20},
        )
        search = Search(resolve(parse_config(data)), out, open_store(out))
        found = search.run(SerialSearcher(), SilentTracker(), SilentProgress())
        states = [(read_commit(search.store, str(r.commit)) or [None])[0] for r in found.results]
        assert len(states) == 3
        system = search.systems[0]
        remembered: dict[int, torch.Tensor] = {}
        for number, state in enumerate(states, start=1):
            assert state is not None
            for earlier in range(1, number + 1):
                task, samples = search.tasks[earlier - 1], search.scenario.test(earlier)
                model = system.model(state, task)
                assert model is not None
                device = DeviceData(samples.inputs, samples.labels, None, task.transform)
                (batch,) = device.batches(len(samples))
                readout = Readout((model.head,))
                logits, _ = answer(model.backbone, model.params, batch.x, readout, model.gates)
                assert torch.equal(remembered.setdefault(earlier, logits), logits)


# --- what changes, and what is trained for it ----------------------------------------------------


def test_an_enlarged_grid_trains_only_what_is_new(tmp_path: Path) -> None:
    methods = ["from_scratch", "joint"]  # no parents: later tasks do not depend on selections
    run(tmp_path, settings(methods))
    more = SerialSearcher()
    found = run(tmp_path, settings(methods, search={"grid": {"lr": [0.003, 0.001, 0.01]}}), more)
    assert (found.trained, found.reused) == (4, 8)
    trained = [r for r in records_of(tmp_path) if r.trial_key in more.keys]
    assert {r.hyperparameters["lr"] for r in trained} == {0.001}
    fresh = tmp_path / "fresh"
    run(fresh, settings(methods, search={"grid": {"lr": [0.003, 0.001, 0.01]}}))
    assert written(fresh) == written(tmp_path)


def test_more_methods_and_seeds_train_only_their_own(tmp_path: Path) -> None:
    run(tmp_path, settings(["finetune"]))
    found = run(tmp_path, settings(["ewc", "finetune"], seeds=[0, 7]))
    assert (found.trained, found.reused) == (12, 4)
    assert len({r.trial_key for r in records_of(tmp_path)}) == 16


def test_a_changed_margin_trains_at_most_what_has_a_new_parent(tmp_path: Path) -> None:
    none = {"margin": 0, "thresholds": 10}
    before = run(tmp_path, settings(["finetune", "clnp", "from_scratch"], selection=none))
    margin = {"margin": 60, "thresholds": 10}
    known = {r.trial_key for r in records_of(tmp_path)}
    searcher = SerialSearcher()
    after = run(
        tmp_path, settings(["finetune", "clnp", "from_scratch"], selection=margin), searcher
    )
    assert not known & set(searcher.keys)

    def parents(found: Found) -> dict[Chain, str | None]:
        return {r.selection.chain: r.commit for r in found.results if r.selection.task == 1}

    changed = {c for c, commit in parents(after).items() if parents(before)[c] != commit}
    assert Chain("clnp", 0) in changed  # θ is another one
    trained = [r for r in records_of(tmp_path) if r.trial_key in searcher.keys]
    assert {r.chain for r in trained} == changed - {Chain("from_scratch", 0)}
    assert all(r.task == 2 for r in trained)


def test_first_task_protocol_searches_once(tmp_path: Path) -> None:
    search = {"protocol": "first_task", "grid": {"lr": [0.003, 0.01]}}
    found = run(tmp_path, settings(["finetune"], search=search))
    assert [r.task for r in records_of(tmp_path)] == [1, 1, 2]
    first, second = (r.selection for r in found.results)
    assert first.hyperparameters == second.hyperparameters


def test_strengths_of_layers_are_searched_and_stand_in_the_tables(tmp_path: Path) -> None:
    entry = {"name": "clnp", "grid": {"l1.fc1": [0.0, 0.01], "lr": 0.01}}
    run(tmp_path, settings([entry]))
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert sorted(row["hp_l1.fc1"] for row in rows) == [0.0, 0.0, 0.01, 0.01]
    weak, strong = (r for r in records_of(tmp_path) if r.task == 1)
    assert weak.curve != strong.curve or weak.scan != strong.scan
    assert "l1.fc1" in json.loads((tmp_path / "selections.json").read_text())[0]["hyperparameters"]


def test_the_tracker_is_told_which_methods_train_on_all_tasks(tmp_path: Path) -> None:
    """And gets accuracies as fractions."""
    data, tracker = settings(["ewc", "joint"]), SilentTracker()
    search = Search(resolve(parse_config(data)), tmp_path, open_store(tmp_path))
    assert search.info().joint == {"joint"}
    search.run(SerialSearcher(), tracker, SilentProgress())
    for commit in tracker.commits:
        assert 0 < (commit.metrics["stored/validation_accuracy"] or 0) <= 1


def test_selections_do_not_depend_on_workers_or_packs(tmp_path: Path) -> None:
    grid = {"grid": {"lr": [0.001, 0.003, 0.01, 0.02, 0.03]}}
    results = []
    for i, (workers, pack) in enumerate([(1, 1), (1, 5), (2, "auto"), (7, 3)]):
        searcher, out = SerialSearcher(workers), tmp_path / str(i)
        data = settings(["ewc", "clnp", "joint"], search=grid, resources={"pack": pack})
        run(out, data, searcher)
        results.append(written(out))
        assert max(searcher.pack_sizes) <= (16 if pack == "auto" else pack)
    assert results[1:] == results[:1] * 3


# --- interruption and damage ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[bytes]]:
    out = tmp_path_factory.mktemp("reference")
    data = settings(["ewc", "clnp", "joint"])
    found = run(out, data)
    assert found.trained == 12
    return data, written(out)


@pytest.mark.parametrize("stops", [[n] for n in range(1, 13)] + [[1, 1, 4, 2]], ids=str)
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    stops: list[int], reference: tuple[dict[str, Any], list[bytes]], tmp_path: Path
) -> None:
    data, wanted = reference
    trained: list[str] = []
    for stop in stops:
        searcher = SerialSearcher(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, data, searcher)
        trained += searcher.keys
    searcher = SerialSearcher()
    found = run(tmp_path, data, searcher)
    trained += searcher.keys
    assert len(trained) == len(set(trained)) == 12
    assert (found.trained, found.reused) == (12 - sum(stops), sum(stops))
    assert written(tmp_path) == wanted


@pytest.mark.parametrize("where", ["commit", "selections", "read"])
def test_killed_anywhere_it_resumes_to_the_same(
    where: str, reference: tuple[dict[str, Any], list[bytes]], tmp_path: Path
) -> None:
    """Between a selection and its commit, before files are written, after every n-th such place."""
    data, wanted = reference
    name = {"commit": "commit", "selections": "atomic_write", "read": "read_record"}[where]
    whole = getattr(clsearch.sequence, name)
    trained: list[str] = []
    for at in (1, 2, 3, 9):
        calls = 0

        def dying(*args: Any, at: int = at, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            return whole(*args, **kwargs)

        searcher = SerialSearcher()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(clsearch.sequence, name, dying)
            with contextlib.suppress(KeyboardInterrupt):
                run(tmp_path, data, searcher)
        trained += searcher.keys
    searcher = SerialSearcher()
    run(tmp_path, data, searcher)
    trained += searcher.keys
    assert len(trained) == len(set(trained)) == 12
    assert written(tmp_path) == wanted


def flip(path: Path) -> None:
    whole = path.read_bytes()
    at = len(whole) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


@pytest.mark.parametrize(
    ("kind", "name", "how"),
    [
        ("trials", "record.json", "flip"),
        ("trials", "model.safetensors", "flip"),
        ("trials", MANIFEST, "cut"),
        ("trials", MANIFEST, "remove"),
        ("trials", "record.json", "remove"),
        ("commits", "state.safetensors", "flip"),
        ("commits", "meta.json", "flip"),
        ("commits", MANIFEST, "cut"),
        ("commits", MANIFEST, "remove"),
        ("measurements", "test.json", "flip"),
        ("measurements", MANIFEST, "cut"),
    ],
)
def test_damaged_files_are_made_again(
    kind: str,
    name: str,
    how: str,
    reference: tuple[dict[str, Any], list[bytes]],
    tmp_path: Path,
) -> None:
    data, wanted = reference
    run(tmp_path, data)
    files = sorted((tmp_path / "checkpoints" / kind).glob(f"*/{name}"))
    for file in files:
        if how == "flip":
            flip(file)
        elif how == "cut":
            file.write_bytes(file.read_bytes()[:-5])
        else:
            file.unlink()
    progress = SilentProgress()
    found = run(tmp_path, data, progress=progress)
    damaged = len(files) if kind == "trials" else 0
    assert len(files) == (12 if kind == "trials" else 6)
    assert found.trained == damaged
    if kind == "trials" and (name, how) != (MANIFEST, "remove"):
        assert len(progress.notes) == damaged
        assert all("trained again" in note for note in progress.notes)
    assert written(tmp_path) == wanted
    assert run(tmp_path, data).trained == 0


# --- chains that end -----------------------------------------------------------------------------


def test_a_method_whose_trials_all_fail_ends_alone(tmp_path: Path) -> None:
    methods = [{"name": "finetune", "label": "hot", "grid": {"lr": [1e30, 1e31]}}, "ewc"]
    found = run(tmp_path, settings(methods))
    assert outcomes(found) == {"hot/seed-0": ["failed"], "ewc/seed-0": ["selected", "selected"]}
    hot = next(r for r in found.results if r.selection.method == "hot")
    assert hot.commit is None
    assert "not finite" in hot.selection.reason
    failed = [r.status for r in records_of(tmp_path) if r.method == "hot"]
    assert failed == ["FAILED"] * 2
    before = written(tmp_path)
    assert run(tmp_path, settings(methods)).trained == 0
    assert written(tmp_path) == before


@pytest.mark.parametrize("beside", [[], ["ewc"]], ids=["alone", "beside others"])
def test_a_depleted_chain_ends_with_its_reason(beside: list[str], tmp_path: Path) -> None:
    """Margin 0 and one threshold: nothing can be pruned that is not dead, one neuron is soon used.

    Alone it leaves a task without any chain to train.
    """
    data = settings(
        ["clnp", *beside],
        scenario={**PERMUTED, "tasks": 4},
        model={"name": "mlp", "hidden": [8, 1]},
        selection={"margin": 0, "thresholds": 1},
        training={"epochs": 3, "batch_size": 64},
    )
    found = run(tmp_path, data)
    mine = outcomes(found)["clnp/seed-0"]
    assert mine[-1] == "depleted"
    assert set(mine[:-1]) == {"selected"}
    ended = next(r.selection for r in found.results if r.selection.outcome == "depleted")
    assert "fc2" in ended.reason
    for other in beside:
        assert outcomes(found)[f"{other}/seed-0"] == ["selected"] * 4
    before = written(tmp_path)
    assert run(tmp_path, data).trained == 0
    assert written(tmp_path) == before


DEPLETING: dict[str, Any] = {
    "scenario": {**PERMUTED, "tasks": 3, "incremental": "task_incremental"},
    "model": {"name": "mlp", "hidden": [8, 2]},
    "selection": {"margin": 0, "thresholds": 1},
    "training": {"epochs": 3, "batch_size": 64},
}
"""Nothing can be pruned that is not dead: the last layer is full after the first task."""


def test_last_layer_transfer_is_recorded_and_shown(tmp_path: Path) -> None:
    found = run(tmp_path, settings(["clnp"], **DEPLETING))
    assert [r.transfer for r in found.results] == [False, True, True]
    write_config(tmp_path, found.config)
    assert [r.transfer for r in results_of(tmp_path)] == [False, True, True]
    console = Console(file=io.StringIO(), width=200)
    with ConsoleProgress(console) as progress:
        progress.expected = 0
        progress.selected(found.results[0])
        progress.selected(found.results[1])
    print_status(tmp_path, console)
    assert isinstance(console.file, io.StringIO)
    first, second, *status = console.file.getvalue().splitlines()
    assert "transfer" not in first
    assert "last-layer transfer: no free neurons" in second
    assert "last-layer transfer at 2, 3" in "".join(status)
    account = {c.layer: c for c in found.results[1].capacity}
    assert (account["fc2"].new, account["fc2"].free, account["fc2"].reused) == (0, 0, 2)


def test_the_status_of_a_folder_that_does_not_say_its_tasks_yet(tmp_path: Path) -> None:
    """The data is still being read, or the search ended before it was."""
    found = run(tmp_path, settings(["finetune"]))
    write_config(tmp_path, found.config)
    for known, words in ((True, "2 of 2 tasks"), (False, "2 tasks")):
        if not known:
            (tmp_path / ABOUT).unlink()
        console = Console(file=io.StringIO(), width=200)
        print_status(tmp_path, console)
        assert isinstance(console.file, io.StringIO)
        _, chain, end = console.file.getvalue().splitlines()
        assert chain.strip() == f"finetune/seed-0: {words}"
        assert end.startswith("Finished." if known else "Not finished.")


@pytest.mark.parametrize("tuned", [False, True], ids=["", "tuned"])
@pytest.mark.parametrize("incremental", ["domain_incremental", "task_incremental"])
def test_a_search_that_grows_is_the_same_when_made_again(
    incremental: str, tuned: bool, tmp_path: Path
) -> None:
    """From the journal, and from the journal with its commits lost; and it forgets nothing. Also
    where what was pruned layer by layer is fine-tuned."""
    clnp = {"name": "clnp", "options": {"grow": {"fc1": 7, "fc2": "auto"}}}
    sections = {**DEPLETING, "scenario": {**DEPLETING["scenario"], "incremental": incremental}}
    if tuned:
        clnp["fine_tune"] = {"epochs": 1}
        sections["selection"] = {"margin": 10, "thresholds": 5, "per_layer": True}
    data = settings([clnp], **sections)
    found = run(tmp_path, data)
    write_config(tmp_path, found.config)
    assert [r.transfer for r in found.results] == [False] * 3
    widths = [tuple(c.units for c in r.capacity) for r in found.results]
    assert widths[0] == (8, 2) < widths[1] <= widths[2]
    assert any(r.selection.rounds for r in found.results) == tuned
    assert [r.selection.units for r in found.results] == widths
    assert found.results[2].test[:2] == found.results[1].test == (
        *found.results[0].test, found.results[1].test[1],
    )  # fmt: skip
    before = written(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "commits")
    again = run(tmp_path, data)
    assert (again.trained, again.results) == (0, found.results)
    assert written(tmp_path) == before
    chains = [open_selected(tmp_path, "clnp", number) for number in (1, 2, 3)]
    last = chains[-1]
    samples = Search(found.config, tmp_path, open_store(tmp_path)).scenario.test(1)
    device = DeviceData(samples.inputs, samples.labels, None, last.tasks[0].transform)
    (batch,) = device.batches(len(samples))
    answers = []
    for chain, width in zip(chains, widths, strict=True):
        assert tuple(u.units for u in chain.system.backbone.unit_layers) == width
        model = chain.system.model(chain.state, last.tasks[0])
        assert model is not None
        readout = Readout((model.head,))
        answers.append(answer(model.backbone, model.params, batch.x, readout, model.gates)[0])
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_progress_is_of_the_earliest_task_at_work_and_in_the_end_of_the_last() -> None:
    progress = ConsoleProgress(Console(file=io.StringIO()))
    assert progress.header == ""
    progress.tasks, progress.names = 3, {1: "one", 2: "two"}
    counts = [_Count(1, over=True), _Count(2, over=False), _Count(1, over=False)]
    progress.counts = {Chain("ewc", seed): count for seed, count in enumerate(counts)}
    assert progress.header == "Task 1/3 one"
    counts[2].over = True
    assert progress.header == "Task 2/3 two"
    counts[1].over = True
    assert progress.header == "Task 2/3 two"


def test_all_chains_may_fail(tmp_path: Path) -> None:
    found = run(tmp_path, settings(["finetune"], search={"grid": {"lr": 1e30}}))
    assert outcomes(found) == {"finetune/seed-0": ["failed"]}
    assert json.loads(written(tmp_path)[1]) == {"finetune": {"0": [[]]}}


# --- who sees what -------------------------------------------------------------------------------


def test_test_data_is_opened_by_commits_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While trials run and selections are made, opening it raises; each task's is opened once."""
    guarded, opened = True, []
    whole_test, whole_commit = SourceScenario.test, clsearch.sequence.commit

    def test(self: SourceScenario, number: int) -> Samples:
        assert not guarded, "test data was opened outside of a commit"
        opened.append(number)
        return whole_test(self, number)

    def commit(*args: Any) -> Any:
        nonlocal guarded
        steps, lost = whole_commit(*args), None
        while True:
            guarded = False
            try:
                jobs = steps.send(lost)
            except StopIteration as end:
                return end.value
            finally:
                guarded = True
            lost = yield jobs  # workers consolidate meanwhile

    monkeypatch.setattr(SourceScenario, "test", test)
    monkeypatch.setattr(clsearch.sequence, "commit", commit)
    found = run(tmp_path, settings(METHODS))
    assert all(r.selection.outcome == "selected" for r in found.results)
    assert opened == [1, 2]


def test_another_test_set_is_measured_and_nothing_trained(tmp_path: Path) -> None:
    """A folder resumed with it has what a new folder has; and with the old one again, the old."""

    def settings_with(test: str) -> dict[str, Any]:
        source = {"name": "arrays", "path": str(tmp_path / "train.npz")}
        source["test_path"] = str(tmp_path / test)
        return settings(METHODS, scenario={"name": "split", "source": source})

    rng = np.random.default_rng(0)
    for name, noise in (("train.npz", 60), ("old.npz", 60), ("new.npz", 120)):
        labels = np.arange(160) % 4
        images = 30 * labels[:, None, None] + rng.integers(0, noise, (160, 6, 6))
        np.savez(tmp_path / name, images=images.astype(np.uint8), labels=labels)
    fresh, resumed = tmp_path / "fresh", tmp_path / "resumed"
    run(fresh, settings_with("new.npz"))
    run(resumed, settings_with("old.npz"))
    before = written(resumed)
    assert before != written(fresh)
    first, second = (resolve(parse_config(settings_with(f"{n}.npz"))) for n in ("old", "new"))
    assert identity(first) == identity(second)
    for test, expected in (("new.npz", written(fresh)), ("old.npz", before)):
        assert run(resumed, settings_with(test)).trained == 0
        assert written(resumed) == expected


def test_test_labels_change_no_selection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain, shuffled = tmp_path / "plain", tmp_path / "shuffled"
    run(plain, settings())
    whole = SourceScenario.test

    def wrong(self: SourceScenario, number: int) -> Samples:
        samples = whole(self, number)
        return Samples(samples.inputs, (samples.labels + 1) % 10)

    monkeypatch.setattr(SourceScenario, "test", wrong)
    run(shuffled, settings())
    assert written(plain)[0] == written(shuffled)[0]
    assert written(plain)[1] != written(shuffled)[1]


def test_a_trial_in_a_search_is_the_trial_alone(tmp_path: Path) -> None:
    """The first task's record says what the same training by hand reaches."""
    data = settings(["finetune"])
    run(tmp_path, data)
    search = Search(resolve(parse_config(data)), tmp_path, open_store(tmp_path))
    chain = Learner(search.config, [search.scenario.data(1)], True)
    record = records_of(tmp_path)[0]
    (alone,) = chain.train(chain.begin(None, 1), 1, [record.hyperparameters])
    assert alone.accuracy == record.validation_accuracy
    assert tuple(alone.curve) == record.curve


class LosingSearcher(SerialSearcher):
    """Loses the packs of a chain, as a cluster does whose workers die again and again."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def run(self, job: Any, parts: Any) -> Any:
        if job.chain.method == self.method:
            return iter([Ended(job, "its worker died 4 times")])
        return super().run(job, parts)


def test_trials_lost_to_the_machine_are_trained_by_the_next_run(tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    run(out, settings(["finetune", "ewc"]), LosingSearcher("ewc"))
    lost = [r for r in records_of(out) if r.method == "ewc"]
    assert [(r.status, r.lost, r.reason) for r in lost] == [
        ("FAILED", True, "its worker died 4 times")
    ] * 2
    searcher = SerialSearcher()
    again = run(out, settings(["finetune", "ewc"]), searcher)
    assert again.trained == 4  # both tasks of ewc; finetune's trials are not touched
    assert {r.method for r in records_of(out) if r.trial_key in searcher.keys} == {"ewc"}
    run(whole, settings(["finetune", "ewc"]))
    assert written(out) == written(whole)


class FarSearcher(SerialSearcher):
    """Reports trials whose records are on another host's disk."""

    def begin(self, config: Any, store: Any) -> None:
        super().begin(config, Store(f"{store.root}-of-another-host"))


def test_a_folder_the_workers_do_not_share_is_an_error_and_no_failed_trial(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoreError, match="every host must see the output folder"):
        run(out, settings(["finetune"]), FarSearcher())
    assert run(out, settings(["finetune"])).reused == 0


def test_a_pack_started_again_trains_only_what_is_missing(tmp_path: Path) -> None:
    """A worker that dies after its first member: the pack's next worker leaves that one alone."""
    out = tmp_path / "out"
    data = settings(["finetune"])
    with contextlib.suppress(KeyboardInterrupt):
        run(out, data, SerialSearcher(stop_after=1))
    trials = out / "checkpoints" / "trials"
    (first,) = [p for p in trials.iterdir() if not p.name.startswith(".")]
    before = (first / "record.json").stat().st_mtime_ns
    search = Search(resolve(parse_config(data)), out, open_store(out))

    class Forgetful(SerialSearcher):
        def run(self, job: Any, parts: Any) -> Any:
            pack = replace(
                job, keys=(first.name, *job.keys), hypers=(job.hypers[0], *job.hypers)
            ) if type(job) is Job and job.task == 1 else job  # fmt: skip
            for event in super().run(pack, parts):
                yield Ended(job) if isinstance(event, Ended) else event

    search.run(Forgetful(), SilentTracker(), SilentProgress())
    assert (first / "record.json").stat().st_mtime_ns == before


# --- images without labels -----------------------------------------------------------------------


def test_unlabelled_images_are_part_of_what_a_commit_is(tmp_path: Path) -> None:
    """Other images of the same name give other commits; trials of task 1 are taken up again."""
    images, out = tmp_path / "stream.npy", tmp_path / "out"
    options = {"source": str(images), "adapt": [{"task": 1, "classes": ["3"], "replace": False}]}
    data = settings([{"name": "mas", "options": options}])
    commits = []
    for value in (4, 9):
        np.save(images, np.full((5, 8, 8), value, dtype=np.uint8))
        found = run(out, data)
        commits.append([result.commit for result in found.results])
    assert found.reused
    assert not set(commits[0]) & set(commits[1])


HEADER = "\x93NUMPY\x01\0v\0{{'descr': '|u1', 'fortran_order': False, 'shape': ({},1,8,8)}}"
"""The beginning of a `.npy` of so many images, without them."""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.zeros((5, 9, 8), np.uint8), "1x8x8"),
        (np.zeros((0, 8, 8), np.uint8), "1x8x8"),
        (np.zeros((5, 8, 8), np.float32), "uint8"),
        (np.full((5, 8, 8), 17, np.uint8), "pixels from 0 to 16"),
        (b"PK\x03\x04 no archive", "uint8"),
        (HEADER.format(999_999_999_999).encode("latin1"), "uint8"),
        (HEADER.format(10**23).encode("latin1"), "uint8"),
        (None, "No such file"),
    ],
    ids=lambda v: "" if isinstance(v, str) else str(getattr(v, "shape", v))[:12],
)
def test_unlabelled_images_that_do_not_fit_are_refused_before_anything_starts(
    tmp_path: Path, content: Any, said: str
) -> None:
    images = tmp_path / "stream.npy"
    if isinstance(content, bytes):
        images.write_bytes(content)
    elif content is not None:
        np.save(images, content)
    data = settings([{"name": "mas", "options": {"source": str(images)}}])
    with pytest.raises(InputError) as caught:
        run(tmp_path / "out", data)
    assert caught.value.field == "methods[0].options.source"
    assert said in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_source_of_the_users_is_found_by_name_or_named(tmp_path: Path) -> None:
    found = run(tmp_path / "a", settings([{"name": "mas", "options": {"source": "digits"}}]))
    assert all(result.commit for result in found.results)
    with pytest.raises(InputError, match="digits, fashion_mnist, flowers, letters, mnist"):
        run(tmp_path / "b", settings([{"name": "mas", "options": {"source": "cats"}}]))
