"""The journal of finished trials and the checkpoints, through pyarrow.fs: local disk, S3, GCS, …

A bundle is a folder of files with a `manifest.json` that names their SHA-256. It appears whole or
not at all: on a local disk by renaming a finished folder, elsewhere by writing the manifest last.
Bundles are keyed by content (`trials/<trial key>`, `commits/<commit key>`) and never change.
torch is imported where tensors are read or written: not to count trials.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pyarrow import fs
from safetensors import SafetensorError

from clsearch.errors import DamagedError, StoreError
from clsearch.files import check_readable, parse
from clsearch.records import LayerPruning, TrialRecord, checked, numbers

if TYPE_CHECKING:
    from torch import Tensor

    from clsearch.methods.base import ChainState

T = TypeVar("T")

MANIFEST = "manifest.json"
MOST_FILES = 2  # of a bundle: one from somebody else may name any number
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
PATIENCE, LONGEST_PAUSE = 60.0, 8.0
"""Seconds an object store may be away, and between two attempts, at most."""
SILENCE, TRIES = 5, 3
"""Seconds after which a request to an object store that has no answer is given up, and how often
its client sends it."""

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def plain(name: str) -> str:
    """The name of a file in a bundle, or a key; raises `ValueError` for one that leads elsewhere:
    a path, `..`, a hidden file."""
    if not PLAIN.fullmatch(name):
        raise ValueError(repr(name))
    return name


def _opened(root: str) -> tuple[Any, str]:
    """The file system of a root, and the path in it.

    The clients of object stores try again by themselves while a server does not answer, for minutes
    (S3's) or a quarter of an hour (Google's), and are deaf to Ctrl-C meanwhile. Here it is seconds.
    """
    found, base = fs.FileSystem.from_uri(root)
    soon: dict[str, Any] = {}
    if found.type_name == "s3":
        tries = fs.AwsStandardS3RetryStrategy(max_attempts=TRIES)
        soon = {"retry_strategy": tries, "request_timeout": SILENCE, "connect_timeout": SILENCE}
    elif found.type_name == "gcs":
        soon = {"retry_time_limit": timedelta(seconds=SILENCE)}
    if soon:
        _, (options,) = found.__reduce__()  # how pyarrow makes it again in another process
        found = type(found)(**options | soon)
    return found, base


class Store:
    """Bundles under one root, a local path or a `scheme://` address.

    A store that is not local and answers with an error, or not at all, is asked again for
    `PATIENCE` seconds.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        try:
            self.fs, self.base = _opened(root)
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot open the store at {root}: {error}") from error
        self.local = isinstance(self.fs, fs.LocalFileSystem)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.root,)

    def write(self, kind: str, key: str, files: Mapping[str, bytes]) -> None:
        """Stores a bundle; a bundle that is there already is left as it is.

        Raises `StoreError` when it cannot be written (disk full, no permission), `ValueError` for
        more than `MOST_FILES`.
        """
        if len(files) > MOST_FILES:
            raise ValueError(f"a bundle has at most {MOST_FILES} files, not {len(files)}")
        target = self._place(kind, key)
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        manifest = json.dumps({"files": sums}, indent=1, sort_keys=True).encode()
        place = f"{self.base}/{kind}/.new-{uuid.uuid4().hex}" if self.local else target

        def put() -> None:
            if not self.local and self._is_there(f"{target}/{MANIFEST}"):
                return
            self.fs.create_dir(place, recursive=True)
            for name, data in {**files, MANIFEST: manifest}.items():
                with self.fs.open_output_stream(f"{place}/{name}") as stream:
                    stream.write(data)
            if self.local:
                self._publish(place, target)

        try:
            self._patiently(put)
        except OSError as error:
            if self.local:
                with contextlib.suppress(OSError):
                    self._discard(place)
            raise StoreError(f"cannot write {kind}/{key} in {self.root}: {error}") from error

    def look_again(self, kind: str) -> None:
        """Before a second look for what another host says it wrote: a client of NFS takes what it
        did not find for absent for up to a minute, unless the folder is opened."""
        if self.local:
            with contextlib.suppress(OSError):
                os.listdir(f"{self.base}/{kind}")

    def _patiently(self, act: Callable[[], T]) -> T:
        """What `act` returns, tried again after a pause where another machine is to blame."""
        end, pause = time.monotonic() + PATIENCE, 1.0
        while True:
            try:
                return act()
            except MISSING:
                raise
            except OSError:
                if self.local or time.monotonic() + pause > end:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def check(self) -> None:
        """Raises `StoreError` unless the root can be written to. Tries once, for seconds."""
        probe = f"{self.base}/.probe-{uuid.uuid4().hex}"
        try:
            self.fs.create_dir(self.base, recursive=True)
            with self.fs.open_output_stream(probe) as stream:
                stream.write(b"")
            self.fs.delete_file(probe)
        except OSError as error:
            raise StoreError(f"cannot write in {self.root}: {error}") from error

    def count(self, kind: str) -> int:
        """How many bundles there are of a kind. Raises `StoreError` when it cannot be read."""
        selector = fs.FileSelector(f"{self.base}/{kind}", recursive=True, allow_not_found=True)
        try:
            found = self._patiently(lambda: self.fs.get_file_info(selector))
        except OSError as error:
            raise StoreError(f"cannot read {kind} in {self.root}: {error}") from error
        return sum(info.base_name == MANIFEST and "/.new-" not in info.path for info in found)

    def _publish(self, place: str, target: str) -> None:
        if not self._is_there(f"{target}/{MANIFEST}"):
            try:
                self.fs.move(place, target)
            except OSError:
                if not self._is_there(f"{target}/{MANIFEST}"):  # else another worker was first
                    self._discard(target)  # what someone damaged by hand
                    self.fs.move(place, target)
        self._discard(place)

    def _discard(self, place: str) -> None:
        if self._is_there(place):
            self.fs.delete_dir(place)

    def _is_there(self, path: str) -> bool:
        return bool(self.fs.get_file_info(path).type != fs.FileType.NotFound)

    def read(self, kind: str, key: str) -> dict[str, bytes] | None:
        """The files of a bundle, checked against its manifest; None where there is none.

        Raises `DamagedError` when a file is missing, cut or changed; `StoreError` when the store
        cannot be read: what may be whole must not be taken for damaged, and be made again.
        """
        target = self._place(kind, key)
        try:
            if not self._patiently(lambda: self._is_there(f"{target}/{MANIFEST}")):
                return None
            sums = dict(parse(self._bytes(f"{target}/{MANIFEST}"))["files"])
            if len(sums) > MOST_FILES:
                raise ValueError(f"it names {len(sums)} files; a bundle has at most {MOST_FILES}")
            files = {name: self._bytes(f"{target}/{plain(name)}") for name in sums}
        except (*MISSING, ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{target} is damaged: {error}") from error
        except OSError as error:
            raise StoreError(f"cannot read {kind}/{key} in {self.root}: {error}") from error
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != sums[name]:
                raise DamagedError(f"{target}/{name} does not match the SHA-256 in its manifest")
        return files

    def _place(self, kind: str, key: str) -> str:
        try:
            return f"{self.base}/{kind}/{plain(key)}"
        except ValueError as error:
            raise DamagedError(f"{error} is no key of {kind} in {self.root}") from error

    def _bytes(self, path: str) -> bytes:
        """A file's content; of a local disk, it raises what `check_readable` does."""
        if self.local:
            check_readable(path, os.lstat(path))

        def get() -> bytes:
            with self.fs.open_input_stream(path) as stream:
                return bytes(stream.readall())

        return self._patiently(get)

    def remove(self, kind: str, key: str) -> None:
        """Deletes a bundle, if it is there."""
        place = self._place(kind, key)
        try:
            self._patiently(lambda: self._discard(place))
        except OSError as error:
            raise StoreError(f"cannot delete {kind}/{key} in {self.root}: {error}") from error

    def sweep(self) -> None:
        """Deletes what killed writers left half-written, by no link. While no writer is at work."""
        if self.local and os.path.isdir(self.base):
            try:
                kinds = [k for k in os.scandir(self.base) if k.is_dir(follow_symlinks=False)]
                for entry in [entry for kind in kinds for entry in os.scandir(kind)]:
                    if entry.name.startswith(".new-") and entry.is_dir(follow_symlinks=False):
                        self.fs.delete_dir(entry.path)
            except OSError as error:
                raise StoreError(f"cannot clean {self.root}: {error}") from error


CHAIN_PARTS = ("params", "state", "regularizer_state")
TRIAL_PARTS = ("params", "activity", "running")


def dump_parts(parts: Mapping[str, Mapping[str, Tensor]]) -> bytes:
    """Named groups of tensors as one safetensors file."""
    from safetensors.torch import save

    tensors = {
        f"{prefix}/{name}": value.detach().cpu().contiguous()
        for prefix, part in parts.items()
        for name, value in part.items()
    }
    return bytes(save({name: v.clone() for name, v in tensors.items()}))


def load_parts(data: bytes, prefixes: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Reads what `dump_parts` wrote; raises `DamagedError` for anything else."""
    from safetensors.torch import load

    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    try:
        # Sorted: safetensors gives them in a random order, and sums over them round by it.
        for name, value in sorted(load(data).items()):
            prefix, _, rest = name.partition("/")
            # Its own memory, aligned: matrix products round by where their operands lie.
            parts[prefix][rest] = value.clone()
    except (SafetensorError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise DamagedError(f"stored parameters cannot be read: {error}") from error
    return parts


def dump_state(state: ChainState) -> bytes:
    """A chain's parameters and state as one safetensors file."""
    return dump_parts({part: getattr(state, part) for part in CHAIN_PARTS})


def load_state(data: bytes) -> ChainState:
    """Reads what `dump_state` wrote; raises `DamagedError` for anything else."""
    from clsearch.methods.base import ChainState

    return ChainState(**load_parts(data, CHAIN_PARTS))


@dataclass(frozen=True)
class TrainedModel:
    """What is stored of a finished trial: parameters, mean activity by unit layer, and what the
    method kept by `after_step`."""

    params: dict[str, Tensor]
    activity: dict[str, Tensor]
    running: dict[str, Tensor]


def write_record(store: Store, record: TrialRecord, trained: TrainedModel | None) -> None:
    """Puts a finished trial into the journal: its record and what it trained."""
    files = {"record.json": _json(record.to_json())}
    if trained is not None:
        files["model.safetensors"] = dump_parts(vars(trained))
    store.write("trials", record.trial_key, files)


def read_record(store: Store, key: str) -> TrialRecord | None:
    """A finished trial from the journal; None if it has not finished.

    Raises `DamagedError` when any of its files is.
    """
    files = store.read("trials", key)
    if files is None:
        return None
    try:
        return checked(TrialRecord.from_json(parse(files["record.json"])))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"the record of trial {key} cannot be read: {error}") from error


def known_record(store: Store, key: str, note: Callable[[str], None]) -> TrialRecord | None:
    """A finished trial from the journal; None if it has to be trained.

    Damaged and lost ones are dropped from the journal, and `note` is told.
    """
    try:
        record = read_record(store, key)
    except DamagedError as error:
        note(f"{error}. This trial is trained again.")
        store.remove("trials", key)
        return None
    if record is not None and record.lost:
        note(f"Trial {key} was lost ({record.reason}): trained again.")
        store.remove("trials", key)
        return None
    return record


def read_trained(store: Store, key: str) -> TrainedModel:
    """What a finished trial trained. Raises `DamagedError`."""
    files = store.read("trials", key)
    if files is None or "model.safetensors" not in files:
        raise DamagedError(f"trial {key} has no stored parameters in {store.root}")
    return TrainedModel(**load_parts(files["model.safetensors"], TRIAL_PARTS))


def write_pruning(store: Store, key: str, pruning: LayerPruning) -> None:
    """Stores how far the margin allows a trial to be pruned layer by layer."""
    store.write("prunings", key, {"pruning.json": _json(pruning.to_json())})


def read_pruning(store: Store, key: str) -> LayerPruning | None:
    """A trial's pruning by layer; None if it has not been looked for. Raises `DamagedError`."""
    files = store.read("prunings", key)
    if files is None:
        return None
    try:
        return checked(LayerPruning.from_json(parse(files["pruning.json"])))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"the pruning {key} cannot be read: {error}") from error


