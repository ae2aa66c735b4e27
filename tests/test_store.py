"""Bundles whole or not at all, damage seen, writers beside each other."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

from clsearch.errors import DamagedError, StoreError
from clsearch.methods.base import ChainState
from clsearch.records import ScanPoint, TrialRecord
from clsearch.store import (
    MANIFEST,
    Store,
    TrainedModel,
    dump_state,
    load_state,
    read_commit,
    read_measured,
    read_record,
    read_trained,
    write_commit,
    write_measured,
    write_record,
)

FILES = {"a.bin": bytes(range(256)) * 8, "b.json": b"{}"}


@pytest.fixture(params=["local", "uri", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A local path, a `file://` address, and a file system that is no local one."""
    root = tmp_path / "check points äö"
    root.mkdir()
    if request.param == "uri":
        return Store(root.as_uri())
    made = Store(str(root))
    if request.param == "remote":
        made.fs, made.base, made.local = fs.SubTreeFileSystem(str(root), made.fs), "inner", False
    return made


def outer(store: Store) -> str:
    return str(Path(fs.FileSystem.from_uri(store.root)[1]))


def bundle(store: Store) -> Path:
    return next(Path(outer(store)).rglob(MANIFEST)).parent


def record(key: str = "k" * 32) -> TrialRecord:
    scan = (ScanPoint(0.0, 0.9, (1, 2)), ScanPoint(0.1 + 0.2, 1 / 3, (3, 4)))
    return TrialRecord(
        key, "ewc", 3, 2, {"lr": 0.1, "strength": 1e-7}, "COMPLETE", "", 2 / 3, 1e300,
        ("fc1", "fc2"), (5, 6), (0, 0), scan, (0.1, 2 / 3), 2, 1.5, 7.25, "cpu", "host", 4,
    )  # fmt: skip


def state() -> ChainState:
    odd = torch.tensor([float("inf"), -0.0, 1e-45, 3.14159])
    return ChainState(
        {"fc1.weight": torch.arange(6.0).view(2, 3).T, "odd": odd},
        {"mask": torch.tensor([True, False]), "tasks": torch.tensor(3), "f": odd.double()},
        {"slni.fc1": torch.rand(4, generator=torch.Generator().manual_seed(0))},
    )


def trained() -> TrainedModel:
    return TrainedModel(state().params, {"fc1": torch.arange(3.0)}, {"path.w": torch.ones(2, 2)})


def test_a_bundle_comes_back(store: Store) -> None:
    assert store.read("trials", "x") is None
    store.write("trials", "x", FILES)
    assert store.read("trials", "x") == FILES
    assert store.read("commits", "x") is None
    store.write("trials", "x", {"a.bin": b"other"})  # bundles never change
    assert store.read("trials", "x") == FILES
    store.remove("trials", "x")
    assert store.read("trials", "x") is None
    store.remove("trials", "x")


def test_a_bundle_holds_its_files_and_a_manifest_alone(store: Store) -> None:
    store.write("trials", "x", FILES)
    assert {p.name for p in bundle(store).iterdir()} == {*FILES, MANIFEST}
    assert {p.name for p in bundle(store).parent.iterdir()} == {"x"}


def test_records_and_states_come_back_exactly(store: Store) -> None:
    given = trained()
    write_record(store, record(), given)
    assert read_record(store, "k" * 32) == record()
    write_commit(store, "c", state(), {"validation_accuracy": 0.1 + 0.2})
    write_measured(store, "m", {"1": 0.1 + 0.2})
    chain, _ = read_commit(store, "c") or (None, None)
    pairs = [(given, read_trained(store, "k" * 32)), (state(), chain)]
    for before, after in pairs:
        assert vars(before).keys() == vars(after).keys()
        for part, wanted in vars(before).items():
            got = getattr(after, part)
            assert wanted.keys() == got.keys()
            for name, value in wanted.items():
                assert got[name].dtype == value.dtype
                assert got[name].shape == value.shape
                assert got[name].numpy().tobytes() == value.contiguous().numpy().tobytes()
    assert (read_commit(store, "c") or (0, 0))[1] == {"validation_accuracy": 0.1 + 0.2}
    assert read_measured(store, "m") == {"1": 0.1 + 0.2}
    assert read_commit(store, "d") is read_measured(store, "d") is None
    with pytest.raises(DamagedError, match="no stored parameters"):
        read_trained(store, "no")


