"""Images of the user's own as NumPy arrays."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from clsearch.data._labels import LabelOptions, class_names, number
from clsearch.data._paths import file
from clsearch.data._pixels import PixelOptions, raw_data
from clsearch.data.base import OwnOptions, RawData, Samples, Source, as_samples
from clsearch.errors import InputError
from clsearch.options import PLACE

Axes = Literal["hwc", "chw"]
_CHANNELS = (1, 3)


class ArraysOptions(PixelOptions, LabelOptions, OwnOptions):
    path: str = Field(
        json_schema_extra=PLACE,
        description="The training part: an .npz file, absolute or within the data folder.",
    )
    test_path: str | None = Field(
        None,
        json_schema_extra=PLACE,
        description="The test part, likewise; default: the scenario holds one out.",
    )
    axes: Axes | None = Field(
        None,
        description="Where colour images have their channels: last (`hwc`) or first (`chw`);"
        " default the one of the two that has 1 or 3.",
    )


class Arrays(Source):
    """An .npz file with `images` and `labels`, and another for the test part.

    `images` is uint8 `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`, with one channel or three;
    `labels` whole numbers or texts `[N]`. Nothing in the files is unpickled.
    """

    name: ClassVar[str] = "arrays"
    Options: ClassVar = ArraysOptions

    def load(self, root: Path, download: bool) -> RawData:
        """Training and test parts, uint8 `[N, C, H, W]`.

        Raises `InputError` for files that are missing or damaged, arrays that are not there or of
        another type or shape, and labels outside the classes.
        """
        places = self._files(root)
        known = class_names(self.options, root, self.field)
        (images, labels), *rest = [self._read(place) for place in places]
        others = rest[0][1] if rest else None
        first, second, names = number(labels, others, known, f"{self.field}.path")
        train = _samples(images, first)
        test = None if second is None else _samples(rest[0][0], second)
        return raw_data(train, test, names, self.options, self.field)

    def check(self, root: Path) -> None:
        self._files(root)

    def _files(self, root: Path) -> list[Path]:
        """The file of the training part and, if there is one, of the test part."""
        found = [file(root, self.options.path, f"{self.field}.path")]
        if self.options.test_path is not None:
            found.append(file(root, self.options.test_path, f"{self.field}.test_path"))
        return found

    def _read(self, path: Path) -> tuple[np.ndarray, list[int] | list[str]]:
        """Images `[N, C, H, W]` and labels of a file."""
        field, allowed = f"{self.field}.path", "an undamaged .npz file with `images` and `labels`"
        try:
            with np.load(path, allow_pickle=False) as content:
                images, labels = content["images"], content["labels"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            said = " ".join(str(error).split())
            if "pickle" in said:  # numpy's advice is to load what anyone may have written
                said = "it holds no arrays of numbers"
            raise InputError(field, str(path), allowed, f"The reader said: {said}.") from error
        except (TypeError, AttributeError, IndexError) as error:  # a bare .npy file
            raise InputError(field, str(path), allowed, "It holds one array.") from error
        found = f"It has images {images.dtype} {list(images.shape)}, labels {labels.dtype}"
        found += f" {list(labels.shape)}."
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            allowed = "images that are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]"
            raise InputError(field, str(path), allowed, found)
        if labels.dtype.kind not in "iuU" or labels.shape != (len(images),) or not images.size:
            allowed = "labels that are whole numbers or texts, one for each image"
            raise InputError(field, str(path), allowed, found)
        return self._channels_first(images, path), labels.tolist()

    def _channels_first(self, images: np.ndarray, path: Path) -> np.ndarray:
        if images.ndim == 3:
            return images[:, None]
        fits: list[Axes] = []
        if images.shape[3] in _CHANNELS:
            fits.append("hwc")
        if images.shape[1] in _CHANNELS:
            fits.append("chw")
        axes = self.options.axes or (fits[0] if len(fits) == 1 else None)
        if axes not in fits:
            allowed = "`hwc` or `chw`, as the images have their 1 or 3 channels"
            step = f"Those of {path} are {list(images.shape)}."
            raise InputError(f"{self.field}.axes", self.options.axes, allowed, step)
        return images if axes == "chw" else images.transpose(0, 3, 1, 2)


def _samples(images: np.ndarray, labels: list[int]) -> Samples:
    return as_samples(torch.from_numpy(np.ascontiguousarray(images)), torch.tensor(labels))
