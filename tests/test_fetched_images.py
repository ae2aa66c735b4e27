"""A host that does not see the decoded images fetches them once, for all of its workers."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from command import clsearch, environment, journal, write_config
from layouts import LAYOUTS, noise
from servers import free_port

from clsearch.data._fetched import on_this_host
from clsearch.data._stored import ImageFile
from clsearch.errors import StoreError

IMAGES = noise(40, 1, 8, 8)


@pytest.fixture
def image(tmp_path: Path) -> ImageFile:
    """A file of images as the driver's host has it."""
    there = ImageFile(tmp_path / "driver" / "some.images", 40, (1, 8, 8))
    there.path.parent.mkdir()
    there.path.write_bytes(IMAGES.tobytes())
    digest = hashlib.sha256(IMAGES.tobytes()).hexdigest()
    there.manifest.write_text(json.dumps({"sha256": digest, "damaged": []}))
    return there


@dataclass
class Line:
    """What brings files from the driver's host to one where its folder is not seen, and counts;
    `hold` is a file that it waits for in the middle."""

    folder: Path
    hold: Path | None = None

    def __call__(self, path: Path) -> Iterator[bytes]:
        with (self.folder / "asked").open("a") as asked:
            asked.write(f"{path.name}\n")
        content = (self.folder / path.name).read_bytes()
        yield content[:100]
        while path.suffix == ".images" and self.hold is not None and not self.hold.exists():
            time.sleep(0.02)
        yield content[100:]

    @property
    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().split()


@pytest.fixture
def far(image: ImageFile) -> tuple[ImageFile, Line]:
    """The same file for a host that does not see where it lies."""
    unseen = ImageFile(Path("/nowhere/some.images"), image.count, image.shape)
    return unseen, Line(image.path.parent)


def test_what_is_seen_is_read_where_it_is(image: ImageFile, tmp_path: Path) -> None:
    line = Line(image.path.parent)
    assert on_this_host(image, tmp_path / "cache", line) is image
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "driver" / "asked").exists()


def test_a_file_is_fetched_once_and_again_when_it_was_changed(
    far: tuple[ImageFile, Line], tmp_path: Path
) -> None:
    image, line = far
    cache = tmp_path / "deep" / "cache"
    for _ in range(2):
        own = on_this_host(image, cache, line)
        assert own.path == cache / "some.images"
        assert torch.equal(own.read(torch.arange(40)), torch.from_numpy(IMAGES))
    assert line.asked == ["some.json", "some.images"]
    content = own.path.read_bytes()
    for changed in (content[:-1], bytes([content[0] ^ 1]) + content[1:]):
        own.path.write_bytes(changed)
        assert on_this_host(image, cache, line).path.read_bytes() == content
    own.manifest.unlink()  # killed between the file and its manifest
    assert on_this_host(image, cache, line).path.read_bytes() == content
    assert len(line.asked) == 2 * 4
    assert sorted(p.name for p in cache.iterdir()) == ["some.images", "some.json"]


def _take(image: ImageFile, cache: Path, line: Line) -> None:
    on_this_host(image, cache, line)


