"""Journal and checkpoints elsewhere: on real servers of S3's API, which fail, and of Google's."""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import refused, write_config
from helpers import SerialSearcher, SilentProgress, SilentTracker
from object_store import CREDENTIALS, ObjectStore, google_account, google_store, object_store
from servers import free_port
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


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    account = tmp_path_factory.mktemp("google") / "account.json"
    google_account(account)
    with pytest.MonkeyPatch.context() as patch, google_store() as address:
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
        yield address


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_bundles_come_back_from_an_object_store(kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "s3":
        store = Store(request.getfixturevalue("server").address("bundles"))
    else:
        store = Store(request.getfixturevalue("google"))
    assert store.count("trials") == 0
    store.check()
    assert store.read("trials", KEY) is None
    write_record(store, record(), trained())
    write_commit(store, "c", state(), {"validation_accuracy": 0.1 + 0.2})
    assert read_record(store, KEY) == record()
    assert read_trained(store, KEY).params.keys() == trained().params.keys()
    assert (read_commit(store, "c") or (0, 0))[1] == {"validation_accuracy": 0.1 + 0.2}
    assert (store.count("trials"), store.count("commits")) == (1, 1)
    again = copy.copy(store)  # as another process makes it
    assert read_record(again, KEY) == record()
    store.remove("trials", KEY)
    assert store.read("trials", KEY) is None


def test_a_store_that_never_answers_is_given_up(
    server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amazon's client itself tries for 100 s, and Ctrl-C waits for it."""
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    monkeypatch.setattr(module, "SILENCE", 1)
    store = Store(server.address("hung"))
    server.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(StoreError, match="cannot read"):
            store.read("trials", KEY)
        assert time.monotonic() - began < 30
    finally:
        server.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_store_that_is_gone_is_given_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's client itself tries for a quarter of an hour."""
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    monkeypatch.setattr(module, "SILENCE", 1)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    account = "GOOGLE_APPLICATION_CREDENTIALS"
    monkeypatch.delenv(account, raising=False)
    host = f"scheme=http&endpoint_override=127.0.0.1%3A{free_port()}"
    began = time.monotonic()
    with pytest.raises(StoreError, match="cannot write"):
        Store(f"{kind}://runs/a?{host}").check()
    assert time.monotonic() - began < 60


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
    (tmp_path / "file").write_text("")
    for folder in ("a file/x", "file/x"):
        ended = call("run", config, "--out", out, "--storage", f"file://{tmp_path}/{folder}")
        refused(ended, "--storage", folder)
    assert "hunter2" not in ended.err
    assert not out.exists()


@pytest.mark.parametrize("kind", ["file", "gs"])
def test_a_search_selects_the_same_wherever_its_journal_is(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """S3 is the same with faults: tests/fault_services.py."""
    there = tmp_path / "journal" if kind == "file" else None
    address = there.as_uri() if there else request.getfixturevalue("google")
    written = {}
    for storage in (None, address):
        resources = {"workers": 2, **({"storage": storage} if storage else {})}
        given = {"resources": resources, "training": {"epochs": 1, "batch_size": 64}}
        config = resolve(load_config(write_config(tmp_path / "c.yaml", **given)))
        out = tmp_path / ("out" if storage else "default")
        out.mkdir()
        search = Search(config, out, open_store(out, config))
        search.run(SerialSearcher(), SilentTracker(), SilentProgress())
        names = ("selections.json", "accuracy_matrix.json")
        written[storage] = [(out / name).read_bytes() for name in names]
        assert (out / "checkpoints" / "trials").exists() == (storage is None)
        assert search.store.count("trials") == 8
    assert written[None] == written[address]
