"""Damaged files: what is cut short or has a flipped bit is found, named and made again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fault_matrix import Damage, Ground, fault, finished
from helpers import SerialSearcher, SilentProgress, SilentTracker
from layouts import LAYOUTS

from clsearch.config import parse_config
from clsearch.errors import DamagedError, InputError
from clsearch.folder import open_store, read_parquet, write_config
from clsearch.sequence import Search
from clsearch.system import resolve


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGES: Sequence[Callable[[Path], None]] = (cut, flipped)


def chosen(ground: Ground) -> list[dict[str, Any]]:
    """The selections of the run, one a task."""
    found: list[dict[str, Any]] = json.loads((ground.out / "selections.json").read_bytes())
    return found


def damaged_trials(ground: Ground, name: str) -> Damage:
    """A file of both selected trials is damaged, each in one way."""
    ground.copy()
    before, keys = ground.finished(), [s["trial_key"] for s in chosen(ground)]
    for damage, key in zip(DAMAGES, keys, strict=True):
        damage(ground.out / "checkpoints" / "trials" / key / name)
    said = ground.resume()
    named = [line for line in said.splitlines() if "is trained again" in line]
    assert len(named) == len(keys)
    assert all(any(key in line for line in named) for key in keys)
    assert f"2 trials trained, {ground.trials - 2} taken from the journal" in said
    return ground.damage(2, before, broken=keys)


@fault("a checkpoint cut short, and one with a flipped bit")
def damaged_checkpoints(ground: Ground) -> Damage:
    return damaged_trials(ground, "model.safetensors")


@fault("a record cut short, and one with a flipped bit", long=True)
def damaged_records(ground: Ground) -> Damage:
    return damaged_trials(ground, "record.json")


@fault("a manifest of the journal cut short, and one with a flipped bit", long=True)
def damaged_manifests(ground: Ground) -> Damage:
    return damaged_trials(ground, "manifest.json")


@fault("a parent of the next task cut short, and one with a flipped bit", long=True)
def damaged_commits(ground: Ground) -> Damage:
    ground.copy()
    before = ground.finished()
    for damage, selection in zip(DAMAGES, chosen(ground), strict=True):
        damage(ground.out / "checkpoints" / "commits" / selection["commit"] / "state.safetensors")
    first, to = chosen(ground)[0], ground.out.parent / "model.pt2"
    place = ("--method", first["method"], "--task", "1", "--to", to)
    refused = ground.call("export", ground.out, *place)
    assert refused.returncode == 1
    assert refused.stderr.count("SHA-256") == 1
    assert refused.stderr.endswith(f" resume {ground.out}\n")
    assert not to.exists()
    assert "Traceback" not in refused.stderr
    assert "Nothing was trained" in ground.resume()
    return ground.damage(2, before)


@fault("the tables of a run (Parquet) cut short, and with a flipped bit", long=True)
def damaged_tables(ground: Ground) -> Damage:
    """A bit is flipped in 16 places of each: it is found, unless nobody reads that byte."""
    ground.copy()
    before, names, struck, found = ground.finished(), ("trials", "scan", "capacity"), 0, 0
    for name in names:
        path = ground.out / f"{name}.parquet"
        whole, sound = path.read_bytes(), read_parquet(ground.out, name)
        cut(path)
        with pytest.raises(DamagedError) as raised:
            read_parquet(ground.out, name)
        assert str(path) in str(raised.value)
        assert f"`clsearch resume {ground.out}` writes it again" in str(raised.value)
        for place in range(4, len(whole), len(whole) // 16):
            raw = bytearray(whole)
            raw[place] ^= 1
            path.write_bytes(raw)
            struck += 1
            try:
                assert read_parquet(ground.out, name).equals(sound)
            except DamagedError:
                found += 1
    assert found > struck // 2
    assert "Nothing was trained" in ground.resume()
    for name in names:
        ours, theirs = (read_parquet(folder, name) for folder in (ground.out, ground.undisturbed))
        assert ours.equals(theirs)
    return ground.damage(struck + len(names), before)


IMAGES = {
    "name": "images",
    "scenario": {
        "name": "split",
        "source": {"name": "parquet", "path": "tables/train-*.parquet"},
        "classes_per_task": 4,
        "memory": 0,
    },
    "model": {"name": "mlp", "hidden": [8]},
    "training": {"epochs": 1, "batch_size": 32},
    "methods": [{"name": "clnp", "grid": {"lr": [0.001, 0.003]}}],
}


@fault("a data set's Parquet file and its decoded images cut short, and with a flipped bit")
def damaged_images(ground: Ground) -> Damage:
    """In this process, without Ray: what workers are given was read and checked before."""
    root, cache = ground.folder / "data", ground.folder / "cache"
    root.mkdir()
    LAYOUTS["parquet"](root)
    places = {"root": str(root), "cache": str(cache)}
    scenario: dict[str, Any] = {**IMAGES["scenario"], **places}  # type: ignore[dict-item]
    config = resolve(parse_config({**IMAGES, "scenario": scenario}))

    def searched(out: Path, stop_after: int | None = None) -> SerialSearcher:
        searcher = SerialSearcher(stop_after=stop_after)
        search = Search(config, out, open_store(out))
        write_config(out, config)
        with contextlib.suppress(KeyboardInterrupt):
            search.run(searcher, SilentTracker(), SilentProgress())
        return searcher

    sound, out, trained = ground.folder / "sound", ground.out, list[str]()
    planned = set(searched(sound).keys)
    trained += searched(out, stop_after=1).keys
    before = ground.finished()
    source = next((root / "tables").glob("train-*.parquet"))
    content = source.read_bytes()
    decoded = max(cache.glob("*.images"), key=lambda file: file.stat().st_size)
    for damage in DAMAGES:
        damage(source)
        with pytest.raises(InputError, match=source.name):
            searched(out)
        source.write_bytes(content)
        damage(decoded)
        trained += searched(out, stop_after=1).keys
    trained += searched(out).keys
    assert set(trained) == planned
    ours, theirs = finished(open_store(out)), finished(open_store(sound))
    lost = [key for key in before if ours.get(key) != before[key]]
    equal = {k: f.result for k, f in ours.items()} == {k: f.result for k, f in theirs.items()} and (
        (out / "selections.json").read_bytes() == (sound / "selections.json").read_bytes()
    )
    return Damage(4, len(before), len(lost), len(trained) - len(planned), equal)
