"""Encoded images (JPEG, PNG, WebP, …) into uint8 tensors, by Pillow."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features
from pydantic import Field
from torch import Tensor

from clsearch.data._cache import Decoder, MixedSizeError, decoded_file
from clsearch.data._pixels import PixelOptions, statistics
from clsearch.data._stored import ImageFile, Images, Storage, StoredImages, part_of
from clsearch.data.base import RawData, Samples
from clsearch.errors import InputError

Colour = Literal["rgb", "grey"]
Corrupt = Literal["refuse", "skip"]
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
    corrupt: Corrupt = Field(
        "refuse",
        description="What to do with images that cannot be decoded: stop and name them, or leave"
        " them out and say so.",
    )


class Encoded(NamedTuple):
    """An image before it is decoded: its name in messages, its content, its label.

    The content is its file, its bytes, or pixels uint8 `[H, W]` or `[H, W, C]`. `box` is the part
    of it that counts: left, top, right and bottom, in pixels.
    """

    name: str
    content: Path | bytes | np.ndarray
    label: int
    box: tuple[int, int, int, int] | None = None


def decode(
    images: Iterable[Encoded],
    count: int,
    options: ImageOptions,
    field: str,
    storage: Storage | None = None,
) -> tuple[Samples, tuple[str, ...]]:
    """At most `count` images, decoded, and a note on those left out.

    They stand in one tensor where `storage` has memory for them, else in a file. `images` are gone
    through more than once. Raises `InputError` under `field`: for images of mixed size where no
    size is asked for, for images that cannot be decoded unless they are to be skipped, for a folder
    of decoded images that cannot be used, and where none is left.
    """
    storage, decoder = storage or Storage(), partial(_decoded, options=options)
    good = ((i.name, p) for i in images if isinstance(p := decoder(i), Tensor))
    first, one = next(good, ("", None))
    good.close()

    def accept(damaged: Mapping[int, str]) -> tuple[str, ...]:
        return _damaged(list(damaged.values()), count - len(damaged), options, field)

    if one is None:
        accept(dict(enumerate(str(decoder(i)) for i in images)))
        raise InputError(field, "no images", "one image or more")
    pixels: Images
    channels, height, width = one.shape
    shape = (channels, height, width)
    try:
        if storage.takes(count * math.prod(shape)):
            pixels, labels, damaged = _into_memory(images, count, shape, decoder)
        else:
            key, labels = _key(images, options, shape)
            file = ImageFile(storage.folder / f"{key}.images", count, shape)
            damaged = decoded_file(images, file, decoder, accept)
            pixels = StoredImages((file,), torch.arange(count))
    except MixedSizeError as error:
        sizes = ["x".join(map(str, s[-2:])) for s in (shape, error.shape)]
        step = f"They are of mixed size: {first} has {sizes[0]}, {error.name} has {sizes[1]}."
        allowed = "the [height, width] that all images are to have"
        raise InputError(f"{field}.size", options.size, allowed, step) from None
    notes = accept(damaged)
    if damaged:
        kept = torch.ones(count, dtype=torch.bool)
        kept[list(damaged)] = False
        pixels, labels = part_of(pixels, kept), labels[kept]
    return Samples(pixels, labels), notes


def _into_memory(
    images: Iterable[Encoded], count: int, shape: tuple[int, ...], decoder: Decoder
) -> tuple[Tensor, Tensor, dict[int, str]]:
    """The images uint8 `[count, C, H, W]`, their labels, and the reasons by damaged row."""
    pixels, damaged = torch.empty((count, *shape), dtype=torch.uint8), dict[int, str]()
    labels = torch.empty(count, dtype=torch.int64)
    for row, encoded in enumerate(images):
        image, labels[row] = decoder(encoded), encoded.label
        if isinstance(image, str):
            damaged[row] = image
        elif tuple(image.shape) != shape:
            raise MixedSizeError(encoded.name, tuple(image.shape))
        else:
            pixels[row] = image
    return pixels, labels, damaged


def _key(
    images: Iterable[Encoded], options: ImageOptions, shape: Sequence[int]
) -> tuple[str, Tensor]:
    """A digest of all that decoding depends on, contents, form and the libraries that decode; and
    the labels."""
    form = [options.size, options.colour, list(shape), PIL.__version__, features.version("jpg")]
    sha = hashlib.sha256(repr(form).encode())
    labels = []
    for name, content, label, box in images:
        labels.append(label)
        sha.update(repr((name, box)).encode())
        sha.update(hashlib.sha256(_bytes(content)).digest())
    return sha.hexdigest()[:32], torch.tensor(labels, dtype=torch.int64)


def _bytes(content: Path | bytes | np.ndarray) -> bytes:
    """What tells an image from others; of a file that cannot be read, why."""
    if isinstance(content, np.ndarray):
        return repr(content.shape).encode() + content.tobytes()
    try:
        return content if isinstance(content, bytes) else content.read_bytes()
    except OSError as error:
        return repr(error).encode()


def _damaged(damaged: list[str], good: int, options: ImageOptions, field: str) -> tuple[str, ...]:
    """The note on images that cannot be decoded, if there are any and they are to be skipped."""
    if not damaged:
        return ()
    more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
    named = ", ".join(damaged[:_NAMED]) + more
    found = f"{len(damaged)} of {len(damaged) + good} images cannot be decoded"
    if options.corrupt == "refuse" or not good:
        allowed = "images that can be decoded" + ", or `corrupt: skip` to leave out others" * bool(
            good
        )
        raise InputError(f"{field}.corrupt", options.corrupt, allowed, f"{found}: {named}.")
    return (f"{found} and were left out: {named}.",)


def _decoded(image: Encoded, options: ImageOptions) -> Tensor | str:
    """One image as uint8 `[C, H, W]`, or its name and why it cannot be decoded."""
    try:
        return _pixels(image.content, options, image.box)
    except UnidentifiedImageError:
        return f"{image.name} (not an image)"
    except _UNREADABLE as error:
        return f"{image.name} ({' '.join(str(error).split()) or type(error).__name__})"


def _pixels(
    content: Path | bytes | np.ndarray,
    options: ImageOptions,
    box: tuple[int, int, int, int] | None,
) -> Tensor:
    """One image as uint8 `[C, H, W]`. Pixels are taken as stored: no EXIF rotation."""
    if isinstance(content, np.ndarray):
        return _fit(Image.fromarray(content), options.size, options.colour)
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise ValueError("more than 8 bits a channel")
        return _fit(image if box is None else image.crop(box), options.size, options.colour)


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


def conform(
    raw: RawData,
    size: Size | None,
    colour: Colour | None,
    storage: Storage | None = None,
    field: str = "scenario",
) -> RawData:
    """A source with its images in another size or other channels, its statistics measured anew.

    As it is where nothing changes. Images `[N, C, H, W]` have 1 or 3 channels. Raises `InputError`
    under `field` as `decode` does.
    """
    channels, *sides = raw.train.inputs.shape[1:]
    wanted = {"rgb": 3, "grey": 1, None: channels}[colour]
    if wanted == channels and (size is None or _height_and_width(size) == tuple(sides)):
        return raw
    options = ImageOptions(size=size, colour="rgb" if wanted == 3 else "grey")

    def convert(samples: Samples) -> Samples:
        return decode(_Raw(samples), len(samples), options, field, storage)[0]

    train = convert(raw.train)
    mean, std = statistics(train.inputs, raw.scale)
    test = None if raw.test is None else convert(raw.test)
    return replace(raw, train=train, test=test, mean=mean, std=std)


@dataclass(frozen=True)
class _Raw:
    """Samples as images to be decoded."""

    samples: Samples

    def __iter__(self) -> Iterator[Encoded]:
        labels = iter(self.samples.labels.tolist())
        for i, image in enumerate(self.samples.inputs):
            array = image[0] if len(image) == 1 else image.permute(1, 2, 0)
            yield Encoded(f"image {i}", array.contiguous().numpy(), next(labels))
