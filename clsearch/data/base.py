"""The contract of a data source: raw files in, contiguous uint8 tensors out."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor

from clsearch.config import Plugin, checked_options
from clsearch.data._stored import Images, Storage, chunks, part_of
from clsearch.options import PLACE, Strict
from clsearch.plugins import find
from clsearch.records import NOT_STATED


@dataclass(frozen=True)
class Samples:
    """Images and labels: `inputs` uint8 `[N, C, H, W]`, contiguous; `labels` int64 `[N]`.

    Images of sets larger than memory are `StoredImages`: read when they are asked for. `image`
    int64 `[N]` says which image a sample is of, where an image is a sample for each of its labels;
    without, every sample is an image of its own.
    """

    inputs: Images
    labels: Tensor
    image: Tensor | None = None

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def __getitem__(self, index: Tensor) -> Samples:
        image = None if self.image is None else self.image[index].contiguous()
        return Samples(part_of(self.inputs, index), self.labels[index].contiguous(), image)

    def digest(self) -> str:
        """SHA-256 (32 hex digits) of the shape and the bytes of images and labels, and of which
        samples are of one image."""
        sha = hashlib.sha256(repr(tuple(self.inputs.shape)).encode())
        for images in chunks(self.inputs):
            sha.update(images.numpy().data)
        sha.update(self.labels.contiguous().numpy().data)
        if self.image is not None:
            sha.update(self.image.contiguous().numpy().data)
        return sha.hexdigest()[:32]


@dataclass(frozen=True)
class RawData:
    """A whole data set. Pixels become numbers by `(pixel / scale - mean) / std`, per channel.

    `test` is None for a set without an official test part; the scenario then holds one out.
    `notes` is what a person should know of the reading: images left out, say.
    """

    train: Samples
    test: Samples | None
    classes: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()


class SourceOptions(Strict):
    """Options of a source; each declares its own."""


class OwnOptions(SourceOptions):
    """Options of a source of the user's own data."""

    licence: str = Field(
        NOT_STATED,
        json_schema_extra=PLACE,
        description="The licence of the data, for what exported models say of themselves.",
    )


class SourceConfig(Plugin):
    """A source by name, its options beside the name; a plain text is a name without options."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str | dict | SourceConfig):
            raise ValueError("the name of a data set, or a section of its name and its options")
        return {"name": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _to_text(self, handler: SerializerFunctionWrapHandler) -> Any:
        return handler(self) if self.options else self.name


class Source(ABC):
    """A data set by name. One file a source; being in the folder is being registered.

    `field` is where the source stands in the config: messages about its options name it. `storage`
    says where decoded images are kept.
    """

    name: ClassVar[str]
    embedded: ClassVar[bool] = False
    """Whether the data comes with an installed package: no folder and no download needed."""
    licence: ClassVar[str] = NOT_STATED
    """The terms of the data, as its publisher states them."""
    Options: ClassVar[type[SourceOptions]] = SourceOptions

    def __init__(
        self,
        options: Any = None,
        field: str = "scenario.source",
        storage: Storage | None = None,
    ) -> None:
        self.options: Any = self.Options() if options is None else options
        self.field = field
        self.storage = storage or Storage()

    @classmethod
    def needs_options(cls) -> bool:
        """Whether the source is only known with options: data of the user's own."""
        return any(info.is_required() for info in cls.Options.model_fields.values())

    @property
    def terms(self) -> str:
        """The licence of the data; of the user's own, what the options say."""
        return self.options.licence if isinstance(self.options, OwnOptions) else self.licence

    @abstractmethod
    def load(self, root: Path, download: bool) -> RawData:
        """Reads the set from `root`, downloading it first if asked to.

        Raises `InputError` naming the folder, the files expected and the option that downloads,
        when files are missing or images have the wrong size.
        """

    def check(self, root: Path) -> None:
        """Raises `InputError` where `load` would for missing files; quick: may decode nothing."""
        self.load(root, download=False)


def build_source(config: SourceConfig, field: str, storage: Storage | None = None) -> Source:
    """The source a config names at `field`, its options checked. Reads no images."""
    kind = find("clsearch.data", Source, config.name, field)
    built: Source = kind(checked_options(kind, config.options, field), field, storage)
    return built


def data_root(root: str | None) -> Path:
    """The data folder: the one given, else `$CLSEARCH_DATA`, else `data` here."""
    return Path(root or os.environ.get("CLSEARCH_DATA") or "data").expanduser()


def as_samples(images: Tensor, labels: Tensor) -> Samples:
    """uint8 images `[N, H, W]` or `[N, C, H, W]` and labels `[N]` as `Samples`."""
    if images.ndim == 3:
        images = images.unsqueeze(1)
    return Samples(images.contiguous(), labels.to(torch.int64).contiguous())
