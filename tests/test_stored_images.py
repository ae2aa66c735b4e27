"""Sets larger than memory: decoded into a file once, read batch by batch, the same bit for bit."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from command import ROOT, clsearch, environment
from helpers import SOURCES, SerialSearcher, SilentProgress, SilentTracker, make_source
from layouts import INSECTS, LAYOUTS, OPTIONS, noise, save

from clsearch.config import parse_config
from clsearch.data._cache import new_file
from clsearch.data._images import conform
from clsearch.data._pixels import statistics
from clsearch.data._stored import ImageFile, Storage, StoredImages, chunks, joined, part_of
from clsearch.data.base import RawData, Samples
from clsearch.dry_run import forecast
from clsearch.errors import InputError, StoreError
from clsearch.folder import open_store
from clsearch.identity import identity
from clsearch.scenarios.base import InputTransform
from clsearch.scenarios.unlabelled import load_unlabelled
from clsearch.search.shipping import packed, unpacked
from clsearch.sequence import Search
from clsearch.system import build_scenario, resolve
from clsearch.training.batch import DeviceData


@pytest.fixture
def root(tmp_path: Path) -> Path:
    LAYOUTS["folder"](tmp_path / "data")
    return tmp_path / "data"


def stored(tmp_path: Path, images: torch.Tensor) -> StoredImages:
    path = tmp_path / "some.images"
    path.write_bytes(images.numpy().tobytes())
    count, channels, height, width = images.shape
    file = ImageFile(path, count, (channels, height, width))
    return StoredImages((file,), torch.arange(count))


def load(name: str, root: Path, cache: Path, limit: int = 0, **options: Any) -> RawData:
    given = SOURCES[name].Options(**{**OPTIONS.get(name, {}), **options})
    source = SOURCES[name](given, storage=Storage(limit, str(cache)))
    return source.load(root, download=False)


def whole(images: Any) -> torch.Tensor:
    return torch.cat(list(chunks(images)))


# --- images in a file -----------------------------------------------------------------------


def test_stored_images_are_those_of_the_tensor(tmp_path: Path) -> None:
    images = torch.from_numpy(noise(50, 3, 4, 6))
    there = stored(tmp_path, images)
    index = torch.tensor([49, 0, 7, 7])
    mask = torch.arange(50) % 3 == 0
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    transform = InputTransform(255.0, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), order)
    assert there.shape == images.shape
    assert torch.equal(there.index_select(0, index), images[index])
    assert torch.equal(there[5:9], images[5:9])
    for chosen in (index, mask):
        assert torch.equal(whole(part_of(there, chosen)), images[chosen])
    shown, again = transform.permute(images), transform.permute(there)
    assert torch.equal(whole(again), shown)
    assert torch.equal(whole(transform.permute(again)), transform.permute(shown))
    mixed = joined([part_of(there, mask), images[:4], again])
    assert isinstance(mixed, StoredImages)
    assert torch.equal(whole(mixed), torch.cat([images[mask], images[:4], shown]))
    assert torch.equal(mixed.index_select(0, torch.tensor([70, 18, 2])), whole(mixed)[[70, 18, 2]])
    labels = torch.arange(50) % 5
    assert Samples(there, labels).digest() == Samples(images, labels).digest()
    assert statistics(there, 255.0) == statistics(images, 255.0)
    one, other = (DeviceData(i, labels, None, transform) for i in (there, images))
    assert torch.equal(one.batch(index).x, other.batch(index).x)
    assert all(torch.equal(a.x, b.x) for a, b in zip(one.batches(7), other.batches(7), strict=True))
    assert torch.equal(one.part(index).batch(torch.tensor([1])).x, other.batch(index[1:2]).x)


def test_a_file_that_is_lost_or_cut_says_where_it_has_to_be(tmp_path: Path) -> None:
    there = stored(tmp_path, torch.from_numpy(noise(4, 1, 2, 2)))
    path = tmp_path / "some.images"

    def checked() -> StoredImages:
        return there.placed(ImageFile.checked)

    assert checked() == there
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"it has 15 bytes.*Run again"):
        checked()
    assert len(there[0:3]) == 3
    with pytest.raises(StoreError, match="ends before image 3"):
        there[0:4]
    path.unlink()
    for read in (checked, lambda: there[0:1]):
        with pytest.raises(StoreError, match=r"some\.images.*No such file"):
            read()


# --- decoding -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["folder", "parquet", "tiny_imagenet", "actions"])
def test_a_source_beyond_the_limit_is_in_a_file_and_the_same(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    found = load(name, tmp_path, tmp_path / "cache")
    expected = make_source(name).load(tmp_path, download=False)
    assert found.test is not None
    assert expected.test is not None
    for one, other in ((found.train, expected.train), (found.test, expected.test)):
        assert isinstance(one.inputs, StoredImages)
        assert isinstance(other.inputs, torch.Tensor)
        assert torch.equal(whole(one.inputs), other.inputs)
        assert one.digest() == other.digest()
    empty = Samples(torch.empty(0), torch.empty(0))
    same = {"train": empty, "test": empty}
    assert replace(found, **same) == replace(expected, **same)


def test_what_comes_first_is_kept_in_memory(root: Path, tmp_path: Path) -> None:
    raw = load("folder", root, tmp_path / "cache", limit=160 * 3 * 12 * 12 + 100)
    assert raw.test is not None
    assert isinstance(raw.train.inputs, torch.Tensor)
    assert isinstance(raw.test.inputs, StoredImages)


def test_images_of_another_size_are_made_in_a_file_too(root: Path, tmp_path: Path) -> None:
    small, cache = make_source("folder").load(root, download=False), str(tmp_path / "cache")
    expected = conform(small, 10, "grey")
    for raw in (small, load("folder", root, tmp_path / "cache")):
        found = conform(raw, 10, "grey", Storage(0, cache))
        assert isinstance(found.train.inputs, StoredImages)
        assert found.train.digest() == expected.train.digest()
        assert (found.mean, found.std) == (expected.mean, expected.std)


def test_damage_is_told_alike_and_leaves_no_file(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for i in (0, 4):
        (root / "photos" / "train" / "fly" / f"{i:03d}.bmp").write_bytes(b"BM half an image")
    for limit in (2**30, 0):
        with pytest.raises(InputError) as caught:
            load("folder", root, cache, limit)
        assert "2 of 160 images cannot be decoded: fly/000.bmp (" in str(caught.value)
        assert not list(cache.glob("*"))
    for _ in range(2):  # decoded, and found
        found = load("folder", root, cache, corrupt="skip")
        expected = load("folder", root, cache, 2**30, corrupt="skip")
        assert found.train.digest() == expected.train.digest()
        assert found.notes == expected.notes
        assert len(found.notes) == 1
    with pytest.raises(InputError, match="2 of 160 images"):
        load("folder", root, cache)
    shutil.rmtree(cache)
    save(root / "photos" / "train" / "wasp" / "019.png", noise(20, 10, 3))
    for limit in (2**30, 0):
        with pytest.raises(InputError) as caught:
            load("folder", root, cache, limit, corrupt="skip")
        assert "ant/000.bmp has 12x12, wasp/019.png has 20x10" in str(caught.value)
    assert not list(cache.glob("*"))


def test_a_file_is_found_again_and_made_anew_when_it_is_not_whole(
    root: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    expected = load("folder", root, cache).train.digest()
    path = load("folder", root, cache).train.inputs.pieces[0].path  # type: ignore[union-attr]
    made = {file.name: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert len(made) == 4
    assert load("folder", root, cache).train.digest() == expected
    assert {file.name: file.stat().st_mtime_ns for file in cache.iterdir()} == made
    content = path.read_bytes()
    for damaged in (content[:-1], bytes([content[0] ^ 1]) + content[1:]):
        path.write_bytes(damaged)
        assert load("folder", root, cache).train.digest() == expected
        assert path.read_bytes() == content
    path.with_suffix(".json").write_text("{")
    (cache / "killed.part").write_bytes(b"of a run that was killed")
    assert load("folder", root, cache).train.digest() == expected
    assert {file.name for file in cache.iterdir()} == set(made)
    save(root / "photos" / "train" / "ant" / "001.png", noise(12, 12, 3, seed=77))
    assert load("folder", root, cache).train.digest() != expected
    assert load("folder", root, cache, size=6).train.inputs.shape == (160, 3, 6, 6)


def test_a_file_that_another_run_sweeps_before_it_is_locked_is_made_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_lock, swept = fcntl.flock, []

    def lock(stream: Any, how: int) -> None:
        if how == fcntl.LOCK_EX and not swept:
            swept.append(stream.name)
            with new_file(ImageFile(tmp_path / "cache" / "other.images", 1, (1, 1, 1))):
                assert not Path(stream.name).exists()
        whole_lock(stream, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    expected = make_source("folder").load(root, download=False).train.digest()
    assert load("folder", root, tmp_path / "cache").train.digest() == expected
    assert swept
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_folder_that_cannot_be_used_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError) as caught:
        load("folder", root, tmp_path / "file" / "cache")
    message = str(caught.value)
    assert message.startswith("scenario.cache: ")
    assert "`memory`" in message
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=69_000))
    with pytest.raises(InputError, match="GiB are free"):
        load("folder", root, tmp_path / "cache")


def test_images_without_labels_count_as_those_of_the_tasks_do(root: Path, tmp_path: Path) -> None:
    """The limit takes the tasks' own 192 images, or 160 others, but not both."""
    LAYOUTS["tiny_imagenet"](root)
    scenario = {
        **{"name": "split", "source": {**SOURCE, "size": 64}, "root": str(root)},
        **{"memory": 200 * 3 * 64 * 64 / 2**30, "cache": str(tmp_path / "cache")},
    }
    built = build_scenario(parse_config({**CONFIG, "scenario": scenario}))
    task = built.tasks[0]
    assert isinstance(built.data(1).train.inputs, torch.Tensor)
    assert isinstance(load_unlabelled("tiny_imagenet", task, built, "source"), StoredImages)


