"""Fetching published files: checked against their MD5 before anything is put in place."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

from clsearch.errors import InputError

_PATIENCE = 60.0
"""Seconds without an answer after which a download has failed."""
_FAILED = (
    *(OSError, ValueError, EOFError, HTTPException),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
)


def fetch(url: str, md5: str, folder: Path, inside: str | None = None) -> None:
    """Downloads a file into `folder`, or what the archive at `url` holds under `inside`.

    Nothing is put into `folder` unless the whole file matches `md5` (hex digits). Raises
    `InputError` when it cannot be fetched, checked, unpacked or written.
    """
    name = url.rpartition("/")[2]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        target = folder / name if inside is None else folder
        with alone(target, folder.parent) as done, _place(folder) as place:
            if done:
                return
            file, content = Path(place, name), Path(place, "content")
            _download(url, md5, file)
            if inside is None:
                folder.mkdir(exist_ok=True)
                file.replace(folder / name)
                return
            # `filter` refuses links and paths that lead out; ZIP archives take no such word
            if name.endswith(".zip"):
                shutil.unpack_archive(file, content)
            else:
                shutil.unpack_archive(file, content, filter="data")
            if folder.exists():
                shutil.copytree(content / inside, folder, dirs_exist_ok=True)
            else:
                (content / inside).replace(folder)  # in one step: there as a whole or not at all
    except _FAILED as error:
        raise not_fetched(name, folder, error) from error


def _place(folder: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-")


@contextlib.contextmanager
def alone(target: Path, folder: Path) -> Iterator[bool]:
    """Holds `folder` against other downloads into it; whether one of them has just put `target`
    in place."""
    before, waited = target.exists(), False
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(handle, fcntl.LOCK_EX)
            waited = True
        yield waited and not before and target.exists()
    finally:
        os.close(handle)


def _download(url: str, md5: str, file: Path) -> None:
    """Raises `ValueError` where what came is not what was published."""
    request = urllib.request.Request(url, headers={"User-Agent": "clsearch"})
    with urllib.request.urlopen(request, timeout=_PATIENCE) as answer, file.open("wb") as stream:
        shutil.copyfileobj(answer, stream, 1 << 20)
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
    if found.hexdigest() != md5:
        raise ValueError(f"{url} gave a file whose MD5 is {found.hexdigest()}, not {md5}")


def not_fetched(what: str, folder: Path, error: Exception) -> InputError:
    """The error of a download that did not come about, with its reason."""
    return InputError(
        "scenario.download",
        True,
        f"only where {what} can be fetched and unpacked into {folder}",
        f"The reason: {' '.join(str(error).split())}",
    )
