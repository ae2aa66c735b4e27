"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

from clsearch.data.base import RawData, Source, as_samples


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
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = torch.from_numpy(bunch.images).to(torch.uint8)
        samples = as_samples(images, torch.from_numpy(bunch.target))
        return RawData(samples, None, tuple("0123456789"), 16.0, (0.3053,), (0.3760,))
