"""Journal and checkpoints on an object store: a real S3 API server that fails and is slow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import clsearch, environment, refused, write_config
from helpers import SerialSearcher, SilentProgress, SilentTracker
from object_store import CREDENTIALS, ObjectStore, object_store
from test_store import record, state, trained

from clsearch import store as module
from clsearch.config import load_config
from clsearch.errors import StoreError
from clsearch.folder import open_store
from clsearch.sequence import Search
from clsearch.store import Store, read_commit, read_record, read_trained, write_commit, write_record
from clsearch.system import resolve

KEY = "k" * 32


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with pytest.MonkeyPatch.context() as patch, object_store() as started:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield started


@pytest.fixture
def remote(server: ObjectStore, request: pytest.FixtureRequest) -> Iterator[Store]:
    yield Store(server.address(f"a/{request.node.name}"))
    server.fail("ok")


def test_bundles_come_back_from_an_object_store(remote: Store) -> None:
    assert remote.count("trials") == 0
    remote.check()
    assert remote.read("trials", KEY) is None
    write_record(remote, record(), trained())
    write_commit(remote, "c", state(), {"accuracy": 0.1 + 0.2})
    assert read_record(remote, KEY) == record()
    assert read_trained(remote, KEY).params.keys() == trained().params.keys()
    assert (read_commit(remote, "c") or (0, 0))[1] == {"accuracy": 0.1 + 0.2}
    assert (remote.count("trials"), remote.count("commits")) == (1, 1)
    remote.remove("trials", KEY)
    assert remote.read("trials", KEY) is None


def test_every_second_answer_may_be_an_error(server: ObjectStore, remote: Store) -> None:
    server.fail("error", every=2)
    remote.write("trials", KEY, {"a": b"1"})
    assert remote.read("trials", KEY) == {"a": b"1"}


@pytest.mark.slow
def test_a_store_that_is_away_for_a_while_is_waited_for(server: ObjectStore, remote: Store) -> None:
    server.fail("error")
    back = threading.Timer(8.0, server.fail, ["ok"])
    back.start()
    remote.write("trials", KEY, {"a": b"1"})
    back.join()
    assert remote.read("trials", KEY) == {"a": b"1"}


@pytest.mark.slow
def test_a_store_that_stays_away_is_not_taken_for_damaged(
    server: ObjectStore, remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    write_record(remote, record(), trained())
    server.fail("error")
    for act in (lambda: read_record(remote, KEY), lambda: remote.remove("trials", KEY)):
        with pytest.raises(StoreError) as raised:
            act()
        assert type(raised.value) is StoreError
    server.fail("ok")
    assert read_record(remote, KEY) == record()


def test_a_bucket_that_is_not_there_is_refused(
    server: ObjectStore, call: Any, tmp_path: Path
) -> None:
    config, out = write_config(tmp_path / "c.yaml"), tmp_path / "out"
    ended = call("run", config, "--out", out, "--storage", server.address("x", bucket="none"))
    refused(ended, "--storage", "none")
    assert not out.exists()


@pytest.mark.parametrize("address", ["s3://me:hunter2-hunter2@b/x", "ftp://host/x", "there", "s3:"])
def test_other_addresses_are_refused(call: Any, tmp_path: Path, address: str) -> None:
    config, out = write_config(tmp_path / "c.yaml"), tmp_path / "out"
    ended = call("run", config, "--out", out, "--storage", address)
    refused(ended, "--storage")
    assert "hunter2" not in ended.err
    assert not out.exists()


@pytest.mark.slow
def test_a_search_over_a_store_with_faults_selects_the_same(
    server: ObjectStore, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path / "c.yaml", methods=[{"name": "finetune", "grid": {"lr": [0.001, 0.003]}}]
    )
    here, there = tmp_path / "here", tmp_path / "there"
    loaded = resolve(load_config(config))
    local = Search(loaded, here, open_store(here))
    local.run(SerialSearcher(), SilentTracker(), SilentProgress())
    given = {"env": environment(**CREDENTIALS)}
    server.fail("error", every=20)
    address = server.address("search")
    done = clsearch("run", config, "--out", there, "--storage", address, **given)
    server.fail("ok")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("selections.json", "accuracy_matrix.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    assert not (there / "checkpoints" / "trials").exists()
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in (there / "config.yaml").read_text()
    assert "4 finished trials" in clsearch("status", there, **given).stdout
