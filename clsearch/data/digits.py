"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from clsearch.data.base import RawData, Source, as_samples

FILE = "datasets/data/digits.csv.gz"
"""Where scikit-learn keeps them: 64 pixels and the digit a line."""


class Digits(Source):
    """1,797 images 8x8 of ten digits, pixels 0..16, no test part (Alpaydin and Kaynak 1998).

    Mean and standard deviation are those of all pixels over 16: `x = load_digits().images / 16`,
    `x.mean()`, `x.std()`.
    """

    name: ClassVar[str] = "digits"
    licence: ClassVar[str] = "CC BY 4.0"
    embedded: ClassVar[bool] = True

    def load(self, root: Path, download: bool) -> RawData:
        """The set as uint8 `[1797, 1, 8, 8]`; neither folder nor download is used."""
        table = torch.from_numpy(_table())
        images, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1].long()
        samples = as_samples(images, labels)
        return RawData(samples, None, tuple("0123456789"), 16.0, (0.3053,), (0.3760,))


def _table() -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """`[1797, 65]`: 64 pixels and the digit. The file is read without scikit-learn, whose import
    takes longer than all else before a small search starts; by it where it keeps them elsewhere."""
    found = importlib.util.find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        if (Path(folder) / FILE).is_file():
            return np.loadtxt(Path(folder) / FILE, dtype=np.uint8, delimiter=",", ndmin=2)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target]).astype(np.uint8)
