"""The narrow convolutional network of CLNP."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from clsearch.models._convnet import Conv, ConvNet, Dense, Dropout, MaxPool
from clsearch.models.base import BackboneOptions


class NarrowOptions(BackboneOptions):
    channels: list[Annotated[int, Field(ge=1, le=65536)]] = Field(
        [32, 32, 64, 64],
        min_length=4,
        max_length=4,
        description="Channels of the four convolutions.",
    )
    dense: int = Field(512, ge=1, le=65536, description="Neurons of the dense layer.")


class CLNPNarrow(ConvNet):
    """Four convolutions and a dense layer with ReLU, max-pooling and dropout (CLNP §3.2, table 2;
    the network of Zenke et al. 2017)."""

    name: ClassVar[str] = "clnp_narrow"
    Options: ClassVar = NarrowOptions

    def __init__(self, options: NarrowOptions, shape: tuple[int, int, int]) -> None:
        one, two, three, four = (Conv(c, kernel=3, padding=1) for c in options.channels)
        pool = MaxPool(3, stride=2, padding=1)
        layers = (
            *(one, two, pool, Dropout(0.25)),
            *(three, four, pool, Dropout(0.25)),
            *(Dense(options.dense), Dropout(0.5)),
        )
        super().__init__(options, shape, layers)