def test_a_fetcher_that_is_killed_leaves_nothing_and_blocks_nobody(
    far: tuple[ImageFile, Line], tmp_path: Path
) -> None:
    """Four workers of a host ask at once; the one that fetches is killed half-way."""
    image, line = far
    cache, context = tmp_path / "cache", multiprocessing.get_context("fork")
    line.hold = tmp_path / "go on"
    workers = [context.Process(target=_take, args=(image, cache, line)) for _ in range(4)]
    for worker in workers:
        worker.start()
    try:
        end = time.monotonic() + 60
        while not list(cache.glob("*.part")):
            assert time.monotonic() < end
            time.sleep(0.02)
        part = next(cache.glob("*.part")).name
        holders = [w for w in workers if any(part in f.path for f in _files(w.pid))]
        assert len(holders) == 1, "others fetch too"
        os.kill(holders[0].pid or 0, signal.SIGKILL)
        line.hold.touch()
        for worker in workers:
            worker.join(60)
        assert sorted(w.exitcode or 0 for w in workers) == [-signal.SIGKILL, 0, 0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    assert line.asked.count("some.images") == 2  # the one that was killed, and one for the rest
    assert (cache / "some.images").read_bytes() == IMAGES.tobytes()
    assert sorted(p.name for p in cache.iterdir()) == ["some.images", "some.json"]


def _files(pid: int | None) -> list[SimpleNamespace]:
    return list(psutil.Process(pid).open_files())


def test_what_is_damaged_on_the_way_is_refused_and_leaves_nothing(
    far: tuple[ImageFile, Line], tmp_path: Path
) -> None:
    image, line = far
    there, cache = tmp_path / "driver" / "some.images", tmp_path / "cache"
    content = there.read_bytes()
    for damaged in (content[:-1], bytes([content[0] ^ 1]) + content[1:], content + b"x"):
        there.write_bytes(damaged)
        with pytest.raises(StoreError, match="is not what was decoded"):
            on_this_host(image, cache, line)
        assert not list(cache.iterdir())
    for manifest in (b"", b"[]", b"{}", b"\xff"):
        (tmp_path / "driver" / "some.json").write_bytes(manifest)
        with pytest.raises(StoreError, match=r"some\.json .* is damaged"):
            on_this_host(image, cache, line)
        assert not list(cache.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(
    far: tuple[ImageFile, Line], tmp_path: Path
) -> None:
    image, line = far
    (tmp_path / "file").touch()
    with pytest.raises(StoreError) as caught:
        on_this_host(image, tmp_path / "file" / "cache", line)
    for word in (
        f"{tmp_path}/file/cache",
        os.uname().nodename,
        "Not a directory",
        "CLSEARCH_CACHE",
    ):
        assert word in str(caught.value)


# --- two real nodes of Ray, one of which does not see the driver's folders ------------------------

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
RAY = str(Path(sys.executable).with_name("ray"))
OWN_FOLDERS = """
mount --make-rprivate /
mount -t tmpfs -o size=1m own "$1"
mount -t tmpfs -o size=16k full "$2"
shift 2
exec "$@"
"""
"""Puts file systems of this process over two folders, the second too small for the images."""


@dataclass
class Nodes:
    """A cluster of two nodes; `cache` and `full` are other folders on the second."""

    address: str
    cache: Path
    full: Path
    second: int

    def own(self, folder: Path) -> Path:
        """The folder as the second node sees it."""
        return Path(f"/proc/{self.second}/root{folder}")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """A head without processors, where the driver is, and a node with two."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("folders of a process's own take root and `unshare`")
    cache, full, port = tmp_path / "cache", tmp_path / "full", free_port()
    cache.mkdir()
    full.mkdir()
    common = ["--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    head = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    place = f"/tmp/clsearch-test-{os.getpid()}"  # the path of a socket is short
    commands = [
        [RAY, "start", *head, f"--temp-dir={place}", *common],
        ["unshare", "--mount", "sh", "-ec", OWN_FOLDERS, "sh", str(cache), str(full),
         RAY, "start", f"--address=127.0.0.1:{port}", "--num-cpus=2", *common],
    ]  # fmt: skip
    keepers: list[subprocess.Popen[bytes]] = []
    with (tmp_path / "ray.log").open("wb") as log:
        try:
            for command in commands:
                keepers.append(
                    subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                        env=environment(RAY_ADDRESS="", CLSEARCH_CACHE=str(cache), **TOKEN),
                        start_new_session=True,
                    )
                )  # fmt: skip
                _until_said(tmp_path / "ray.log", "--block", len(keepers))
            yield Nodes(f"127.0.0.1:{port}", cache, full, keepers[1].pid)
        finally:
            for keeper in keepers:
                family = psutil.Process(keeper.pid).children(recursive=True)
                keeper.terminate()
                for process in psutil.wait_procs([*family, psutil.Process(keeper.pid)], 10)[1]:
                    process.kill()
                keeper.wait()
            shutil.rmtree(place, ignore_errors=True)


def _until_said(log: Path, word: str, times: int) -> None:
    end = time.monotonic() + 90
    while log.read_text(errors="replace").count(word) < times:
        assert time.monotonic() < end, log.read_text(errors="replace")
        time.sleep(0.2)


@pytest.mark.long
def test_a_node_that_does_not_see_the_folder_fetches_it_once(nodes: Nodes, tmp_path: Path) -> None:
    LAYOUTS["folder"](tmp_path / "data")
    scenario = {
        **{"name": "split", "source": {"name": "folder", "path": "photos"}, "classes_per_task": 4},
        **{"root": str(tmp_path / "data"), "tasks": 1, "memory": 0},
    }
    what = {
        **{"model": {"name": "mlp", "hidden": [8]}, "training": {"epochs": 1, "batch_size": 32}},
        "methods": [{"name": "finetune", "grid": {"lr": [0.001, 0.002, 0.003, 0.004]}}],
        "resources": {"pack": 1},
    }
    config = write_config(tmp_path / "c.yaml", scenario=scenario, **what)
    env = environment(CLSEARCH_CACHE=str(nodes.cache), **TOKEN)

    def run(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
        return clsearch("run", config, "--out", out, "--address", nodes.address, env=env)

    # Too little room there: no trial's fault, and nothing is left of it.
    crowded = {**scenario, "cache": str(nodes.full)}
    ended = run(write_config(tmp_path / "f.yaml", scenario=crowded, **what), tmp_path / "none")
    assert ended.returncode == 1
    for word in ("cannot be fetched into", "GiB are free", str(nodes.full), "Go on with: "):
        assert word in ended.stderr
    assert journal(tmp_path / "none") == {}
    assert list(nodes.own(nodes.full).iterdir()) == []

    assert list(nodes.own(nodes.cache).iterdir()) == []
    done = run(config, tmp_path / "far")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert len(journal(tmp_path / "far")) == 4
    # Of the driver's two files the test images stay there. This file system numbers files in the
    # order in which they are made: two, so the images were fetched once.
    found = {p.suffix: p for p in nodes.own(nodes.cache).iterdir()}
    assert found.keys() == {".images", ".json"}
    (nodes.own(nodes.cache) / "next").touch()
    numbers = [p.stat().st_ino for p in (*found.values(), nodes.own(nodes.cache) / "next")]
    assert sorted(numbers) == [2, 3, 4]
    assert numbers[2] == 4
    assert len(list(nodes.cache.glob("*.images"))) == 2
    near = {**scenario, "memory": None}
    config = write_config(tmp_path / "n.yaml", scenario=near, **what)
    local = clsearch("run", config, "--out", tmp_path / "near", "--workers", "1")
    assert local.returncode == 0, local.stderr
    names = [tmp_path / folder / "selections.json" for folder in ("far", "near")]
    assert names[0].read_bytes() == names[1].read_bytes()