def test_a_state_comes_back_in_one_order() -> None:
    """safetensors gives names in a random order; sums over them would round by it."""
    many = ChainState(
        {f"p{i}": torch.ones(1) for i in range(30)}, {f"s{i}": torch.ones(1) for i in range(9)}
    )
    for _ in range(5):
        loaded = load_state(dump_state(many))
        assert list(loaded.params) == sorted(many.params)
        assert list(loaded.state) == sorted(many.state)
        assert all(v.data_ptr() % 64 == 0 for v in loaded.params.values())


def test_a_failed_trial_has_a_record_and_no_parameters(store: Store) -> None:
    write_record(store, record(), None)
    assert read_record(store, "k" * 32) == record()
    with pytest.raises(DamagedError):
        read_trained(store, "k" * 32)


@pytest.mark.parametrize("name", ["record.json", "model.safetensors"])
def test_every_flipped_cut_or_missing_file_is_damage(store: Store, name: str) -> None:
    write_record(store, record(), trained())
    file = bundle(store) / name
    whole = file.read_bytes()
    for at in (0, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedError, match=r"SHA-256"):
            read_record(store, "k" * 32)
    for part in (b"", whole[:-1], whole + b" "):
        file.write_bytes(part)
        with pytest.raises(DamagedError):
            read_record(store, "k" * 32)
    file.unlink()
    with pytest.raises(DamagedError):
        read_record(store, "k" * 32)
    file.write_bytes(whole)
    assert read_record(store, "k" * 32) == record()


def test_any_flipped_byte_of_a_manifest_is_damage_or_harmless(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_record(store, record(), trained())
    file = bundle(store) / MANIFEST
    whole = file.read_bytes()
    damaged = 0
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            assert read_record(store, "k" * 32) == record()
        except DamagedError:
            damaged += 1
    assert damaged > len(whole) * 0.9


@pytest.mark.parametrize(
    "said", [{}, [], None, 1, {"validation_accuracy": None}, {"validation_accuracy": True},
             {"validation_accuracy": float("nan")}, {"validation_accuracy": 10**400}]
)  # fmt: skip
def test_numbers_of_a_commit_are_numbers(tmp_path: Path, said: Any) -> None:
    """Whatever the manifest says: who can write a bundle can write its sums."""
    store = Store(str(tmp_path))
    for kind, name in (("commits", "meta.json"), ("measurements", "test.json")):
        files = {name: json.dumps(said).encode(), "state.safetensors": dump_state(state())}
        store.write(kind, "x", files)
    with pytest.raises(DamagedError, match="commit x"):
        read_commit(store, "x")
    if said != {}:
        with pytest.raises(DamagedError, match="measurement x"):
            read_measured(store, "x")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"files": null}', '{"files": ["record.json"]}', '{"files": {}}',
             '{"files": {"meta.json": 3}}', "\xff"]
)  # fmt: skip
def test_any_wrong_manifest_is_damage(tmp_path: Path, text: str) -> None:
    store = Store(str(tmp_path))
    write_record(store, record(), trained())
    write_commit(store, "c", state(), {"validation_accuracy": 0.5})
    for kind in ("trials", "commits"):
        (file,) = (tmp_path / kind).rglob(MANIFEST)
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedError):
        read_record(store, "k" * 32)
    with pytest.raises(DamagedError):
        read_commit(store, "c")


def test_what_has_a_right_sum_and_wrong_content_is_damage_too(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("commits", "c", {"state.safetensors": b"no tensors", "meta.json": b"{}"})
    store.write("trials", "t", {"record.json": b"[]", "model.safetensors": b""})
    with pytest.raises(DamagedError):
        read_commit(store, "c")
    for content in (b"[]", b"{", b'{"1": null}'):
        store.remove("measurements", "m")
        store.write("measurements", "m", {"test.json": content})
        with pytest.raises(DamagedError):
            read_measured(store, "m")
    with pytest.raises(DamagedError):
        read_record(store, "t")
    with pytest.raises(DamagedError):
        read_trained(store, "t")
    foreign = dump_state(ChainState({"w": torch.ones(1)})).replace(b"params/w", b"foreig/w")
    with pytest.raises(DamagedError):
        load_state(foreign)


def test_a_bundle_without_manifest_is_absent_and_can_be_written_again(store: Store) -> None:
    """A folder that lost its manifest must not stand in the way for ever."""
    store.write("trials", "x", FILES)
    (bundle(store) / MANIFEST).unlink()
    assert store.read("trials", "x") is None
    store.write("trials", "x", FILES)
    assert store.read("trials", "x") == FILES


def test_sweep_removes_what_killed_writers_left(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "none yet"))
    store.sweep()
    store.write("trials", "x", FILES)
    left = tmp_path / "none yet" / "trials" / ".new-0123"
    left.mkdir()
    (left / "a.bin").write_bytes(b"half")
    assert store.read("trials", "x") == FILES
    (tmp_path / "own" / ".new-work").mkdir(parents=True)
    for link in (left.parent.parent / "evil", left.parent / ".new-evil"):
        link.symlink_to(tmp_path / "own")
    store.sweep()
    assert not left.exists()
    assert (tmp_path / "own" / ".new-work").is_dir()
    assert store.read("trials", "x") == FILES


