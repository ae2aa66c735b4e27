"""SVHN: digits of house numbers."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from clsearch.data._download import fetch
from clsearch.data._mat import read_mat
from clsearch.data._pixels import PixelOptions, raw_data
from clsearch.data.base import RawData, Samples, Source, as_samples
from clsearch.errors import InputError

_SITE = "http://ufldl.stanford.edu/housenumbers"
_FILES = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
_SIDE = 32


class SVHN(Source):
    """73,257 training and 26,032 test images 32x32 of ten digits (Netzer et al. 2011).

    Read from the cropped-digit files `SVHN/train_32x32.mat` and `SVHN/test_32x32.mat`; the label
    10, which the set gives to the digit 0, becomes 0. The `extra` part is not read.
    """

    name: ClassVar[str] = "svhn"
    licence: ClassVar[str] = "non-commercial use"
    Options: ClassVar = PixelOptions

    def load(self, root: Path, download: bool) -> RawData:
        """Training and test parts, uint8 `[N, 3, 32, 32]`.

        Raises `InputError` for files that are missing or damaged and for a download that failed.
        """
        for name in _missing(root) if download else ():
            fetch(f"{_SITE}/{name}", _FILES[name], root / "SVHN")
        self.check(root)
        train, test = (_read(root / "SVHN" / name) for name in _FILES)
        return raw_data(train, test, tuple("0123456789"), self.options, self.field)

    def check(self, root: Path) -> None:
        missing = _missing(root)
        if missing:
            allowed = f"a folder in which SVHN holds {', '.join(_FILES)}"
            step = f"Missing: {', '.join(missing)}. Set `download: true` to have them fetched,"
            raise InputError("scenario.root", str(root), allowed, f"{step} or give another `root`.")


def _missing(root: Path) -> list[str]:
    return [name for name in _FILES if not (root / "SVHN" / name).is_file()]


def _read(path: Path) -> Samples:
    """One file: `X` uint8 `[32, 32, 3, N]` and `y` from 1 to 10."""
    try:
        images, labels = read_mat(path, "X", "y")
    except ValueError as error:
        said = " ".join(str(error).split())
        allowed = "an undamaged file of cropped digits, with X and y"
        raise InputError("scenario.root", str(path), allowed, f"The reader said: {said}") from error
    labels = labels.reshape(-1)
    right = images.dtype == np.uint8 and images.shape == (_SIDE, _SIDE, 3, len(labels))
    if not right or not len(labels) or not 0 <= labels.min() <= labels.max() <= 10:
        found = f"X {images.dtype} {list(images.shape)}, y {list(labels.shape)}"
        allowed = "X uint8 [32, 32, 3, N] and as many labels from 1 to 10 in y"
        raise InputError("scenario.root", str(path), allowed, f"Found: {found}.")
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
    return as_samples(pixels, torch.from_numpy(labels.astype(np.int64) % 10))
