"""Files of decoded images on the other hosts of a cluster: fetched there, once for each host."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from clsearch.data._cache import new_file
from clsearch.data._download import alone
from clsearch.data._stored import ImageFile
from clsearch.errors import StoreError
from clsearch.files import atomic_write, parse

Stream = Callable[[Path], Iterator[bytes]]
"""The content of a file on the driver's host, piece by piece; raises `StoreError`."""


def on_this_host(image: ImageFile, folder: Path, stream: Stream) -> ImageFile:
    """The file `image` of the driver's host as it is on this one: at the same path, or in `folder`,
    where it is fetched to if it is not there.

    Who fetches it holds the folder meanwhile: others wait, and find it. It takes its name when its
    SHA-256 is the one in the driver's manifest, and its own manifest comes last. Raises
    `StoreError`.
    """
    own = replace(image, path=folder / image.path.name)
    for file in (image, own):
        if _whole(file):
            return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(own.path, folder):
            if not _whole(own):
                _fetch(image, own, stream)
    except OSError as error:
        raise _not_here(own, error.strerror or str(error)) from error
    return own


def _whole(image: ImageFile) -> bool:
    """Whether a file is there whose SHA-256 was looked at, and that was left alone since.

    Its manifest was written after that look: whatever has changed the file since is newer.
    """
    try:
        there, manifest = image.path.stat(), image.manifest.stat()
    except OSError:
        return False
    return there.st_size == image.size and there.st_ctime_ns <= manifest.st_ctime_ns


def _fetch(image: ImageFile, own: ImageFile, stream: Stream) -> None:
    """Puts a file of the driver's host into place, and its manifest."""
    manifest, sha = b"".join(stream(image.manifest)), hashlib.sha256()
    try:
        expected = str(parse(manifest)["sha256"])
    except (ValueError, LookupError, TypeError) as error:
        raise _not_here(own, f"{image.manifest} of the driver's host is damaged") from error
    with new_file(own) as place:
        with place.open("r+b") as file:
            for piece in stream(image.path):
                file.write(piece)
                sha.update(piece)
        if sha.hexdigest() != expected:
            raise _not_here(own, f"{image.path} of the driver's host is not what was decoded")
        place.replace(own.path)
    atomic_write(own.manifest, manifest)


def _not_here(own: ImageFile, reason: str) -> StoreError:
    return StoreError(
        f"the decoded images {own.path.name} cannot be fetched into {own.path.parent} on"
        f" {platform.node()}: {reason}. Make room there, or name another folder: `cache` of the"
        " scenario, or $CLSEARCH_CACHE where Ray was started on that host"
    )
