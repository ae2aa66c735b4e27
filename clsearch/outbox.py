"""A durable queue in a folder and the thread that empties it. Knows nothing of MLflow.

One JSON file is one entry; its name carries a number (the order), its kind and a digest of its
content. The last two are its identity: what was sent once is not sent again.
Files of an entry lie beside it in a folder that is complete before the JSON file appears. An entry
is removed only after its identity stands in the ledger, so that a process killed at any point
delivers again what it may have delivered before: the receiver has to bear that.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsearch.errors import DamagedError, StoreError, UndeliveredError
from clsearch.files import atomic_write, content_of, entry_folder, half_written, parse
from clsearch.records import digest
from clsearch.redaction import redacted, secret_name

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between attempts: doubled after each failure, up to the longest."""

PATIENCE = 5
"""Failures of one entry after which the next one is tried, to see which of the two is to blame."""

LAST_TRIES = 3
"""Failures after which a closing courier gives up although time is left."""


NUMBERED = re.compile(r"\d{8,}-")
"""How the names of entries begin."""

FINISH = "finish"
"""The kind of entry that counts as sent before only if nothing else was sent since."""


def jsonable(value: Any, secret: bool = False) -> Any:
    """A JSON value: tuples as lists, numbers that are not finite as None, the rest as text, which
    holds no secrets. `secret`: it has the name of one, and no text of it is said."""
    if isinstance(value, Mapping):
        return {
            str(key): jsonable(part, secret or secret_name(str(key))) for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [jsonable(part, secret) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, int | None):
        return value
    return "…" if secret and str(value) else redacted(str(value))


def describe(error: Exception) -> str:
    """An error in one line, without secrets."""
    if isinstance(error, UndeliveredError):
        return str(error)
    return redacted(" ".join(f"{type(error).__name__}: {error}".split()))


Files = Callable[[Path], Mapping[str, Path]]


@dataclass(frozen=True)
class Entry:
    """One entry: its JSON file, and the folder of its files (which need not exist)."""

    file: Path

    @property
    def number(self) -> int:
        return int(self.file.stem.partition("-")[0])

    @property
    def identity(self) -> str:
        return self.file.stem.partition("-")[2]

    @property
    def files(self) -> Path:
        return self.file.with_suffix(".files")

    def plain(self) -> bool:
        """Whether it is made of ordinary files and folders: links lead elsewhere, and devices have
        no end. An outbox may come from somebody else, with its folder."""
        beside = [self.files] if os.path.lexists(self.files) else []
        for folder, folders, files in os.walk(self.files):
            beside += [Path(folder, name) for name in (*folders, *files)]
        modes = [path.lstat().st_mode for path in beside]
        ordinary = all(stat.S_ISREG(mode) or stat.S_ISDIR(mode) for mode in modes)
        return ordinary and stat.S_ISREG(self.file.lstat().st_mode)

    def read(self) -> dict[str, Any]:
        """The entry's content. Raises `DamagedError` if it is not what was written."""
        if not self.plain():
            raise DamagedError(f"{self.file} has a link, a device or a pipe among its files.")
        try:
            content = parse(content_of(self.file))
        except (ValueError, StoreError) as error:  # or too large
            raise DamagedError(f"{self.file} is not valid JSON to read: {error}") from error
        if not isinstance(content, dict):
            raise DamagedError(f"{self.file} does not hold an entry.")
        return content


class Outbox:
    """The folder of waiting entries, in order. One process uses it at a time.

    Raises `StoreError` for a link: what is half written in there is deleted.
    """

    def __init__(self, folder: Path) -> None:
        if folder.is_symlink():
            raise StoreError(f"{folder} is a link. Move the folder that it leads to here.")
        self.folder = folder
        self._lock = threading.Lock()
        files = folder.glob("*-*.json") if folder.is_dir() else []
        found = [Entry(file) for file in files if NUMBERED.match(file.name)]
        found.sort(key=lambda entry: entry.number)
        self._waiting = deque(entry.file.name for entry in found)
        self._next = found[-1].number + 1 if found else 1
        self._sweep()

    def __len__(self) -> int:
        return len(self._waiting)

    def identities(self) -> list[str]:
        """What waits, oldest first."""
        return [self._entry(name).identity for name in list(self._waiting)]

    def _entry(self, name: str) -> Entry:
        return Entry(self.folder / name)

    def append(self, identity: str, content: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Adds an entry with copies of `files` (path inside the entry: source, file or folder).
        Raises `StoreError` when it cannot be written; nothing is left behind then.
        """
        with self._lock:
            entry = self._entry(f"{self._next:08d}-{identity}.json")
            try:
                for inside, source in files.items():
                    target = entry.files / inside
                    target.parent.mkdir(parents=True, exist_ok=True)
                    copy = shutil.copytree if source.is_dir() else shutil.copyfile
                    copy(source, target)
                atomic_write(entry.file, json.dumps(content, allow_nan=False))
            except (OSError, shutil.Error, StoreError) as error:
                shutil.rmtree(entry.files, ignore_errors=True)
                if isinstance(error, StoreError):
                    raise
                raise StoreError(f"{entry.files} cannot be written: {error}") from error
            self._next += 1
            self._waiting.append(entry.file.name)

    def first(self) -> Entry | None:
        return self._entry(self._waiting[0]) if self._waiting else None

    def second(self) -> Entry | None:
        return self._entry(self._waiting[1]) if len(self._waiting) > 1 else None

    def remove(self, entry: Entry) -> None:
        """Forgets a delivered entry, and what was set aside of it when it was refused before.
        Raises `OSError` when it cannot be deleted."""
        kept = self._kept(entry)
        kept.unlink(missing_ok=True)
        shutil.rmtree(kept.with_suffix(".files"), ignore_errors=True)
        self._drop(entry)

    def _kept(self, entry: Entry) -> Path:
        """Where an entry goes that is refused."""
        return self.folder / "rejected" / f"{entry.identity}.json"

    def _drop(self, entry: Entry) -> None:
        with self._lock:
            entry.file.unlink(missing_ok=True)
            if entry.files.is_symlink():
                entry.files.unlink()
            shutil.rmtree(entry.files, ignore_errors=True)
            self._waiting.remove(entry.file.name)

    def reject(self, entry: Entry, reason: str) -> None:
        """Moves an entry to `rejected/`, with the reason. Raises `StoreError` or `OSError`."""
        kept, plain = self._kept(entry), entry.plain()
        try:
            text = content_of(entry.file).decode(errors="replace") if plain else ""
        except StoreError:
            text = ""  # too large
        atomic_write(kept, json.dumps({"reason": reason, "entry": text}, indent=1))
        if plain and entry.files.is_dir():
            shutil.rmtree(kept.with_suffix(".files"), ignore_errors=True)
            shutil.copytree(entry.files, kept.with_suffix(".files"))
        self._drop(entry)

    def rejected(self) -> list[Path]:
        """The entries that were refused for good."""
        return sorted((self.folder / "rejected").glob("*.json"))

    def tidy(self) -> None:
        """Removes the folder if nothing waits and nothing was rejected."""
        with self._lock, contextlib.suppress(OSError):
            if not self._waiting:
                with contextlib.suppress(FileNotFoundError):
                    (self.folder / "rejected").rmdir()
                self.folder.rmdir()

    def _sweep(self) -> None:
        """Deletes what a killed process left half written."""
        if not self.folder.is_dir():
            return
        for path in half_written(self.folder):
            path.unlink(missing_ok=True)
        for path in self.folder.glob("*.files"):
            if not path.with_suffix(".json").exists():
                shutil.rmtree(path, ignore_errors=True)


class Ledger:
    """The identities already delivered to one receiver, oldest first: a text file, one a line.
    Raises `StoreError` where it cannot be read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            lines = content_of(file).decode(errors="replace").split()
        except FileNotFoundError:
            lines = []
        except OSError as error:
            raise StoreError(f"{file} cannot be read: {error}") from error
        self._known = dict.fromkeys(lines)

    def __contains__(self, identity: object) -> bool:
        return identity in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._known))

    def add(self, identity: str) -> None:
        """Notes a delivery. Raises `OSError` when it cannot be written."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(f"\n{identity}\n")  # the first newline ends a line cut short by a kill
        self._known[identity] = None

    def clear(self) -> None:
        """Forgets everything: the receiver was deleted."""
        self._file.unlink(missing_ok=True)
        self._known.clear()


class Courier:
    """Delivers the entries of an outbox in order, in one daemon thread started when needed.

    `deliver(content, files)` raises on failure. `refused(error)` tells whether the receiver said
    no to this very entry: refused twice, it goes to `rejected/` and the queue moves on. Any other
    failure is tried again after a pause. An entry that fails `PATIENCE` times while the one after
    it gets through is rejected too.
    """

    def __init__(
        self,
        outbox: Outbox,
        ledger: Ledger,
        deliver: Callable[[dict[str, Any], Path], None],
        refused: Callable[[Exception], bool],
    ) -> None:
        self._outbox, self._ledger = outbox, ledger
        self._deliver, self._refused = deliver, refused
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        waiting = [name for name in outbox.identities() if name not in ledger]
        self._sent = set(waiting)
        """What was sent and is not in the ledger: it waits, or was rejected."""
        others = [name for name in (*ledger, *waiting) if not name.startswith(FINISH)]
        self._latest = others[-1] if others else None
        self.problem = ""

    def send(self, kind: str, content: Mapping[str, Any], files: Files | None = None) -> None:
        """Puts an entry into the outbox unless it was sent before, with the time in `time`.

        `files`, asked for only then, gives the entry's files: path inside it to source. It may make
        them in the temporary folder it is given. Raises `StoreError` when it cannot be written.
        """
        plain = {"kind": kind, **jsonable(content)}
        after = self._latest if kind == FINISH else None
        identity = f"{kind}-{digest([plain, after])}"
        if identity in self._sent or identity in self._ledger:
            return
        self._sent.add(identity)  # before it can be delivered
        try:
            with entry_folder() as folder:
                sources = files(Path(folder)) if files else {}
                self._outbox.append(identity, {**plain, "time": time.time()}, sources)
        except BaseException as error:
            self._sent.discard(identity)
            if isinstance(error, OSError):  # of the disk for temporary files
                raise StoreError(f"an entry for MLflow cannot be written: {error}") from error
            raise
        if kind != FINISH:
            self._latest = identity
        self.wake()

    def wake(self) -> None:
        """There is something to deliver. Does nothing once closed: it waits for the next run."""
        if self._thread is None and not self._closing.is_set():
            self._thread = threading.Thread(target=self._work, name="clsearch-outbox", daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.notify_all()

    def close(self, timeout: float) -> int:
        """Delivers what it can within `timeout` seconds; returns how many entries still wait."""
        self._closing.set()
        try:
            with self._changed:
                self._changed.notify_all()
            if self._thread is not None:
                self._thread.join(max(0.0, timeout))
        finally:
            self._stop.set()
        return len(self._outbox)

    def _work(self) -> None:
        failures = last_tries = 0
        while (entry := self._take()) is not None and not self._stop.is_set():
            if self._attempt(entry) or (failures >= PATIENCE - 1 and self._passed_over(entry)):
                failures = last_tries = 0
                continue
            failures += 1
            last_tries += self._closing.is_set()
            if last_tries >= LAST_TRIES:
                return
            self._pause(min(FIRST_PAUSE * 2 ** min(failures - 1, 10), LONGEST_PAUSE))

    def _take(self) -> Entry | None:
        """The oldest entry, waited for; None when closing and nothing is left."""
        while (entry := self._outbox.first()) is None:
            self._outbox.tidy()
            with self._changed:
                if self._closing.is_set():
                    return None
                if self._outbox.first() is None:
                    self._changed.wait()
        return entry

    def _pause(self, seconds: float) -> None:
        """Waits, but not for long once the courier is closing."""
        if self._closing.is_set():
            self._stop.wait(min(seconds, FIRST_PAUSE))
        else:
            self._closing.wait(seconds)

    def _attempt(self, entry: Entry) -> bool:
        """Delivers or rejects an entry; False if it has to wait."""
        error = self._try(entry)
        if error is not None and self._refused(error):
            error = self._try(entry)
            if error is not None and self._refused(error):
                return self._reject(entry, error)
        return error is None

    def _passed_over(self, entry: Entry) -> bool:
        """Whether the next entry gets through while this one, tried once more, does not."""
        following = self._outbox.second()
        if following is None or self._try(following) is not None:
            return False
        error = self._try(entry)
        return error is None or self._reject(entry, error)

    def _try(self, entry: Entry) -> Exception | None:
        try:
            if entry.identity not in self._ledger:
                self._deliver(entry.read(), entry.files)
                self._ledger.add(entry.identity)
            self._sent.discard(entry.identity)
            self._outbox.remove(entry)
        except Exception as error:  # noqa: BLE001 - whatever a client raises, the thread goes on
            self.problem = describe(error)
            return error
        self.problem = ""
        return None

    def _reject(self, entry: Entry, error: Exception) -> bool:
        try:
            self._outbox.reject(entry, describe(error))
        except (OSError, StoreError) as trouble:
            self.problem = describe(trouble)
            return False
        return True
