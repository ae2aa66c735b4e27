"""Files of an output folder: written whole or not at all, and owned by one driver at a time."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import importlib.metadata
import json
import os
import platform
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from clsearch.errors import DamagedError, InputError, StoreError
from clsearch.memory import machine_memory

ABOUT = "search.json"
"""What a search was: its tasks, the machine that drove it and its versions."""
_NAMES = ("clsearch", "torch", "ray", "mlflow", "numpy")
LOCK = ".lock"
"""The file that a driver holds locked in its output folder; it says in a line who that is."""
ENTRY = "clsearch-entry-"
"""What temporary folders of what MLflow is told begin with; the number of their process is next,
then its host, which may share the place with others."""
PATIENCE = 0.5
"""Seconds to wait for a folder that somebody only looks at."""
SHARE, JSON_SHARE = 4, 16
"""A file is read that has no more than this part of the machine's memory, a quarter or a sixteenth:
tensors take about three times their file, what JSON says ten times its text."""


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replaces a file in one step, like `replaced`."""
    with replaced(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


def entry_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder for the files of what MLflow is told."""
    return tempfile.TemporaryDirectory(prefix=f"{ENTRY}{os.getpid()}-{platform.node()}-")


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Replaces a file by what is written meanwhile, in one step: a reader sees the old or the new
    one, never a part, even after a power cut.

    Raises `StoreError` when it cannot be written (disk full, no permission).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with place.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            place.replace(path)
        except BaseException:
            place.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def half_written(folder: Path) -> set[Path]:
    """What `replaced` left in a folder where it was killed."""
    return set(folder.glob(".*.tmp"))


def sha256_of(content: bytes) -> str:
    """The SHA-256 of a file's content, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file of any size, 64 hex digits. Raises `StoreError`."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def content_of(path: Path) -> bytes:
    """A file's content. Raises what `check_readable` does, and `OSError`."""
    check_readable(path, path.stat())
    return path.read_bytes()


def check_readable(path: Path | str, found: os.stat_result) -> None:
    """Looks at a file before it is read, which may come from anybody: `found` is what the system
    says of it. Raises `DamagedError` for what is no file, and `StoreError` for what does not fit
    into this machine's memory, and may be whole all the same."""
    if not stat.S_ISREG(found.st_mode):
        raise DamagedError(f"{path} is no ordinary file")
    if found.st_size > machine_memory() // (JSON_SHARE if str(path).endswith(".json") else SHARE):
        raise too_large(path, f"its {found.st_size / (1 << 30):,.1f} GiB")


def too_large(path: Path | str, what: str) -> StoreError:
    """What is said of a file that takes too much memory to read."""
    step = "Use a machine with more, or delete it if it is none of yours"
    return StoreError(f"{path}: {what} do not fit into this machine's memory. {step}")


def parse(content: bytes | str) -> Any:
    """JSON; raises `ValueError` for anything else, however deep."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deep") from error


def program_path(name: str) -> str:
    """Where a program lies that was installed with this Python, as short as it can be typed."""
    path = Path(sys.executable).with_name(name)
    near = os.path.relpath(path)
    return near if len(near) < len(str(path)) and not near.startswith("..") else str(path)


def cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The CPU's own name where the system tells it, with family and model on Linux."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in path.read_text().splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, _, value in lines}
    name = fields.get("model name") or platform.machine()
    family = fields.get("cpu family")
    return f"{name} (family {family}, model {fields.get('model')})" if family else name


def machine() -> dict[str, Any]:
    """This machine and the versions that a search depends on."""
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _NAMES}
    about = {"host": platform.node(), "cpu": processor(), "cores": cores()}
    return {"machine": about | {"system": platform.platform()}, "versions": versions}


def holder(folder: Path) -> str | None:
    """Who holds the folder, as far as the lock file says; None where nobody does. Looking does not
    hold it."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _named(handle)
    finally:
        os.close(handle)
    return None


def _named(handle: int) -> str:
    """What a holder wrote of itself; another process where it has not come to that, or is not to
    be read."""
    said = os.pread(handle, 400, 0).decode(errors="replace")
    line = said.partition("\n")[0]
    return line if "\n" in said and line.isprintable() else "another process"


def _itself() -> str:
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return f"process {os.getpid()} on {platform.node()} since {now}"


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Holds a folder against a second driver while the block runs.

    Raises `InputError`, with who it is, when another process holds it. The hold ends with the
    process, however it ends: a lock file that is left behind is nobody's.
    """
    handle = _hold(folder)
    try:
        with contextlib.suppress(
            OSError
        ):  # a disk may be full, and the folder is held all the same
            os.truncate(handle, 0)
            os.pwrite(handle, f"{_itself()}\n".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        os.close(handle)


def _hold(folder: Path) -> int:
    """The lock file of a folder, open and locked."""
    end, path = time.monotonic() + PATIENCE, folder / LOCK
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        try:
            handle = os.open(path, flags, 0o666)
        except OSError as error:
            raise _not_held(folder, f"{path}: {error.strerror}.") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.lstat(path)):
                    return handle
            os.close(handle)  # its holder has just removed it
        except BlockingIOError as error:
            step = f"It is held by {_named(handle)}: wait for it, or stop it."
            os.close(handle)
            if time.monotonic() > end:
                raise _not_held(folder, step) from error
            time.sleep(0.05)
        except OSError as error:
            os.close(handle)
            raise _not_held(folder, f"{path} cannot be locked: {error.strerror}.") from error


def _not_held(folder: Path, step: str) -> InputError:
    allowed = "a folder that no other run is writing to"
    return InputError("output folder", str(folder), allowed, step)


def check_writable(to: Path, force: bool) -> None:
    """Raises `InputError` for a file that cannot be written because of where it is, or because it
    exists, unless `force`."""
    check_parent(to)
    check_file(to, force)


def check_parent(to: Path) -> None:
    """Raises `InputError` for what cannot be written because of where it is."""
    folder = to.absolute().parent
    if not folder.is_dir():
        step = f"There is no folder {folder}."
        raise InputError("to", str(to), "a name in a folder that exists", step)
    if not os.access(folder, os.W_OK | os.X_OK):
        step = f"There is no permission to write into {folder}."
        raise InputError("to", str(to), "a name in a folder that can be written", step)


def check_file(to: Path, force: bool) -> None:
    """Raises `InputError` for a folder, and for a file that exists, unless `force`."""
    if to.is_dir():
        raise InputError("to", str(to), "a file in a folder that exists", "It is a folder.")
    check_new(to, force)


def check_new(to: Path, force: bool) -> None:
    """Raises `InputError` for a file or folder that exists, unless `force`."""
    if os.path.lexists(to) and not force:
        step = "Use --force to replace it."
        raise InputError("to", str(to), "a name that does not exist yet", step)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the cyclic garbage collector, which takes half of the time where as many objects are
    made as a run has records and points, none of which is garbage."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
