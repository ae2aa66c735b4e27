"""How pixels become numbers: the mean and deviation of a source's channels."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from clsearch.data._stored import Images, chunks
from clsearch.data.base import RawData, Samples, SourceOptions
from clsearch.errors import InputError

SCALE = 255.0


class PixelOptions(SourceOptions):
    """Options of a source whose pixels are 0 to 255."""

    mean: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None,
        description="Mean of each channel, of pixels over 255; default that of the training"
        " images.",
    )
    std: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = Field(
        None,
        description="Standard deviation of each channel, of pixels over 255; default that of the"
        " training images.",
    )


def statistics(images: Images, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 `[N, C, H, W]`, of pixels over `scale`.

    The same whatever the order of images: counted, not summed. A channel of one value has a
    deviation of 1.
    """
    values = torch.arange(256, dtype=torch.float64) / scale
    means, deviations = [], []
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in chunks(images):
        for count, channel in zip(counts, part.transpose(0, 1), strict=True):
            count.add_(torch.bincount(channel.flatten(), minlength=256))
    for count in counts:
        share = count.double() / count.sum()
        mean = (share * values).sum()
        deviation = (share * (values - mean) ** 2).sum().sqrt()
        means.append(float(mean))
        deviations.append(float(deviation) or 1.0)
    return tuple(means), tuple(deviations)


def raw_data(
    train: Samples,
    test: Samples | None,
    classes: tuple[str, ...],
    options: PixelOptions,
    field: str,
    notes: tuple[str, ...] = (),
) -> RawData:
    """A source of pixels 0 to 255, with the mean and deviation of the options or its own.

    Raises `InputError` for training and test images of different shape and for a mean or deviation
    that is not of so many channels.
    """
    channels = train.inputs.shape[1]
    if test is not None and test.inputs.shape[1:] != train.inputs.shape[1:]:
        shapes = ["x".join(map(str, part.inputs.shape[1:])) for part in (train, test)]
        allowed = "training and test images of the same shape"
        raise InputError(field, f"{shapes[0]} and {shapes[1]}", allowed)
    for name, given in (("mean", options.mean), ("std", options.std)):
        if given is not None and len(given) != channels:
            raise InputError(f"{field}.{name}", given, f"{channels} numbers, one for each channel")
    own = ((), ()) if options.mean and options.std else statistics(train.inputs, SCALE)
    mean, std = tuple(options.mean or own[0]), tuple(options.std or own[1])
    return RawData(train, test, classes, SCALE, mean, std, notes)
