"""What a trial's key holds, and how trials are put into packs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from helpers import tiny_config, tiny_tasks
from hypothesis import given, settings
from hypothesis import strategies as st

from clsearch import records
from clsearch.config import Config
from clsearch.methods.ewc import EWC
from clsearch.models.mlp import MLP
from clsearch.records import Selection
from clsearch.search import plan
from clsearch.search.plan import (
    commit_key,
    hyperparameters_of,
    measurement_key,
    packs,
    share,
    trial_key,
)
from clsearch.system import build_system

TASKS = tiny_tasks(3, False)
HYPER = {"lr": 0.1, "strength": 2.0}


def key(config: Config | None = None, **changes: Any) -> str:
    config = config or tiny_config("ewc")
    given: dict[str, Any] = {
        "system": build_system(config, 0, (1, 2, 3)),
        "parts": TASKS[1:2],
        "parent": "p",
        "seed": 0,
        "shared_head": True,
        "hyperparameters": HYPER,
        **changes,
    }
    return trial_key(config, **given)


def ewc(**entry: Any) -> dict[str, Any]:
    return {"name": "ewc", **entry}


def test_a_key_is_the_same_every_time() -> None:
    assert key() == key()
    assert len(key()) == 32
    assert key(hyperparameters=dict(reversed(HYPER.items()))) == key()


def test_what_cannot_change_the_result_is_not_in_the_key() -> None:
    same = [
        tiny_config(ewc(), selection={"margin": 7}),
        tiny_config(ewc(), resources={"workers": 3, "pack": 2, "device": "cpu"}),
        tiny_config(ewc(), tracking={"uri": "http://x"}),
        tiny_config(ewc(), seeds=[0, 1, 2]),
        tiny_config(ewc(), search={"grid": {"lr": [0.1, 0.2]}}),
        tiny_config(ewc(), search={"protocol": "first_task"}),
        tiny_config(ewc(grid={"strength": [1, 2, 3]})),
        tiny_config(ewc(), methods=[ewc(), {"name": "mas"}]),
        tiny_config(ewc(label="ewc")),
        tiny_config(ewc(options={"accumulate": "sum"})),  # the default, spelt out
        tiny_config(ewc(), scenario={"name": "permuted", "tasks": 9}),
        tiny_config(ewc(), scenario={"name": "permuted", "root": "/elsewhere"}),
    ]
    assert {key(config) for config in same} == {key()}


def test_everything_that_matters_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    part = TASKS[1]
    found = {
        "as it is": key(),
        "name": key(tiny_config(ewc(), name="other")),
        "label": key(tiny_config(ewc(label="b"))),
        "method": key(tiny_config("mas")),
        "option": key(tiny_config(ewc(options={"accumulate": "mean"}))),
        "regulariser": key(tiny_config(ewc(regularizers=[{"name": "l1_param"}]))),
        "its option": key(
            tiny_config(ewc(regularizers=[{"name": "l1_param", "mode": "proximal"}]))
        ),
        "model": key(tiny_config(ewc(), model={"name": "mlp", "hidden": [5, 5]})),
        "epochs": key(tiny_config(ewc(), training={"epochs": 3, "batch_size": 8})),
        "batch": key(tiny_config(ewc(), training={"epochs": 2, "batch_size": 9})),
        "optimiser": key(
            tiny_config(ewc(), training={"epochs": 2, "batch_size": 8, "optimizer": "sgd"})
        ),
        "patience": key(tiny_config(ewc(), training={"epochs": 2, "batch_size": 8, "patience": 1})),
        **{
            f"augment {n}": key(tiny_config(ewc(), training={"epochs": 2, "augment": {"crop": n}}))
            for n in (1, 2)
        },
        "thresholds": key(tiny_config(ewc(), selection={"thresholds": 9})),
        "task": key(parts=TASKS[2:3]),
        "tasks": key(parts=TASKS[:2]),
        "their order": key(parts=TASKS[1::-1]),
        "data": key(parts=[replace(part, digest="d")]),
        "head": key(parts=[replace(part, task=replace(part.task, head=9))]),
        "number": key(parts=[replace(part, task=replace(part.task, number=9))]),
        "no parent": key(parent=None),
        "parent": key(parent="q"),
        "seed": key(seed=1),
        "head rule": key(shared_head=False),
        "value": key(hyperparameters={**HYPER, "lr": math.nextafter(0.1, 1)}),
        "one less": key(hyperparameters={"lr": 0.1}),
    }
    with monkeypatch.context() as patch:
        patch.setattr(EWC, "version", EWC.version + 1)
        found["version"] = key()
        patch.setattr(MLP, "version", MLP.version + 1)
        found["its backbone's too"] = key()
    monkeypatch.setattr(plan, "SCHEMA", records.SCHEMA + 1)
    found["schema"] = key()
    twice = [name for name, value in found.items() if list(found.values()).count(value) > 1]
    assert not twice


def test_options_left_out_are_not_in_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that keys are those of versions that did not have them."""
    hashed: list[Any] = []
    monkeypatch.setattr(plan, "digest", lambda content: hashed.append(content) or "key")
    config = tiny_config({"name": "clnp", "grid": {"l1": [0.1]}})
    system = build_system(config, 0, (1, 2, 3))
    (hyper,) = hyperparameters_of(config, system, 1, None)
    key(config, system=system, hyperparameters=hyper)
    assert set(hashed[0]["hyperparameters"]) == {"lr", "l1"}