def test_where_images_are_kept_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLSEARCH_CACHE", "/somewhere")
    assert Storage().folder == Path("/somewhere")
    monkeypatch.delenv("CLSEARCH_CACHE")
    assert Storage().folder == Path.home() / ".cache" / "clsearch"
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert Storage().left == total // 4


# --- searches -------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "name": "streamed",
    "model": {"name": "mlp", "hidden": [8]},
    "training": {"epochs": 1, "batch_size": 32},
    "methods": [
        {"name": "clnp", "grid": {"lr": [0.003]}},
        {"name": "mas", "options": {"source": "both"}},
        {"name": "lwf"},
        {"name": "joint"},
    ],
}
SOURCE = {"name": "folder", "path": "photos"}
SCENARIOS: dict[str, dict[str, Any]] = {
    "split": {"name": "split", "source": SOURCE, "classes_per_task": 4},
    "permuted": {"name": "permuted", "source": SOURCE, "tasks": 2},
    "sequence": {
        "name": "sequence",
        "size": 9,
        "tasks": [
            {"source": SOURCE, "classes": [0, 1]},
            {"source": {"name": "parquet", "path": "tables/train-*.parquet"}, "classes": [5, 3]},
        ],
    },
}


def search(
    scenario: dict[str, Any], out: Path, content: dict[str, Any] = CONFIG
) -> dict[str, bytes]:
    """Every stored checkpoint of a search, and what was selected."""
    out.mkdir()
    config = resolve(parse_config({**content, "scenario": scenario}))
    found = Search(config, out, open_store(out))
    found.run(SerialSearcher(), SilentTracker(), SilentProgress())
    kinds = {type(found.scenario.data(t.number).train.inputs) for t in found.tasks}
    assert kinds == {StoredImages if scenario.get("memory") == 0 else torch.Tensor}
    names = ("*.safetensors", "selections.json", "accuracy_matrix.json")
    files = [file for name in names for file in out.rglob(name)]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_search_is_the_same_bit_for_bit(name: str, root: Path, tmp_path: Path) -> None:
    LAYOUTS["parquet"](root)
    scenario = {**SCENARIOS[name], "root": str(root), "cache": str(tmp_path / "cache")}
    if name == "permuted":  # `lwf` has an output layer for each task
        scenario["incremental"] = "task_incremental"
    kept = search(scenario, tmp_path / "kept")
    streamed = search({**scenario, "memory": 0}, tmp_path / "streamed")
    assert len(kept) > 10
    assert kept.keys() == streamed.keys()
    assert all(kept[name] == streamed[name] for name in kept)


