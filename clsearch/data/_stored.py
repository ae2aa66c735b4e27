"""Images that stay in a file and are read batch by batch: sets larger than memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clsearch.errors import StoreError
from clsearch.files import SHARE
from clsearch.memory import machine_memory

GIB = 1 << 30
CHUNK = 2 << 20
"""Bytes of a file that are worked on at a time."""


class Storage:
    """Where decoded images are kept: in memory up to `limit` bytes, beyond it in files of `folder`.

    One storage serves all sources of a scenario: what comes first takes its part first. Default: a
    quarter of the machine's memory, since the split, the task at hand and the workers' shared copy
    of it take as much again, and the folder `$CLSEARCH_CACHE`, else `~/.cache/clsearch`.
    """

    def __init__(self, limit: int | None = None, folder: str | None = None) -> None:
        self.left = machine_memory() // SHARE if limit is None else limit
        place = folder or os.environ.get("CLSEARCH_CACHE") or "~/.cache/clsearch"
        self.folder = Path(place).expanduser().absolute()

    def takes(self, size: int) -> bool:
        """Whether `size` bytes more may be kept in memory; if so they are counted."""
        if size > self.left:
            return False
        self.left -= size
        return True


@dataclass(frozen=True)
class ImageFile:
    """`count` images uint8 `[C, H, W]`, one after the other in a file.

    `order` int64 `[H·W]`, if there is one, is the order that pixels are read in.
    """

    path: Path
    count: int
    shape: tuple[int, int, int]
    order: Tensor | None = None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.count * math.prod(self.shape)

    @property
    def manifest(self) -> Path:
        """The file beside it with its SHA-256 and what is damaged, written last."""
        return self.path.with_suffix(".json")

    def checked(self) -> ImageFile:
        """This file; raises `StoreError` where it is not there, or of another length."""
        try:
            there = self.path.stat().st_size
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from error
        if there != self.size:
            raise self._lost(f"it has {there} bytes")
        return self

    def read(self, rows: Tensor) -> Tensor:
        """The images `rows` int64 `[n]`, uint8 `[n, C, H, W]`.

        Read and not mapped: a mapped page counts as this process's memory, and a file that is cut
        while it is mapped ends the process.
        """
        size = math.prod(self.shape)
        pixels = np.empty((len(rows), size), np.uint8)
        try:
            with self.path.open("rb", buffering=0) as stream:
                for place, row in zip(pixels, rows.tolist(), strict=True):
                    stream.seek(row * size)
                    if stream.readinto(place.data) != size:
                        raise self._lost(f"it ends before image {row}")
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from error
        images = torch.from_numpy(pixels).view(-1, *self.shape)
        return images if self.order is None else permuted(images, self.order)

    def _lost(self, reason: str) -> StoreError:
        return StoreError(
            f"the decoded images {self.path} cannot be read ({reason}): nothing may be deleted or"
            " changed in their folder during a run. Run again to have them made"
        )


@dataclass(frozen=True)
class StoredImages:
    """uint8 `[N, C, H, W]` as a tensor has them, of which only what is asked for is in memory.

    Image i is row `rows[i]` of the pieces, which stand one after the other; `rows` int64 `[N]`.
    """

    pieces: tuple[ImageFile | Tensor, ...]
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        first = self.pieces[0]
        one = first.shape if isinstance(first, ImageFile) else first.shape[1:]
        return torch.Size((len(self.rows), *one))

    def __getitem__(self, which: slice) -> Tensor:
        """The images of a slice, read."""
        return self._read(self.rows[which])

    def __iter__(self) -> Iterator[Tensor]:
        """The images one by one, `[C, H, W]`, read some at a time."""
        for images in chunks(self):
            yield from images

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The images at `index` int64 `[n]`, read; `dim` is 0."""
        return self._read(self.rows[index.cpu()])

    def part(self, index: Tensor) -> StoredImages:
        """The images at `index` (int64 `[n]` or bool `[N]`), not read."""
        return replace(self, rows=self.rows[index.cpu()])

    def permuted(self, order: Tensor) -> StoredImages:
        """The images with their pixels in another order, not read."""
        return replace(
            self,
            pieces=tuple(
                replace(p, order=order if p.order is None else p.order[order])
                if isinstance(p, ImageFile)
                else permuted(p, order)
                for p in self.pieces
            ),
        )

    def placed(self, place: Callable[[ImageFile], ImageFile]) -> StoredImages:
        """These images with every file where `place` says that it is."""
        return replace(
            self, pieces=tuple(place(p) if isinstance(p, ImageFile) else p for p in self.pieces)
        )

    def _read(self, rows: Tensor) -> Tensor:
        images = torch.empty((len(rows), *self.shape[1:]), dtype=torch.uint8)
        start = 0
        for piece in self.pieces:
            end = start + _length(piece)
            here = (rows >= start) & (rows < end)
            own = rows[here] - start
            if isinstance(piece, ImageFile):
                images[here] = piece.read(own)
            else:
                images[here] = piece[own]
            start = end
        return images


Images = Tensor | StoredImages


def _length(piece: ImageFile | Tensor) -> int:
    return piece.count if isinstance(piece, ImageFile) else len(piece)


def permuted(images: Tensor, order: Tensor) -> Tensor:
    """Images `[N, C, H, W]` with their pixels in the order int64 `[H·W]`, all channels alike."""
    return images.flatten(2)[:, :, order].view_as(images)


def part_of(images: Images, index: Tensor) -> Images:
    """The images at `index` (int64 `[n]` or bool `[N]`): copied in memory, not read from files."""
    if isinstance(images, StoredImages):
        return images.part(index)
    return images[index].contiguous()


def joined(parts: Sequence[Images]) -> Images:
    """Several sets of images one after the other; in memory if all of them are."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts):
        return torch.cat(tensors)
    pieces: list[ImageFile | Tensor] = []
    rows, start = [], 0
    for part in parts:
        own = part.pieces if isinstance(part, StoredImages) else (part.cpu(),)
        rows.append(
            (part.rows if isinstance(part, StoredImages) else torch.arange(len(part))) + start
        )
        pieces += own
        start += sum(map(_length, own))
    return StoredImages(tuple(pieces), torch.cat(rows))


def chunks(images: Images) -> Iterator[Tensor]:
    """All images in order, some megabytes at a time, contiguous."""
    size = max(1, CHUNK // max(1, math.prod(images.shape[1:])))
    for i in range(0, len(images), size):
        yield images[i : i + size].contiguous()
