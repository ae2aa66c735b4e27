"""A durable queue in a folder. Knows nothing of MLflow.

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
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsearch.errors import DamagedError, StoreError
from clsearch.files import atomic_write, content_of, file_sha256, half_written, parse
from clsearch.records import digest
from clsearch.redaction import redacted, secret_name

NUMBERED = re.compile(r"\d{8,}-")
"""How the names of entries begin."""


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
        except StoreError as error:  # it is too large
            raise DamagedError(str(error)) from error
        except ValueError as error:
            raise DamagedError(f"{self.file} is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise DamagedError(f"{self.file} does not hold an entry.")
        wanted = content.pop("sha256", None)
        try:
            found = _sums(content, self.files)
        except (OSError, StoreError, ValueError) as error:  # a number that JSON has not, among them
            raise DamagedError(f"{self.file} cannot be checked: {error}") from error
        # A delivery that failed has left files of its own beside those that were written.
        if not isinstance(wanted, dict) or not {"", *wanted} <= {
            name for name, sum in found.items() if wanted.get(name) == sum
        }:
            raise DamagedError(f"{self.file}, or a file of it, is not what was written.")
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
                sums = _sums(content, entry.files)
                atomic_write(entry.file, json.dumps({**content, "sha256": sums}, allow_nan=False))
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
        for beside in (".json", ".entry", ".files"):
            _delete(kept.with_suffix(beside))
        self._drop(entry)

    def _kept(self, entry: Entry) -> Path:
        """Where an entry goes that is refused."""
        return self.folder / "rejected" / f"{entry.identity}.json"

    def _drop(self, entry: Entry) -> None:
        with self._lock:
            _delete(entry.file)
            _delete(entry.files)
            self._waiting.remove(entry.file.name)

    def reject(self, entry: Entry, reason: str) -> None:
        """Moves an entry to `rejected/`, with the reason; one that is too large to read, or a
        folder, goes there as it is, `ID.entry`. Raises `StoreError` or `OSError`."""
        kept, plain, text = self._kept(entry), entry.plain(), None
        folder = entry.file.is_dir() and not entry.file.is_symlink()
        if not folder:
            with contextlib.suppress(StoreError):
                text = content_of(entry.file).decode(errors="replace") if plain else ""
        atomic_write(kept, json.dumps({"reason": reason, "entry": text}, indent=1))
        if plain and entry.files.is_dir():
            _delete(kept.with_suffix(".files"))
            shutil.copytree(entry.files, kept.with_suffix(".files"))
        if text is None:  # last: without it, what lies beside it is nobody's
            _delete(kept.with_suffix(".entry"))
            entry.file.replace(kept.with_suffix(".entry"))
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
        lone = [p for p in self.folder.glob("*.files") if not p.with_suffix(".json").exists()]
        for path in (*half_written(self.folder), *lone):
            with contextlib.suppress(OSError):
                _delete(path)


def _sums(content: Mapping[str, Any], files: Path) -> dict[str, str]:
    """The checksums of an entry: of its files by their names, and, without one, of its content."""
    paths = sorted(path for path in files.rglob("*") if path.is_file())
    sums = {path.relative_to(files).as_posix(): file_sha256(path) for path in paths}
    return {"": digest(content), **sums}


def _delete(path: Path) -> None:
    """Deletes a folder with all in it, or a file or link, or nothing. Raises `OSError`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
