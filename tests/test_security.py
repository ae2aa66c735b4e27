"""What comes from elsewhere stays where it belongs, and secrets stay unsaid."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import torch
from command import refused, write_config
from rich.console import Console
from test_store import record, trained
from torch import Tensor

from clsearch.archive import checked_archive
from clsearch.config import load_config
from clsearch.courier import Ledger, describe
from clsearch.errors import ClsearchError, DamagedError, InputError, StoreError
from clsearch.evaluate import _section
from clsearch.exports.files import load_export
from clsearch.exports.formats.pt2 import Program
from clsearch.files import content_of
from clsearch.messages import say
from clsearch.outbox import Outbox, jsonable
from clsearch.redaction import holds_secret, redacted
from clsearch.store import MANIFEST, Store, known_record, read_record, write_record
from clsearch.yaml_reader import MAX_DEPTH, MAX_KEYS, MAX_NODES

KEY = "k" * 32
PATHS = ["../../secret", "/etc/passwd", "..", ".", "", ".hidden", "a/b", "a\\b"]
ESCAPES = [*PATHS, "a\0", "CON:", "é"]


@pytest.mark.parametrize("name", ESCAPES)
def test_a_manifest_names_files_of_its_bundle_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    store = Store(str(tmp_path / "store"))
    store.write("trials", KEY, {"record.json": b"{}"})
    sums = {name: hashlib.sha256(b"x").hexdigest()}
    (tmp_path / "store" / "trials" / KEY / MANIFEST).write_text(json.dumps({"files": sums}))
    with pytest.raises(DamagedError):
        store.read("trials", KEY)


@pytest.mark.parametrize("key", ESCAPES)
def test_a_key_leads_nowhere_else(tmp_path: Path, key: str) -> None:
    outside = tmp_path / "secret"
    outside.mkdir()
    store = Store(str(tmp_path / "store"))
    for act in (store.read, store.remove):
        with pytest.raises(DamagedError):
            act("trials", key)
    with pytest.raises(DamagedError):
        store.write("trials", key, {"a": b""})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["secret"]


@pytest.mark.parametrize("kind", ["link", "link to a device", "pipe", "folder"])
def test_a_bundle_holds_ordinary_files_alone(tmp_path: Path, kind: str) -> None:
    store = Store(str(tmp_path / "store"))
    write_record(store, record(), trained())
    file = tmp_path / "store" / "trials" / KEY / "record.json"
    copy = shutil.copy(file, tmp_path / "elsewhere")
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(copy if kind == "link" else "/dev/zero")
    with pytest.raises(DamagedError):
        read_record(store, KEY)


SPARSE = 1 << 42


def sparse(path: Path) -> None:
    """A file larger than any memory, of which nothing is on the disk."""
    with path.open("wb") as stream:
        stream.truncate(SPARSE)


@pytest.mark.parametrize(("name", "share"), [("a.json", 16), ("a.safetensors", 4)])
def test_a_file_is_read_that_takes_no_more_than_its_share_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, share: int
) -> None:
    (tmp_path / name).write_bytes(b"x" * 100)
    monkeypatch.setattr("clsearch.files.machine_memory", lambda: share * 100)
    assert content_of(tmp_path / name) == b"x" * 100
    monkeypatch.setattr("clsearch.files.machine_memory", lambda: share * 100 - 1)
    with pytest.raises(StoreError, match="do not fit into this machine's memory"):
        content_of(tmp_path / name)


@pytest.mark.parametrize("name", [MANIFEST, "record.json", "model.safetensors"])
def test_what_does_not_fit_is_not_read_and_not_taken_for_damaged(tmp_path: Path, name: str) -> None:
    """It may be whole, and have been made on another machine: nothing is trained in its place."""
    store = Store(str(tmp_path / "store"))
    write_record(store, record(), trained())
    file = tmp_path / "store" / "trials" / KEY / name
    sparse(file)
    with pytest.raises(StoreError, match=f"{name}: its 4,096.0 GiB do not fit"):
        known_record(store, KEY, pytest.fail)
    assert file.exists()


def test_what_waits_for_mlflow_is_read_within_limits(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox")
    box.append("x", {"a": 1}, {})
    entry = box.first()
    assert entry is not None
    sparse(entry.file)
    with pytest.raises(DamagedError, match="do not fit"):  # so that it is set aside
        entry.read()
    box.reject(entry, "too large")
    (kept,) = box.rejected()
    assert json.loads(kept.read_text()) == {"reason": "too large", "entry": None}
    assert kept.with_suffix(".entry").stat().st_size == SPARSE  # it may be whole
    assert list(entry.file.parent.glob("*.json")) == []
    assert list(kept.parent.parent.glob("*.files")) == []
    sparse(tmp_path / "ledger")
    with pytest.raises(StoreError, match="do not fit"):
        Ledger(tmp_path / "ledger")


def test_what_cannot_be_set_aside_waits_whole_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, model = Outbox(tmp_path / "outbox"), tmp_path / "model"
    model.write_text("weights")
    box.append("x", {"a": 1}, {"model": model})
    box.append("y", {"a": 2}, {})
    entry = box.first()
    assert entry is not None
    sparse(entry.file)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="No space"):
        box.reject(entry, "too large")
    monkeypatch.undo()
    again = Outbox(tmp_path / "outbox")  # after a kill
    first = again.first()
    assert first is not None
    assert (first.files / "model").read_text() == "weights"
    again.reject(first, "too large")
    (kept,) = again.rejected()
    assert kept.with_suffix(".entry").stat().st_size == SPARSE
    assert (kept.with_suffix(".files") / "model").read_text() == "weights"
    assert len(again) == 1


@pytest.mark.parametrize("ending", ["pt2", "onnx", "safetensors"])
@pytest.mark.parametrize("described", [False, True])
def test_a_model_that_does_not_fit_is_refused(tmp_path: Path, ending: str, described: bool) -> None:
    place = tmp_path / f"model.{ending}"
    about = tmp_path / f"{place.name}.json"
    sparse(place)
    if described:
        about.write_text('{"sha256": ""}')
    with pytest.raises(StoreError, match=f"model.{ending}: its 4,096.0 GiB do not fit"):
        load_export(place)
    sparse(about)
    with pytest.raises(StoreError, match=f"{about.name}: its 4,096.0 GiB do not fit"):
        load_export(place)


def test_a_bundle_has_no_more_files_than_any_of_ours(tmp_path: Path) -> None:
    """Each may be as large as fits into the memory."""
    store = Store(str(tmp_path))
    with pytest.raises(ValueError, match="at most 2 files, not 3"):
        store.write("trials", KEY, dict.fromkeys("abc", b""))
    store.write("trials", KEY, dict.fromkeys("ab", b""))
    manifest = tmp_path / "trials" / KEY / MANIFEST
    sums = json.loads(manifest.read_text())["files"]
    (manifest.parent / "c").touch()
    manifest.write_text(json.dumps({"files": {**sums, "c": sums["a"]}}))
    with pytest.raises(DamagedError, match="names 3 files"):
        store.read("trials", KEY)


def test_a_record_with_values_of_other_types_is_damage(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    whole = record().to_json()
    wrong = {"units": "ab", "task": "1", "lost": 1, "hyperparameters": [1]}
    for field, value in wrong.items():
        store.write("trials", field, {"record.json": json.dumps(whole | {field: value}).encode()})
        with pytest.raises(DamagedError, match=f"cannot be read: {field}[:.]") as caught:
            read_record(store, field)
        assert "\n" not in str(caught.value)


def test_yaml_is_bounded_in_depth(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    chain = "\n".join(f"k{i}: &a{i} [*a{i - 1}]" for i in range(1, 40))
    for text in (f"a: {deep}", f"k0: &a0 [0]\n{chain}", "a: " + "[" * 100_000):
        file.write_text(text)
        with pytest.raises(InputError, match="nested"):
            load_config(file)


def test_yaml_that_describes_data_is_bounded_too(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    for text in ("a: " + "[" * 100_000, "name: &a [" + "*a, " * MAX_NODES + "]", f"a: {SECRET}: b"):
        file.write_text(text)
        with pytest.raises(InputError, match=r"^data: ") as caught:
            _section(str(file))
        assert SECRET not in str(caught.value)


def test_yaml_is_read_no_further_than_it_may_go(tmp_path: Path) -> None:
    """All that a megabyte of it can hold takes seconds."""
    file = tmp_path / "c.yaml"
    file.write_text("seeds: [" + "1," * (MAX_NODES + 1) + "}")  # which is not even YAML
    with pytest.raises(InputError, match=f"at most {MAX_NODES} values"):
        load_config(file)


def keys(count: int, first: int = 0) -> str:
    """A mapping whose keys are numbers of one hash."""
    return "{" + ", ".join(f"{i * (2**61 - 1)}: 0" for i in range(first, first + count)) + "}"


YAML = {
    "a number that is a mapping": "a: !!int {=: '" + "1:" * 200_000 + "1'}",
    "a time that is a mapping": "name: !!timestamp {=: 2001-01-01}",
    "a set": "seeds: !!set {1, 2}",
    "numbers with one hash": keys(MAX_KEYS + 1),
    "numbers with one hash that are merged": f"<<: [{keys(MAX_KEYS - 1)}, {keys(2, MAX_KEYS)}]",
    "mappings merged within one that is merged": f"<<: {{<<: {keys(MAX_KEYS)}, a: 0}}",
}


@pytest.mark.parametrize("what", YAML)
def test_yaml_that_takes_more_than_its_length_is_refused(tmp_path: Path, what: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(YAML[what])
    with pytest.raises(InputError, match=f"without a tag|at most {MAX_KEYS} keys.*in line 1"):
        load_config(file)


@pytest.mark.parametrize(
    "number", ["59" + ":59" * 100_000, "59" + ":59" * 100_000 + ".5", "1" * 9999]
)
def test_a_number_in_yaml_is_bounded(tmp_path: Path, number: str) -> None:
    """YAML 1.1 counts in sixties where there are colons, in quadratic time."""
    file = tmp_path / "c.yaml"
    file.write_text(f"seeds: [{number}]")
    with pytest.raises(InputError, match="numbers of at most 400 characters") as caught:
        load_config(file)
    assert len(str(caught.value)) < 800


def test_the_line_of_a_mistake_is_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for line in (
        *(f"password: {SECRET}: {SECRET}", f'x: "{SECRET}', f"a: !!python/name:{SECRET} b"),
        *(f"password: !{SECRET}", f"password: *{SECRET}", f"password: !'{SECRET}' b"),
        *(f"password: &{SECRET} 1\nx: &{SECRET} 2", f"%TAG ! {SECRET}", f"password: @{SECRET}"),
    ):
        file.write_text(f"name: x\n{line}\n")
        with pytest.raises(InputError, match=r"line \d+, column \d+") as caught:
            load_config(file)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["m/models/../../../x", "../data/weights/weight_0", "/models/x"])
def test_an_archive_with_a_way_out_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "m.pt2"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(DamagedError, match="holds"):
        checked_archive(file, file.read_bytes())


def test_an_archive_that_unfolds_is_refused_before_it_does(tmp_path: Path) -> None:
    file = tmp_path / "m.pt2"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/models/model.json", b"\0" * 50_000_000)
    assert file.stat().st_size < 100_000
    with pytest.raises(DamagedError, match="unfolds"):
        checked_archive(file, file.read_bytes())


class Planted:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


class Scaled(torch.nn.Linear):
    """A model with weights and a constant."""

    constant = torch.ones(2)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.constant


@pytest.fixture(scope="module")
def program() -> dict[str, bytes]:
    """The parts of a model, by name."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(Scaled(3, 2), (torch.zeros(2, 3),)), file)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


