"""VGG-16."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from pydantic import Field

from clsearch.models._convnet import AveragePool, Conv, Dense, Dropout, Layer, MaxPool
from clsearch.models._pretrained import Pretrained, PretrainedOptions

Width = Annotated[int, Field(ge=1, le=65536)]

DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions of each block."""


class VGG16Options(PretrainedOptions):
    channels: list[Width] = Field(
        [64, 128, 256, 512, 512],
        min_length=5,
        max_length=5,
        description="Channels of the convolutions of each block: 2, 2, 3, 3 and 3 of them.",
    )
    dense: list[Width] = Field(
        [4096, 4096], min_length=2, max_length=2, description="Neurons of the dense layers."
    )


class VGG16(Pretrained):
    """Thirteen convolutions of 3 × 3 and two dense layers with ReLU (Simonyan and Zisserman 2015,
    table 1, D). For images of 32 × 32 or more; its weights expect ImageNet's normalisation."""

    name: ClassVar[str] = "vgg16"
    gain: ClassVar[float] = math.sqrt(6)
    Options: ClassVar = VGG16Options
    sources: ClassVar[tuple[str, ...]] = (
        *(f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
        *("classifier.0", "classifier.3"),
    )
    url: ClassVar[str] = "https://download.pytorch.org/models/vgg16-397923af.pth"

    def __init__(self, options: VGG16Options, shape: tuple[int, int, int]) -> None:
        layers: list[Layer] = []
        for channels, depth in zip(options.channels, DEPTHS, strict=True):
            layers += [Conv(channels, kernel=3, padding=1)] * depth
            layers.append(MaxPool(2, stride=2))
        layers.append(AveragePool(7))
        for units in options.dense:
            layers += [Dense(units), Dropout(0.5)]
        super().__init__(options, shape, layers)