def test_a_killed_writer_leaves_nothing_readable(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends after the first file; then another one writes the bundle."""

    class Killed(BaseException):
        pass

    class Dying:
        def __init__(self, inner: fs.FileSystem) -> None:
            self.inner, self.opened = inner, 0

        def open_output_stream(self, path: str) -> object:
            self.opened += 1
            if self.opened > 1:
                raise Killed
            return self.inner.open_output_stream(path)

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    whole = store.fs
    monkeypatch.setattr(store, "fs", Dying(whole))
    with pytest.raises(Killed):
        store.write("trials", "x", FILES)
    monkeypatch.setattr(store, "fs", whole)
    assert store.read("trials", "x") is None
    store.write("trials", "x", FILES)
    assert store.read("trials", "x") == FILES


def test_writers_of_the_same_bundle_do_not_disturb_each_other(store: Store) -> None:
    """Eight at once, whose records differ in their durations: one wins, whole."""
    barrier, errors = threading.Barrier(8), []

    def write(n: int) -> None:
        try:
            for key in range(10):
                barrier.wait()
                if store.local:
                    store.write("trials", str(key), {"a": b"%d" % n * 1000, "b": b"%d" % n})
                else:  # elsewhere content is written in place: the same trial gives the same bytes
                    store.write("trials", str(key), FILES)
        except Exception as error:  # noqa: BLE001
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for key in range(10):
        files = store.read("trials", str(key))
        assert files is not None
        if store.local:
            assert files["a"] == files["b"] * 1000
    assert not list(Path(outer(store)).rglob(".new-*"))


def test_a_store_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("trials", "x", FILES)
    assert pickle.loads(pickle.dumps(store)).read("trials", "x") == FILES  # noqa: S301


@pytest.mark.parametrize("root", ["nosuch://bucket/x", "relative/path", ""])
def test_an_address_that_is_none_is_a_store_error(root: str) -> None:
    with pytest.raises(StoreError, match="cannot open"):
        Store(root)


def test_a_place_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "trials").write_text("a file where a folder should be")
    store = Store(str(tmp_path))
    with pytest.raises(StoreError, match="cannot write trials/x"):
        store.write("trials", "x", FILES)


def test_a_read_only_place_is_a_store_error(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere; the full disk below stands for it")
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError):
        Store(str(tmp_path)).write("trials", "x", FILES)


def test_a_full_disk_is_a_store_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip(f"tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        store = Store(str(disk))
        store.write("trials", "small", FILES)
        with pytest.raises(StoreError, match="cannot write trials/big"):
            store.write("trials", "big", {"a": b"x" * 200_000})
        assert store.read("trials", "big") is None
        assert store.read("trials", "small") == FILES
        assert not list(disk.rglob(".new-*"))
        store.write("trials", "after", FILES)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_store_that_is_away_is_not_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network, no permission: the trial may be whole and must not be deleted and made again."""
    store = Store(str(tmp_path))
    store.write("trials", "x", FILES)

    def away(path: str) -> bytes:
        raise PermissionError(13, "denied")

    monkeypatch.setattr(store, "_bytes", away)
    with pytest.raises(StoreError, match="cannot read trials/x") as caught:
        store.read("trials", "x")
    assert not isinstance(caught.value, DamagedError)


def test_records_are_json_anyone_can_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_record(store, record(), None)
    data = json.loads((bundle(store) / "record.json").read_bytes())
    assert data["hyperparameters"] == {"lr": 0.1, "strength": 1e-7}
    assert data["scan"][1] == {"threshold": 0.1 + 0.2, "accuracy": 1 / 3, "free": [3, 4]}
