"""What CIFAR-10 and CIFAR-100 share: the binary version of the set, records of fixed length.

The Python version of the set is pickled and never read.
"""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from clsearch.data._download import fetch
from clsearch.data._labels import read_names
from clsearch.data._pixels import PixelOptions, raw_data
from clsearch.data.base import RawData, Samples, Source, as_samples
from clsearch.errors import InputError

SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_SITE = "https://www.cs.toronto.edu/~kriz"


class CifarSource(Source, ABC):
    """32x32 colour images in `<root>/<folder>`: label bytes, then red, green and blue planes."""

    Options: ClassVar = PixelOptions
    folder: ClassVar[str]
    archive: ClassVar[str]
    md5: ClassVar[str]
    """Of the archive, as the set's page gives it."""
    train_files: ClassVar[tuple[str, ...]]
    test_files: ClassVar[tuple[str, ...]]
    names_file: ClassVar[str]
    label_bytes: ClassVar[int]
    """Bytes before the pixels of a record; the last is the label."""
    classes: ClassVar[int]
    """How many there are."""

    def load(self, root: Path, download: bool) -> RawData:
        """Training and test parts, uint8 `[N, 3, 32, 32]`.

        Raises `InputError` for files that are missing or damaged and for a download that failed.
        """
        folder = root / self.folder
        if download and self._missing(folder):
            fetch(f"{_SITE}/{self.archive}", self.md5, folder, self.folder)
        self.check(root)
        names = self._names(folder / self.names_file)
        train, test = (self._read(folder, files) for files in (self.train_files, self.test_files))
        return raw_data(train, test, names, self.options, self.field)

    def check(self, root: Path) -> None:
        missing = self._missing(root / self.folder)
        if missing:
            files = (*self.train_files, *self.test_files, self.names_file)
            raise InputError(
                "scenario.root",
                str(root),
                f"a folder in which {self.folder} holds {', '.join(files)}",
                f"Missing: {', '.join(missing)}. Set `download: true` to have them fetched, or give"
                " another `root`.",
            )

    def _missing(self, folder: Path) -> list[str]:
        files = (*self.train_files, *self.test_files, self.names_file)
        return [name for name in files if not (folder / name).is_file()]

    def _names(self, path: Path) -> tuple[str, ...]:
        names = read_names(path, "scenario.root")
        if len(names) != self.classes:
            allowed = f"a file of {self.classes} names of classes"
            raise InputError("scenario.root", str(path), allowed, f"Found: {len(names)}.")
        return names

    def _read(self, folder: Path, files: tuple[str, ...]) -> Samples:
        """One part of the set, checked."""
        parts = [self._records(folder / name) for name in files]
        records = torch.from_numpy(np.concatenate(parts))
        images = records[:, self.label_bytes :].reshape(-1, *SHAPE)
        return as_samples(images, records[:, self.label_bytes - 1])

    def _records(self, path: Path) -> np.ndarray:
        """The records of a file, uint8 `[N, label_bytes + 3072]`."""
        length = self.label_bytes + _PIXELS
        step = f"Delete {self.folder}, then set `download: true`."
        try:
            content = np.frombuffer(path.read_bytes(), np.uint8)
        except OSError as error:
            said = f"The system said: {error}."
            raise InputError("scenario.root", str(path), "a readable file", said) from error
        if not len(content) or len(content) % length:
            allowed = f"one or more records of {length} bytes"
            found = f"It has {len(content)} bytes. {step}"
            raise InputError("scenario.root", str(path), allowed, found)
        records = content.reshape(-1, length)
        highest = int(records[:, self.label_bytes - 1].max())
        if highest >= self.classes:
            allowed = f"labels from 0 to {self.classes - 1}"
            raise InputError("scenario.root", str(path), allowed, f"Found: {highest}. {step}")
        return records
