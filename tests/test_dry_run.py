"""What `--dry-run` says is what a run then does; it trains and writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SerialSearcher, SilentProgress, SilentTracker
from rich.console import Console
from typer.testing import CliRunner

from clsearch import dry_run
from clsearch.cli import app
from clsearch.config import parse_config
from clsearch.dry_run import FLOAT, duration, forecast
from clsearch.folder import open_store
from clsearch.sequence import Search
from clsearch.system import resolve


def settings(**sections: Any) -> dict[str, Any]:
    return {
        "name": "dry",
        "scenario": {"name": "permuted", "source": "digits", "tasks": 3},
        "model": {"name": "mlp", "hidden": [12, 8]},
        "training": {"epochs": 2, "batch_size": 100},
        "methods": [
            {"name": "finetune", "grid": {"lr": [0.001, 0.002, 0.003]}},
            {"name": "joint", "grid": {"lr": [0.001]}},
        ],
        "seeds": [0, 1],
        **sections,
    }


def search_of(folder: Path, data: dict[str, Any]) -> Search:
    return Search(resolve(parse_config(data)), folder, open_store(folder))


@pytest.mark.parametrize("protocol", ["current_task", "first_task"])
def test_trials_and_packs_are_those_of_the_run(tmp_path: Path, protocol: str) -> None:
    search = search_of(tmp_path, settings(search={"protocol": protocol}, seeds=[3]))
    said = forecast(search, workers=1)
    searcher = SerialSearcher()
    found = search.run(searcher, SilentTracker(), SilentProgress())
    assert found.trained == (12 if protocol == "current_task" else 8)
    assert sum(f.trials for f in said) == found.trained
    assert sum(f.packs for f in said) == len(searcher.pack_sizes)
    assert {f.label: f.pack for f in said} == {"finetune": 3, "joint": 1}


def test_memory_and_time_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64-12-8: 884 weights; with Adam four numbers each and member. 1,295 training samples, 13
    steps an epoch; joint trains on one, two and three tasks' samples: 13, 26 and 39 steps."""
    monkeypatch.setattr(dry_run, "_step_seconds", lambda *_: 0.5)
    finetune, joint = forecast(search_of(tmp_path, settings()), workers=1)
    weights = 64 * 12 + 12 + 12 * 8 + 8
    assert finetune.weights == weights
    batch = 100 * (64 + 3 * 3 * 20)
    assert finetune.memory == FLOAT * (3 * weights * 4 + batch) + 1295 * 64
    assert joint.memory == FLOAT * (weights * 4 + 100 * (64 + 3 * 20)) + 3 * 1295 * 64
    assert finetune.seconds == 0.5 * 2 * 13 * 3 * 3 * 2  # step, epochs, steps, trials, tasks, seeds
    assert joint.seconds == 0.5 * 2 * (13 + 26 + 39) * 2


def test_memory_counts_every_place_of_a_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "_step_seconds", lambda *_: 0.5)
    model = {"name": "clnp_narrow", "channels": [2, 3, 4, 5], "dense": 6}
    scenario = {"name": "split", "source": "digits"}
    (found, _) = forecast(search_of(tmp_path, settings(model=model, scenario=scenario)), workers=1)
    numbers = 64 * (2 + 3) + 16 * (4 + 5) + 6  # 8x8 images, and 4x4 behind the first pool
    batch = 100 * (64 + 3 * numbers)
    samples = found.memory - FLOAT * (found.weights * 4 + batch)
    assert samples == 64 * (samples // 64) < 64 * 1797


def test_augmented_members_hold_images_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "_step_seconds", lambda *_: 0.5)
    split = settings(scenario={"name": "split", "source": "digits"})
    augmented = {**split, "training": {**split["training"], "augment": {"flip": True}}}
    before, after = (forecast(search_of(tmp_path, data), 1) for data in (split, augmented))
    assert [f.pack for f in after] == [3, 1]
    grown = [b.memory - a.memory for a, b in zip(before, after, strict=True)]
    assert grown == [FLOAT * 100 * 64 * 2, 0]


def test_time_is_measured(tmp_path: Path) -> None:
    """More than no time, and less than the whole test may take; one thread, and then as before."""
    threads = torch.get_num_threads()
    with (tmp_path / "text").open("w") as file:
        console = Console(file=file, width=80)
        dry_run.print_forecast(search_of(tmp_path, settings()), 2, console)
    text = (tmp_path / "text").read_text()
    assert "24 trials at most" in " ".join(text.split())
    assert "permuted-3" in text
    assert max(map(len, text.splitlines()[:-4])) <= 80
    assert torch.get_num_threads() == threads
    assert all(0 < f.seconds < 300 for f in forecast(search_of(tmp_path, settings()), 2))


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (5399, "90 min")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_wrong_config_is_refused_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("name: x\nscenario: {name: permuted}\nmethods: [{name: ewcc}]\n")
    ended = CliRunner().invoke(app, ["run", "config.yaml", "--dry-run"])
    assert "ewcc" in str(ended.exception)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
