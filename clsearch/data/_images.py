"""Encoded images (JPEG, PNG, WebP, …) into uint8 tensors, by Pillow."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor

from clsearch.data._pixels import PixelOptions, statistics
from clsearch.data.base import RawData, Samples, as_samples
from clsearch.errors import InputError

Colour = Literal["rgb", "grey"]
Side = Annotated[int, Field(ge=1, le=4096)]
Size = Side | Annotated[list[Side], Field(min_length=2, max_length=2)]

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Endings of the files that are taken for images, in small or capital letters."""

# What Pillow's readers raise for content that is no image, or half of one.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
_NAMED = 5
"""How many damaged images a message names."""


class ImageOptions(PixelOptions):
    """Options of a source of encoded images."""

    size: Size | None = Field(
        None,
        description="Height and width, or one number for both: every image is scaled until it"
        " covers them and cropped at the centre. Default as they are: all of one size.",
    )
    colour: Colour = Field("rgb", description="`rgb`: three channels; `grey`: one.")
    corrupt: Literal["refuse", "skip"] = Field(
        "refuse",
        description="What to do with images that cannot be decoded: stop and name them, or leave"
        " them out and say so.",
    )


class Encoded(NamedTuple):
    """An image before it is decoded: its name in messages, its file or its bytes, its label."""

    name: str
    content: Path | bytes
    label: int


def decode(
    images: Iterable[Encoded], count: int, options: ImageOptions, field: str
) -> tuple[Samples, tuple[str, ...]]:
    """At most `count` images, decoded one by one into one tensor, and a note on those left out.

    Raises `InputError` under `field`: for images of mixed size where no size is asked for, for
    images that cannot be decoded unless they are to be skipped, for more than the memory holds, and
    where none is left.
    """
    pixels: Tensor | None = None
    first, labels, damaged = "", list[int](), list[str]()
    for name, content, label in images:
        try:
            image = _pixels(content, options)
        except _UNREADABLE as error:
            damaged.append(f"{name} ({' '.join(str(error).split()) or type(error).__name__})")
            continue
        if pixels is None:
            _fits(count, image, options, field)
            first, pixels = name, torch.empty((count, *image.shape), dtype=torch.uint8)
        if image.shape != pixels.shape[1:]:
            sizes = [f"{i.shape[-2]}x{i.shape[-1]}" for i in (pixels, image)]
            step = f"They are of mixed size: {first} has {sizes[0]}, {name} has {sizes[1]}."
            allowed = "the [height, width] that all images are to have"
            raise InputError(f"{field}.size", options.size, allowed, step)
        pixels[len(labels)] = image
        labels.append(label)
    notes = _damaged(damaged, len(labels), options, field)
    if pixels is None:
        raise InputError(field, "no images", "one image or more")
    return as_samples(pixels[: len(labels)], torch.tensor(labels)), notes


def _fits(count: int, image: Tensor, options: ImageOptions, field: str) -> None:
    """Raises `InputError` where `count` images like this one are more than the memory holds."""
    needed, there = count * image.numel(), _memory()
    if needed > there:
        found = f"{count} images of {'x'.join(map(str, image.shape))} take {needed / 2**30:.1f} GiB"
        step = f"{found}; the memory here is {there / 2**30:.1f} GiB."
        raise InputError(f"{field}.size", options.size, "images that fit into memory", step)


def _memory() -> int:
    """The memory of this machine, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _damaged(damaged: list[str], good: int, options: ImageOptions, field: str) -> tuple[str, ...]:
    """The note on images that cannot be decoded, if there are any and they are to be skipped."""
    if not damaged:
        return ()
    more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
    named = ", ".join(damaged[:_NAMED]) + more
    found = f"{len(damaged)} of {len(damaged) + good} images cannot be decoded"
    if options.corrupt == "refuse" or not good:
        allowed = f"`{options.corrupt}` only where images can be decoded"
        step = "" if not good else " Mend them, or set `corrupt: skip` to leave them out."
        raise InputError(f"{field}.corrupt", options.corrupt, allowed, f"{found}: {named}.{step}")
    return (f"{found} and were left out: {named}.",)


def _pixels(content: Path | bytes, options: ImageOptions) -> Tensor:
    """One image as uint8 `[C, H, W]`. Pixels are taken as stored: no EXIF rotation."""
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise ValueError("more than 8 bits a channel")
        return _fit(image, options.size, options.colour)


def _fit(image: Image.Image, size: Size | None, colour: Colour) -> Tensor:
    """An image in the size and the channels asked for, uint8 `[C, H, W]`.

    Scaling is bilinear over the area that an output pixel covers.
    """
    image = image.convert("RGB" if colour == "rgb" else "L")
    if size is not None:
        height, width = _height_and_width(size)
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    array = torch.from_numpy(np.array(image))
    return array.unsqueeze(0) if array.ndim == 2 else array.permute(2, 0, 1)


def _height_and_width(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def conform(raw: RawData, size: Size | None, colour: Colour | None) -> RawData:
    """A source with its images in another size or other channels, its statistics measured anew.

    As it is where nothing changes. Images `[N, C, H, W]` have 1 or 3 channels.
    """
    channels, *sides = raw.train.inputs.shape[1:]
    wanted = {"rgb": 3, "grey": 1, None: channels}[colour]
    if wanted == channels and (size is None or _height_and_width(size) == tuple(sides)):
        return raw
    shown: Colour = "rgb" if wanted == 3 else "grey"

    def convert(samples: Samples) -> Samples:
        arrays = (i[0] if channels == 1 else i.permute(1, 2, 0) for i in samples.inputs)
        images = [_fit(Image.fromarray(array.numpy()), size, shown) for array in arrays]
        return as_samples(torch.stack(images), samples.labels)

    train = convert(raw.train)
    mean, std = statistics(train.inputs, raw.scale)
    test = None if raw.test is None else convert(raw.test)
    return replace(raw, train=train, test=test, mean=mean, std=std)