def write_commit(store: Store, key: str, state: ChainState, meta: Mapping[str, Any]) -> None:
    """Stores a chain's state after a task under its commit key."""
    files = {"state.safetensors": dump_state(state), "meta.json": _json(meta)}
    store.write("commits", key, files)


def read_commit(store: Store, key: str) -> tuple[ChainState, dict[str, float]] | None:
    """A chain's state and the numbers that were stored with it; None where there is none.

    Raises `DamagedError`.
    """
    files = store.read("commits", key)
    if files is None:
        return None
    try:
        meta = numbers(parse(files["meta.json"]))
        meta["validation_accuracy"]
        return load_state(files["state.safetensors"]), meta
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"the commit {key} cannot be read: {error}") from error


def write_measured(store: Store, key: str, test: Mapping[str, float]) -> None:
    """Stores the test accuracies of a commit, by task number, under their measurement key."""
    store.write("measurements", key, {"test.json": _json(test)})


def read_measured(store: Store, key: str) -> dict[str, float] | None:
    """A commit's test accuracies; None where they have not been measured. Raises `DamagedError`."""
    files = store.read("measurements", key)
    if files is None:
        return None
    try:
        return numbers(parse(files["test.json"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"the measurement {key} cannot be read: {error}") from error


def _json(data: Any) -> bytes:
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False).encode()
