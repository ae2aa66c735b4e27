"""The wide, fully convolutional network of CLNP."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from clsearch.models._convnet import AveragePool, Conv, ConvNet
from clsearch.models.base import BackboneOptions

PLACES = (
    {"stride": 1, "padding": 1},
    {"stride": 2, "padding": 0},
    {"stride": 1, "padding": 0},
    {"stride": 2, "padding": 1},
    {"stride": 1, "padding": 0},
)
"""Strides and paddings of the convolutions (table 3)."""


class WideOptions(BackboneOptions):
    channels: list[Annotated[int, Field(ge=1, le=65536)]] = Field(
        [128, 256, 512, 1024, 2048],
        min_length=5,
        max_length=5,
        description="Channels of the five hidden convolutions.",
    )


class CLNPWide(ConvNet):
    """Five convolutions with batch normalisation and ReLU (CLNP §3.2, table 3).

    The table's sixth convolution, 3 × 3 with a channel for each class and averaged over all places,
    is the head: it reads the nine means that a channel has under the kernel's nine positions, which
    gives the same function, and as many weights.
    """

    name: ClassVar[str] = "clnp_wide"
    Options: ClassVar = WideOptions

    def __init__(self, options: WideOptions, shape: tuple[int, int, int]) -> None:
        convolutions = (
            Conv(channels, kernel=3, norm=True, **places)
            for channels, places in zip(options.channels, PLACES, strict=True)
        )
        super().__init__(options, shape, (*convolutions, AveragePool(3, overlap=True)))