DATA = "archive/data/"
WEIGHTS, CONSTANTS = (f"{DATA}{kind}/model_{kind}_config.json" for kind in ("weights", "constants"))


def packed(parts: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return file.getvalue()


def pickled(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def described(config: bytes, **as_what: Any) -> bytes:
    """A list of tensors of which the first is described otherwise."""
    found = json.loads(config)
    next(iter(found["config"].values())).update(as_what)
    return json.dumps(found).encode()


def by_its_folder(parts: dict[str, bytes], evil: Planted) -> bytes:
    """torch unpickles what has a path that begins so."""
    path = "opaque_obj_0/tensor_0"
    bytes_of_it = {
        "dtype": 1, "sizes": [{"as_int": 1}], "requires_grad": False, "layout": 7,
        "device": {"type": "cpu", "index": None}, "strides": [{"as_int": 1}],
        "storage_offset": {"as_int": 0},
    }  # fmt: skip
    config = described(parts[CONSTANTS], path_name=path, tensor_meta=bytes_of_it)
    return packed(parts | {CONSTANTS: config, f"{DATA}constants/{path}": pickle.dumps(evil)})


def by_its_model(parts: dict[str, bytes], evil: Planted) -> bytes:
    """The weights of a model of this name in an older form, which is a pickle."""
    at = {"model.json": "weight_.json", "model.pt": "weight_.pt", "model_": "weight__"}
    names = {name: name for name in parts}
    for old, new in at.items():
        names = {name: own.replace(f"/{old}", f"/{new}") for name, own in names.items()}
    renamed = {names[name]: part for name, part in parts.items()}
    return packed(renamed | {f"{DATA}weights/weight_.pt": pickled(evil)})


def with_pickled_weights(parts: dict[str, bytes], evil: Planted) -> dict[str, bytes]:
    config = described(parts[WEIGHTS], use_pickle=True)
    return parts | {WEIGHTS: config, f"{DATA}weights/weight_0": pickled(evil)}


def by_two_directories(parts: dict[str, bytes], evil: Planted) -> bytes:
    """Two archives in one: Python's zipfile finds the directory by the end of the file, torch by
    where it is said to be."""
    bad, good = packed(with_pickled_weights(parts, evil)), packed(parts)
    ends = [whole.rindex(b"PK\5\6") for whole in (bad, good)]
    starts = [
        struct.unpack_from("<L", bad, ends[0] + 16)[0],
        struct.unpack_from("<L", good, ends[1] + 16)[0],
    ]
    directory, tail, at = bytearray(good[starts[1] : ends[1]]), bytearray(good[ends[1] :]), 0
    while at < len(directory):
        (where,) = struct.unpack_from("<L", directory, at + 42)
        struct.pack_into("<L", directory, at + 42, where + starts[0] - starts[1])
        at += 46 + struct.unpack_from("<H", directory, at + 28)[0]
    struct.pack_into("<L", tail, 16, starts[0])
    return bad[: ends[0]] + good[: starts[1]] + directory + tail


@pytest.mark.parametrize("hidden", [by_its_folder, by_its_model, by_two_directories])
def test_what_is_hidden_in_a_program_is_not_unpickled(
    program: dict[str, bytes], tmp_path: Path, hidden: Callable[[Any, Planted], bytes]
) -> None:
    """torch itself would."""
    mark, file = tmp_path / "mark", tmp_path / "m.pt2"
    file.write_bytes(hidden(program, Planted(mark)))
    with contextlib.suppress(Exception):
        torch.export.load(io.BytesIO(file.read_bytes()))
    assert mark.exists()
    mark.rmdir()
    with contextlib.suppress(DamagedError):
        Program().load(file)
    assert not mark.exists()


def test_a_part_is_in_an_archive_once_whatever_its_case(program: dict[str, bytes]) -> None:
    """torch may take the other one."""
    other = {WEIGHTS.replace("config", "CONFIG"): program[WEIGHTS]}
    with pytest.raises(DamagedError, match="2 times"):
        checked_archive(Path("m.pt2"), packed(program | other))


@pytest.mark.parametrize("config", [b"[]", b"{}", b'{"config": []}', b'{"config": {"a": 1}}', b"x"])
def test_a_list_of_tensors_that_is_none_is_damage(program: dict[str, bytes], config: bytes) -> None:
    with pytest.raises(DamagedError):
        checked_archive(Path("m.pt2"), packed(program | {WEIGHTS: config}))


SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"https://me:{SECRET}@host/path",
        f"postgresql+psycopg2://{SECRET}@host/db refused",
        f"s3://AKIA:{SECRET}/x@bucket",
        f"http://host/?a=1&token={SECRET}&b=2",
        f"{{'password': '{SECRET}', 'user': 'me'}}",
        f'{{"aws_secret_access_key": "{SECRET}"}}',
        f"MLFLOW_TRACKING_TOKEN={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"{{'Authorization': 'Token {SECRET}'}}",
        f"{{'token': {{'value': '{SECRET}'}}}}",
        f"{{'token': {{'values': ['a', {{'b': '{SECRET}'}}]}}}}",
        f"{{'tokens': ['a', '{SECRET}']}}",
        f"{{'password': 'it\\'s \"so\" {SECRET}'}}",
        f'{{"secret": "a\\"b {SECRET}"}}',
        f"password:\n  {SECRET}",
        f"--password {SECRET} --other",
        f"user:{SECRET}@host refused",
        f"https://a.blob.core.windows.net/c?sv=1&sig={SECRET}",
        f"AccountName=x;AccountKey={SECRET};",
        f"passphrase = {SECRET}",
        f"Cookie: session={SECRET}",
    ],
)
def test_secrets_are_taken_out(text: str) -> None:
    assert SECRET not in redacted(text)
    assert "…" in redacted(text)
    assert SECRET not in str(ClsearchError(text))
    assert SECRET not in str(InputError("field", text, "no secrets"))
    assert SECRET not in describe(ValueError(text))
    assert SECRET not in json.dumps(jsonable({"a": [text]}))