def test_commit_key() -> None:
    keys = [
        commit_key("a", None),
        commit_key("b", None),
        commit_key("a", 0.0),
        commit_key("a", 0.1),
        commit_key("a", math.nextafter(0.1, 1)),
    ]
    assert len(set(keys)) == len(keys)
    assert commit_key("a", 0.1) == keys[3]


def test_measurement_key() -> None:
    keys = [
        measurement_key("a", {1: "x"}),
        measurement_key("b", {1: "x"}),
        measurement_key("a", {1: "y"}),
        measurement_key("a", {2: "x"}),
        measurement_key("a", {1: "x", 2: "y"}),
        measurement_key("a", {1: "y", 2: "x"}),
    ]
    assert len(set(keys)) == len(keys)


@given(st.integers(0, 200), st.integers(1, 40), st.floats(0.01, 64), st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_packs_hold_every_trial_once(trials: int, size: int, share: float, last: bool) -> None:
    found = packs(trials, size, share, last)
    assert [i for pack in found for i in pack] == list(range(trials))
    assert all(1 <= len(pack) <= size for pack in found)
    # Workers are not left idle by packs larger than their share.
    if trials >= share >= 1:
        assert all(len(pack) <= math.ceil(trials / share) for pack in found)


def test_packs_by_hand() -> None:
    assert packs(0, 8, 2) == []
    assert packs(10, 4, 1) == [range(0, 4), range(4, 8), range(8, 10)]
    assert packs(10, 16, 2) == [range(0, 5), range(5, 10)]
    assert packs(3, 16, 8) == [range(0, 1), range(1, 2), range(2, 3)]
    assert packs(10, 16, 0.25) == [range(0, 10)]
    # Of the last task, the second half in packs half as large, where a chain has several workers.
    assert packs(10, 16, 2, last=True) == [range(0, 5), range(5, 8), range(8, 10)]
    assert packs(5, 1, 2, last=True) == packs(5, 1, 2)
    assert packs(10, 4, 1, last=True) == packs(10, 4, 1)


def test_shares_by_hand() -> None:
    assert share(2, 4) == 0.5
    assert share(4, 4) == 1
    assert share(1000, 20) == 100  # twice 50: a chain waits for its last trials while others train
    assert share(3, 2) == 3
    assert share(2, 1) == 2  # no more than there are


def test_first_task_protocol_keeps_what_was_selected() -> None:
    grid = {"lr": [0.1, 0.2, 0.3]}
    first = Selection("ewc", 0, 1, "selected", "", 1.0, hyperparameters={"lr": 0.2, "strength": 5})
    for protocol, later in (("current_task", 3), ("first_task", 1)):
        config = tiny_config(ewc(grid=grid), search={"protocol": protocol})
        system = build_system(config, 0, (1, 2, 3))
        assert len(hyperparameters_of(config, system, 1, None)) == 3
        at_two = hyperparameters_of(config, system, 2, first)
        assert len(at_two) == later
        if protocol == "first_task":
            assert at_two == [{"lr": 0.2, "strength": 5}]
