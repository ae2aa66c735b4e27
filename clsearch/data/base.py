"""The contract of a data source: raw files in, contiguous uint8 tensors out."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Images and labels: `inputs` uint8 `[N, C, H, W]`, contiguous; `labels` int64 `[N]`."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def __getitem__(self, index: Tensor) -> Samples:
        return Samples(self.inputs[index].contiguous(), self.labels[index].contiguous())

    def digest(self) -> str:
        """SHA-256 (32 hex digits) of the shape and the bytes of images and labels."""
        sha = hashlib.sha256(repr(tuple(self.inputs.shape)).encode())
        sha.update(self.inputs.contiguous().numpy().data)
        sha.update(self.labels.contiguous().numpy().data)
        return sha.hexdigest()[:32]


@dataclass(frozen=True)
class RawData:
    """A whole data set. Pixels become numbers by `(pixel / scale - mean) / std`, per channel.

    `test` is None for a set without an official test part; the scenario then holds one out.
    """

    train: Samples
    test: Samples | None
    classes: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Source(ABC):
    """A data set by name. One file a source; being in the folder is being registered."""

    name: ClassVar[str]
    embedded: ClassVar[bool] = False
    """Whether the data comes with an installed package: no folder and no download needed."""

    @abstractmethod
    def load(self, root: Path, download: bool) -> RawData:
        """Reads the set from `root`, downloading it first if asked to.

        Raises `InputError` naming the folder, the files expected and the option that downloads,
        when files are missing or images have the wrong size.
        """


def data_root(root: str | None) -> Path:
    """The data folder: the one given, else `$CLSEARCH_DATA`, else `data` here."""
    return Path(root or os.environ.get("CLSEARCH_DATA") or "data").expanduser()


def as_samples(images: Tensor, labels: Tensor) -> Samples:
    """uint8 images `[N, H, W]` or `[N, C, H, W]` and labels `[N]` as `Samples`."""
    if images.ndim == 3:
        images = images.unsqueeze(1)
    return Samples(images.contiguous(), labels.to(torch.int64).contiguous())