def test_the_options_leave_a_run_what_it_is(root: Path) -> None:
    scenario = {**SCENARIOS["split"], "root": str(root)}
    plain = parse_config({**CONFIG, "scenario": scenario})
    other = parse_config({**CONFIG, "scenario": {**scenario, "memory": 0.5, "cache": "here"}})
    assert identity(resolve(other)) == identity(resolve(plain))
    assert resolve(other).scenario.options["cache"] == str(Path("here").absolute())


def test_a_plan_counts_images_in_memory_alone(root: Path, tmp_path: Path) -> None:
    plans, content = [], {**CONFIG, "methods": [{"name": "finetune"}]}
    for memory in (None, 0):
        scenario = {**SCENARIOS["split"], "root": str(root), "cache": str(tmp_path / "cache")}
        config = resolve(parse_config({**content, "scenario": {**scenario, "memory": memory}}))
        plans.append(forecast(Search(config, tmp_path, open_store(tmp_path)), 1)[0])
    assert plans[0].trials == plans[1].trials
    assert plans[0].memory - plans[1].memory == 72 * 3 * 12 * 12  # 4 classes, 18 of 20 images each


def test_workers_are_sent_the_place_of_a_file_and_look_whether_it_is_there(
    root: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    scenario = {**SCENARIOS["split"], "root": str(root), "cache": str(cache), "memory": 0}
    part = build_scenario(parse_config({**CONFIG, "scenario": scenario})).data(1)
    sent = packed(part)
    assert all(isinstance(images, StoredImages) for images in sent["images"])
    found = unpacked(sent)
    assert found.train.digest() == part.train.digest()
    assert found.validation.digest() == part.validation.digest()
    shutil.rmtree(cache)
    with pytest.raises(StoreError, match="nothing may be deleted"):
        unpacked(sent)


@pytest.mark.slow
def test_workers_stream_and_find_the_same(root: Path, tmp_path: Path) -> None:
    """Through the command line and Ray; without the limit, in this process."""
    scenario = {**SCENARIOS["split"], "root": str(root), "tasks": 1}
    content = {**CONFIG, "methods": CONFIG["methods"][:1], "resources": {"workers": 1}}
    config, out = tmp_path / "c.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump({**content, "scenario": {**scenario, "memory": 0}}))
    cache = tmp_path / "cache"
    done = clsearch("run", config, "--out", out, env=environment(CLSEARCH_CACHE=str(cache)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(cache.glob("*.images"))) == 2
    kept = search(scenario, tmp_path / "kept", content)
    assert json.loads((out / "selections.json").read_text()) == json.loads(
        kept["selections.json"].decode()
    )


GROWTH = """
import json, sys
import torch
from clsearch.config import parse_config
from clsearch.system import build_scenario
from clsearch.training.batch import PackData

def peak():
    status = open("/proc/self/status").read()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

def read(path):
    given = json.loads(sys.argv[1])
    given["scenario"]["source"]["path"] = path
    scenario = build_scenario(parse_config(given))
    for task in scenario.tasks:
        data = PackData.of([scenario.data(task.number)], torch.device("cpu"))
        for batch in data.train.batches(4):
            batch.x.sum()
        for index in torch.randperm(len(data.train)).split(4):
            data.train.batch(index).x.sum()
        scenario.test(task.number).digest()
    return [scenario.data(task.number).digest for task in scenario.tasks]

if __name__ == "__main__":
    read("few")  # what the first use of everything takes is not the data's
    begun = peak()
    digests = read("photos")
    print(json.dumps([peak() - begun, digests]))
"""


@pytest.mark.slow
def test_memory_stays_under_the_limit(tmp_path: Path) -> None:
    """48 MB of images with a limit of 8 MB, in a process of its own that has them decoded by
    others; and, to see that it would show, without the limit."""
    for i in range(320):
        for folder in ("photos", "few")[: 1 + (i < 32)]:
            save(tmp_path / folder / INSECTS[i % 4] / f"{i}.png", noise(8, 8, 3, seed=i))
    script = tmp_path / "growth.py"
    script.write_text(GROWTH)
    grown, digests = [], []
    for memory in (8 / 1024, 1.0):
        source = {"name": "folder", "path": "photos", "size": 224}
        scenario = {"name": "split", "source": source, "root": str(tmp_path), "memory": memory}
        config = json.dumps({**CONFIG, "scenario": {**scenario, "cache": str(tmp_path / "cache")}})
        done = subprocess.run(
            [sys.executable, script, config],
            capture_output=True, text=True, check=False, env=environment(PYTHONPATH=str(ROOT)),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        most, seen = json.loads(done.stdout)
        grown.append(most)
        digests.append(seen)
    assert grown[0] < 40e6 < 48e6 < grown[1], grown
    assert digests[0] == digests[1]