def test_values_of_secret_variables_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert redacted(f"the server said {SECRET} is wrong") == "the server said … is wrong"
    for value in ("/begins+like/a=path", 'it\'s "so" \\ or not'):
        monkeypatch.setenv("MY_TOKEN", value)
        for written in (value, quote(value, ""), quote_plus(value), repr(value), json.dumps(value)):
            assert redacted(f"it said {written}.").replace('"', "").replace("'", "") == "it said …."
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/where/it/lies")
    assert redacted("/where/it/lies: no such file") == "/where/it/lies: no such file"
    for name in ("PWD", "OLDPWD"):
        monkeypatch.setenv(name, "/where/we/are")
    assert redacted("clsearch resume /where/we/are/x") == "clsearch resume /where/we/are/x"
    monkeypatch.setenv("DB_PASS", SECRET)
    assert redacted(f"the server said {SECRET}") == "the server said …"
    monkeypatch.setenv("MY_TOKEN", "true")  # too short to be looked for in words
    assert redacted("true words stay") == "true words stay"


PLANTED = {
    "checkpoints/evil": "own", "report": "own", "outbox/rejected": "own", "outbox": "own",
    "config.yaml": "own/config.yaml", "search.json": "/dev/zero", "selections.json": "pipe",
    ".lock": "pipe", "checkpoints/delivered/local.txt": "pipe",
}  # fmt: skip


