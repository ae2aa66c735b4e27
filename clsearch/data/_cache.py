"""Images decoded once per node, by worker processes, straight into a file that later runs find."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import signal
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from torch import Tensor

from clsearch.data._stored import GIB, ImageFile
from clsearch.errors import ClsearchError, InputError
from clsearch.files import atomic_write, content_of, cores, parse

BATCH, WORKERS = 64, 8
"""Images that a worker decodes at a time; workers at most: each has torch in its memory."""

FEW = 4 * BATCH
"""Images that are decoded sooner than workers have started."""

Decoder = Callable[[Any], Tensor | str]
"""From an encoded image to uint8 `[C, H, W]`, or to the reason why it cannot be decoded."""


class MixedSizeError(Exception):
    """An image is of another size than the first. `name` is its name, `shape` its `[C, H, W]`."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__(name, shape)
        self.name, self.shape = name, shape


def decoded_file(
    images: Iterable[Any],
    image: ImageFile,
    decoder: Decoder,
    accept: Callable[[dict[int, str]], object],
) -> dict[int, str]:
    """Sees to it that the file `image` holds the decoded images; returns reasons by damaged row.

    A file that an earlier run left is taken if its length and its SHA-256 are right. Otherwise
    worker processes decode, each image into its row of a new file, which takes its name when it is
    complete and `accept`, which may raise, has seen what is damaged. Raises `InputError` for a
    folder without room or that cannot be written to, `MixedSizeError`, and `ClsearchError` where
    the workers die.
    """
    known = _known(image)
    if known is None:
        try:
            with new_file(image) as place:
                known = _decode_all(images, image, place, decoder)
                accept(known)
                digest = _sha256(place)
                place.replace(image.path)
        except OSError as error:
            raise _unusable(image, error.strerror or str(error)) from error
        content = {"sha256": digest, "damaged": sorted(known.items())}
        atomic_write(image.manifest, json.dumps(content))
    accept(known)
    return known


def _known(image: ImageFile) -> dict[int, str] | None:
    """What is damaged of the images in a file that is there and whole; None where it is not."""
    try:
        content = parse(content_of(image.manifest))
        if image.path.stat().st_size != image.size:
            return None
        if _sha256(image.path) != content["sha256"]:
            return None
        return {int(row): str(reason) for row, reason in content["damaged"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def new_file(image: ImageFile) -> Iterator[Path]:
    """A file of the right length under a passing name; those of runs that were killed go first.

    Raises `OSError` where there is no room for it.
    """
    folder, size = image.path.parent, image.size
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.part"):
        with contextlib.suppress(OSError), old.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held while it is written
            old.unlink()
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"{free / GIB:.1f} GiB are free, {size / GIB:.1f} are needed")
    made = False
    while not made:
        place = folder / f"{uuid.uuid4().hex}.part"
        try:
            with place.open("xb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                made = place.exists()  # or a run that swept before it was locked took it away
                if made:
                    stream.truncate(size)
                    yield place
        finally:
            place.unlink(missing_ok=True)


def _unusable(image: ImageFile, reason: str) -> InputError:
    return InputError(
        "scenario.cache",
        str(image.path.parent),
        f"a folder that {image.size / GIB:.1f} GiB of decoded images can be written to",
        f"The reason: {reason}. Give another `cache`, or more `memory` if the images fit into it.",
    )


def _decode_all(
    images: Iterable[Any], image: ImageFile, place: Path, decoder: Decoder
) -> dict[int, str]:
    """Decodes every image into its row of `place`; a few batches are under way at a time."""
    work = partial(_decode_batch, place, image.shape, decoder)
    damaged, under_way = dict[int, str](), deque[Future[dict[int, str]]]()
    batches = _batches(images)
    if image.count <= FEW:
        for start, batch in batches:
            damaged |= work(start, batch)
        return damaged
    workers = min(cores(), WORKERS)
    context = get_context("spawn")  # a fork would copy locks that torch's threads may hold
    try:
        with ProcessPoolExecutor(workers, context, _begin_worker) as pool:
            for start, batch in batches:
                under_way.append(pool.submit(work, start, batch))
                if len(under_way) > workers + 1:
                    damaged |= under_way.popleft().result()
            for done in under_way:
                damaged |= done.result()
    except BrokenProcessPool as error:
        raise ClsearchError(
            "the processes that decode images have died: was memory short? A script of your own"
            " starts them well only from below `if __name__ == '__main__':`"
        ) from error
    return damaged


def _batches(images: Iterable[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Some images at a time, with the row of the first."""
    source, start = iter(images), 0
    while batch := list(islice(source, BATCH)):
        yield start, batch
        start += len(batch)


def _begin_worker() -> None:
    """A worker leaves Ctrl-C to its parent and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _decode_batch(
    place: Path, shape: tuple[int, int, int], decoder: Decoder, start: int, batch: list[Any]
) -> dict[int, str]:
    """Decodes some images into the rows from `start` on; returns reasons by damaged row."""
    damaged, size = dict[int, str](), math.prod(shape)
    with place.open("r+b", buffering=0) as stream:
        for row, encoded in enumerate(batch, start):
            pixels = decoder(encoded)
            if isinstance(pixels, str):
                damaged[row] = pixels
                continue
            if tuple(pixels.shape) != shape:
                raise MixedSizeError(encoded.name, tuple(pixels.shape))
            stream.seek(row * size)
            stream.write(pixels.contiguous().numpy().data)
    return damaged
