"""Between selection and commit: thresholds by layer, fine-tuning after pruning, own margins."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from helpers import (
    Learner,
    SerialSearcher,
    SilentProgress,
    SilentTracker,
    tiny_config,
    tiny_tasks,
)
from test_selection import trial
from test_sequence import PERMUTED, SPLIT, run, settings

from clsearch.config import parse_config
from clsearch.errors import ClsearchError, InputError
from clsearch.folder import open_store, records_of, results_of, write_config
from clsearch.methods.clnp import CLNP
from clsearch.protocols import ConsolidateJob, Ended, FineTuneJob, Job, LayerScanJob
from clsearch.records import Candidate, LayerPruning, Selection, TaskResult, TrialRecord
from clsearch.scenarios.base import TaskData
from clsearch.selection import SLACK, select
from clsearch.sequence import Found, Search
from clsearch.store import read_commit
from clsearch.system import resolve
from clsearch.training.batch import DeviceData, Readout, answer

SCENARIOS = pytest.mark.parametrize("scenario", [PERMUTED, SPLIT], ids=["permuted", "split"])
TUNE = {"epochs": 2, "lr": 1e-3, "l1": 1e-4}
MODEL = {"name": "mlp", "hidden": [24, 16]}
TRAINING = {"epochs": 3, "batch_size": 64}


def tuned(
    scenario: Mapping[str, Any] = SPLIT, tune: Mapping[str, Any] | None = TUNE, **selection: Any
) -> dict[str, Any]:
    """A search of CLNP with fine-tuning."""
    method: dict[str, Any] = {"name": "clnp", "grid": {"l1": [1e-4, 1e-3]}}
    return settings(
        [method | ({"fine_tune": dict(tune)} if tune else {})],
        scenario=dict(scenario),
        model=MODEL,
        training=TRAINING,
        selection={"margin": 8, "thresholds": 20, **selection},
    )


def selections(found: Found) -> list[Selection]:
    return [r.selection for r in found.results]


def candidates(out: Path, selection: Selection) -> tuple[Candidate, ...]:
    """What the files say of the trials that a selection was made from."""
    results = [
        TaskResult.from_json(data, ())
        for data in json.loads((out / "selections.json").read_bytes())
    ]
    place = (selection.chain, selection.task)
    (own,) = (r.selection for r in results if (r.selection.chain, r.selection.task) == place)
    return own.candidates


# --- fine-tuning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False], ids=["shared head", "heads"])
def test_fine_tuning_moves_what_survives_of_the_task_alone(shared: bool) -> None:
    hyper = {"lr": 0.02, "l1": 1e-3}
    config = tiny_config("clnp", model=MODEL, training={"epochs": 3, "batch_size": 8})
    chain = Learner(config, tiny_tasks(2, shared), shared)
    first = chain.learn(None, 1, 0.1, [hyper])
    start = chain.begin(first, 2)
    params = {**start.params, **(chain.train(start, 2, [hyper])[0].params or {})}
    evidence = chain.evidence(start, params, 2)
    free, activity = chain.method.prunable(first.state), evidence.activity()
    thresholds = {layer: float(activity[layer][mask].median()) for layer, mask in free.items()}
    pruned = chain.method.pruned(start, params, activity, thresholds, chain.context(2))
    trained = chain.train(pruned, 2, [hyper])[0].params or {}
    after = {**pruned.params, **trained}
    moved = {name for name in after if not torch.equal(after[name], pruned.params[name])}
    assert moved

    backbone = chain.system.backbone
    for unit in backbone.unit_layers:
        taken = free[unit.name] & (activity[unit.name] > thresholds[unit.name])
        gone = free[unit.name] & ~taken
        assert taken.any()
        assert gone.any()
        for name in (unit.weight, unit.bias):
            assert torch.equal(after[name][~taken], pruned.params[name][~taken])
            assert not torch.equal(after[name][taken], pruned.params[name][taken])
        if unit.outgoing:
            active = ~free[unit.name] | taken
            following = next(u for u in backbone.unit_layers if u.weight == unit.outgoing)
            reads = ~chain.method.prunable(first.state)[following.name]
            assert not after[unit.outgoing][reads][:, ~active].any()
    context = chain.context(2)
    consolidated = chain.method.consolidate(pruned, after, evidence, thresholds, context)
    assert torch.equal(chain.logits(consolidated, 1), chain.logits(first, 1))


@SCENARIOS
def test_a_search_with_fine_tuning_forgets_nothing_and_says_what_it_did(
    scenario: dict[str, Any], tmp_path: Path
) -> None:
    data = tuned(scenario)
    config = resolve(parse_config(data))
    search = Search(config, tmp_path, open_store(tmp_path))
    write_config(tmp_path, config)
    searcher = SerialSearcher()
    tracker = SilentTracker()
    found = search.run(searcher, tracker, SilentProgress())
    method, backbone = search.systems[0].method, search.systems[0].backbone
    remembered: dict[int, torch.Tensor] = {}
    for result in found.results:
        chosen, (state, meta) = result.selection, read_commit(search.store, str(result.commit))  # type: ignore[misc]
        candidate = next(c for c in candidates(tmp_path, chosen) if c.chosen)
        (only,) = chosen.rounds
        assert only.pruned == candidate.accuracy
        assert only.sparsity == candidate.sparsity
        assert chosen.trial_key == (only.trial_key if only.kept else candidate.trial_key)
        if only.kept:
            assert only.recovered is not None
            assert only.recovered >= only.pruned
            assert chosen.accuracy == only.recovered
            assert sum(chosen.free) >= sum(candidate.free)
        assert meta["validation_accuracy"] == pytest.approx(chosen.accuracy)
        assert tuple(c.free for c in result.capacity) == chosen.free
        assert chosen.hyperparameters == candidate.hyperparameters
        for earlier in range(1, chosen.task + 1):
            task, samples = search.tasks[earlier - 1], search.scenario.test(earlier)
            device = DeviceData(samples.inputs, samples.labels, None, task.transform)
            (batch,) = device.batches(len(samples))
            gates = method.gates(state.state, task)
            logits, _ = answer(backbone, state.params, batch.x, Readout((task.head,)), gates)
            assert torch.equal(remembered.setdefault(earlier, logits), logits)
    assert any(s.rounds[0].kept for s in selections(found))

    table = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    extra = [row for row in table if row["fine_tuned"]]
    assert len(extra) == len(found.results)
    assert {row["trial_key"] for row in table} == {r.trial_key for r in tracker.trials}
    for row in extra:
        assert (row["hp_lr"], row["hp_l1"], row["epochs"]) == (1e-3, 1e-4, 2)
    chosen_keys = {row["trial_key"] for row in table if row["selected"]}
    assert chosen_keys == {s.trial_key for s in selections(found)}
    read = [replace(r.selection, candidates=()) for r in results_of(tmp_path)]
    assert read == selections(found)
    assert len(records_of(tmp_path)) == len(table)


def test_a_second_run_fine_tunes_nothing_and_damage_is_mended(tmp_path: Path) -> None:
    first = run(tmp_path, tuned())
    written = (tmp_path / "selections.json").read_bytes()
    again = run(tmp_path, tuned())
    assert (again.trained, again.reused) == (0, first.trained)
    key = selections(first)[0].rounds[0].trial_key
    (tmp_path / "checkpoints" / "trials" / key / "model.safetensors").write_bytes(b"cut")
    mended = run(tmp_path, tuned())
    assert mended.trained == 1
    assert (tmp_path / "selections.json").read_bytes() == written


def test_fine_tuning_is_no_part_of_a_trials_key(tmp_path: Path) -> None:
    run(tmp_path, tuned(tune=None))
    known = {r.trial_key for r in records_of(tmp_path) if r.task == 1}
    run(tmp_path, tuned())
    assert {r.trial_key for r in records_of(tmp_path) if r.task == 1 and not r.fine_tuned} == known


def test_what_fine_tuning_makes_worse_is_not_kept(tmp_path: Path) -> None:
    """A learning rate that destroys the model, and one that is not even finite at the end."""
    for lr in (3.0, 1e30):
        out = tmp_path / str(lr)
        found = run(out, tuned(tune={"epochs": 1, "lr": lr}))
        bare = run(tmp_path / "bare", tuned(tune=None))
        for chosen, without in zip(selections(found), selections(bare), strict=True):
            assert [r.kept for r in chosen.rounds] == [False]
            assert replace(chosen, rounds=()) == without


@pytest.mark.parametrize("per_layer", [False, True])
def test_rounds_go_on_to_the_target_within_the_margin(tmp_path: Path, per_layer: bool) -> None:
    most = {**TUNE, "epochs": 3, "rounds": 4}
    data = tuned(tune=most, per_layer=per_layer)
    for chosen in selections(run(tmp_path / "most", data)):
        sparsities = [r.sparsity for r in chosen.rounds]
        assert 1 <= len(sparsities) <= 4
        assert all(b > a for a, b in itertools.pairwise(sparsities))
        assert (chosen.accuracy or 0) >= (chosen.floor or 1) - SLACK
        assert all(r.pruned >= (chosen.floor or 1) - SLACK for r in chosen.rounds)
        assert all(r.kept for r in chosen.rounds[:-1])
    first = selections(run(tmp_path / "most", data))[0]
    assert len(first.rounds) > 1
    target = first.rounds[0].sparsity / 2  # reached by the first round already
    data = tuned(tune={**most, "sparsity": target}, per_layer=per_layer)
    assert len(selections(run(tmp_path / "target", data))[0].rounds) == 1


class Losing(SerialSearcher):
    """Loses every job of a kind to its workers."""

    def __init__(self, kind: type[Job]) -> None:
        super().__init__()
        self.kind = kind

    def run(self, job: Job, parts: Sequence[TaskData]) -> Iterator[TrialRecord | Ended]:
        if isinstance(job, self.kind):
            return iter([Ended(job, "its worker died again and again")])
        return super().run(job, parts)


@pytest.mark.parametrize("kind", [FineTuneJob, LayerScanJob, ConsolidateJob])
def test_lost_workers_change_no_selection(tmp_path: Path, kind: type[Job]) -> None:
    data = tuned(per_layer=True)
    with pytest.raises(ClsearchError, match="its worker died again and again"):
        run(tmp_path, data, Losing(kind))
    resumed = run(tmp_path, data)
    (tmp_path / "other").mkdir()
    assert selections(run(tmp_path / "other", data)) == selections(resumed)


# --- thresholds by layer -------------------------------------------------------------------------


@SCENARIOS
def test_pruning_by_layer_frees_more_and_stays_within_the_margin(
    scenario: dict[str, Any], tmp_path: Path
) -> None:
    whole = selections(run(tmp_path / "whole", tuned(scenario, None)))[0]
    found = run(tmp_path / "layers", tuned(scenario, None, per_layer=True))
    chosen = selections(found)[0]
    assert (chosen.best, chosen.floor) == (whole.best, whole.floor)
    assert len(chosen.thresholds) == len(chosen.layers)
    assert (chosen.accuracy or 0) >= (chosen.floor or 1) - SLACK
    assert sum(chosen.free) >= sum(whole.free)
    by_key = {c.trial_key: c for c in candidates(tmp_path / "whole", whole)}
    offered = candidates(tmp_path / "layers", chosen)
    assert len(offered) == len(by_key) > 1
    for candidate in offered:
        before = by_key[candidate.trial_key]
        assert candidate.threshold == before.threshold
        if before.threshold is not None:
            assert all(t >= before.threshold for t in candidate.thresholds)
            assert all(a >= b for a, b in zip(candidate.free, before.free, strict=True))
    assert sum(chosen.free) == max(sum(c.free) for c in offered if c.accuracy is not None)
    for result in found.results:
        stored = read_commit(open_store(tmp_path / "layers"), str(result.commit))
        assert stored is not None
        assert stored[1]["validation_accuracy"] == pytest.approx(result.selection.accuracy)
        assert tuple(c.free for c in result.capacity) == result.selection.free


def test_the_selector_takes_prunings_by_layer() -> None:
    """The trial that is second with one threshold wins with one for each layer."""
    records = [
        trial("a", scan=[(0.0, 0.9, (0, 0)), (0.5, 0.9, (3, 3))]),
        trial("b", scan=[(0.0, 0.9, (0, 0)), (0.4, 0.9, (2, 3))]),
    ]
    assert select(records, 1).trial_key == "a"
    by_layer = {"b": LayerPruning((0.4, 0.9), 0.895, (4, 3))}
    chosen = select(records, 1, by_layer=by_layer)
    assert chosen.trial_key == "b"
    assert chosen.thresholds == (0.4, 0.9)
    assert chosen.by_layer == dict(zip(chosen.layers, (0.4, 0.9), strict=True))
    assert (chosen.threshold, chosen.accuracy, chosen.free) == (0.4, 0.895, (4, 3))
    assert Selection.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen


# --- margins of their own, and what is refused ---------------------------------------------------


def test_a_method_has_its_own_margin(tmp_path: Path) -> None:
    methods = [
        {"name": "clnp", "label": f"clnp-{m}", "margin": m, "grid": {"l1": 1e-3}} for m in (0, 20)
    ] + [{"name": "clnp", "label": "clnp-shared", "grid": {"l1": 1e-3}}]
    found = run(tmp_path, settings(methods, model=MODEL, selection={"margin": 5}))
    margins = {s.method: s.margin for s in selections(found)}
    assert margins == {"clnp-0": 0, "clnp-20": 20, "clnp-shared": 5}


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ({"name": "mas", "fine_tune": {}}, "methods[0].fine_tune"),
        ({"name": "clnp", "fine_tune": {"epochs": 0}}, "methods[0].fine_tune.epochs"),
        ({"name": "clnp", "fine_tune": {"lr": 0}}, "methods[0].fine_tune.lr"),
        ({"name": "clnp", "fine_tune": {"sparsity": 1.0}}, "methods[0].fine_tune.sparsity"),
        ({"name": "clnp", "margin": 101}, "methods[0].margin"),
    ],
)
def test_what_cannot_be_done_is_refused(method: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path, settings([method]))
    assert caught.value.field == field


def test_fine_tuning_that_raises_is_a_failed_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in any trial: the pruned model stays, and the other chains go on."""

    def raises(*_: Any) -> Any:
        raise RuntimeError("no way")

    data = tuned()
    data["methods"].append({"name": "clnp", "label": "plain", "grid": {"l1": [1e-4, 1e-3]}})
    monkeypatch.setattr(CLNP, "pruned", raises)
    found = run(tmp_path, data)
    tried = [s for s in selections(found) if s.method == "clnp"]
    plain = [s for s in selections(found) if s.method == "plain"]
    assert [s.task for s in tried] == [s.task for s in plain] == [1, 2]
    for chosen in tried:
        (done,) = chosen.rounds
        assert (done.recovered, done.kept) == (None, False)
        assert done.why.endswith("RuntimeError: no way")
        won = (c.trial_key for c in candidates(tmp_path, chosen) if c.chosen)
        assert chosen.trial_key == next(won)
    failed = [r for r in records_of(tmp_path) if r.fine_tuned]
    assert {r.status for r in failed} == {"FAILED"}