@pytest.mark.parametrize("place", PLANTED)
@pytest.mark.parametrize("verb", ["status", "report", "resume"])
def test_a_folder_that_leads_elsewhere_or_has_no_end_is_refused(
    call: Any, tmp_path: Path, verb: str, place: str
) -> None:
    """An output folder may come from somebody else."""
    out, own = tmp_path / "out", tmp_path / "own"
    (own / ".new-work").mkdir(parents=True)
    for path in (own / "index.html", write_config(own / "config.yaml")):
        path.touch()
    write_config(out / "config.yaml")
    planted = out / place
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.unlink(missing_ok=True)
    if PLANTED[place] == "pipe":
        os.mkfifo(planted)
    else:
        planted.symlink_to(tmp_path / PLANTED[place])
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    refused(call(verb, out), "DIR", "without links", str(planted))
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_steers_a_terminal_is_not_printed() -> None:
    console = Console(file=io.StringIO())
    say(console, "failed: \x1b]0;title\x07\x1b[2J\x9b31mFinished.\nnext line é")
    console.file.seek(0)
    assert console.file.read() == "failed: ]0;title[2J31mFinished.\nnext line é\n"


def test_what_has_the_name_of_a_secret_is_not_said() -> None:
    given = {"password": SECRET, "a": {"tokens": [SECRET, 3], "b": "c"}, "signature": None}
    expected = {"password": "…", "a": {"tokens": ["…", 3], "b": "c"}, "signature": None}
    assert jsonable(given) == expected


@pytest.mark.parametrize(
    "part",
    ["token", "a://", "a:", "-", "--token ", "+", "token='", "token:{", "a@", "token=\\", ","],
)
def test_secrets_are_looked_for_in_linear_time(part: str) -> None:
    text = part * (200_000 // len(part))
    began = time.process_time()
    redacted(text)
    holds_secret(text)
    assert time.process_time() - began < 20
    assert len(str(InputError("name", text * 5, "a name"))) < 600


@pytest.mark.parametrize(
    "text",
    [
        "methods[0].grid.lr: -1 is not allowed. Allowed: a number above 0.",
        "a compass: north", "bypass=1", "it passes: all",
        "http://127.0.0.1:5000/path", "sqlite:////tmp/a@b.db", "disk full: /data/x: 3 tokens of 5",
    ],
)  # fmt: skip
def test_other_words_stay(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("address", "holds"),
    [
        ("http://me:pw@host", True), ("http://me@host", True), ("http://host?token=x", True),
        ("s3://a:b/c@bucket", True), ("http://host:5000/a", False), ("sqlite:////a@b.db", False),
        ("https://host/c?sv=1&sig=x", True), ("http://host/#token=x", True), ("me:pw@host", True),
        ("http:\\\\me:pw@host", True), ("s3://b/c?AccountKey=x", True), ("s3://b/design=x", False),
    ],
)  # fmt: skip
def test_addresses_with_secrets_are_known(address: str, holds: bool) -> None:
    assert holds_secret(address) is holds


def test_a_secret_in_a_config_is_not_repeated(call: Any, tmp_path: Path) -> None:
    for n, tracking in enumerate(
        [
            {"uri": f"http://me:{SECRET}@127.0.0.1:1"},
            {"uri": f"postgresql://h/db?password={SECRET}"},
            {"uri": {"password": SECRET}},
            {"uri": {"token": {"value": ["a", SECRET]}}},
            {"uri": f"postgresql://h/db?options=x#password={SECRET}"},
            {"uri": f"me:{SECRET}@127.0.0.1:1"},
            {"uri": f"http://127.0.0.1:1/?sig={SECRET}"},
            {"uri": f"http://127.0.0.1:1/#token={SECRET}"},
        ]
    ):
        config = write_config(tmp_path / f"{n}.yaml", tracking=tracking)
        ended = call("run", config, "--out", tmp_path / "out")
        refused(ended, "tracking.uri")
        assert SECRET not in ended.err
        assert not (tmp_path / "out").exists()
