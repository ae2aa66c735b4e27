"""AlexNet."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from clsearch.models._convnet import AveragePool, Conv, Dense, Dropout, Layer, MaxPool
from clsearch.models._pretrained import Pretrained, PretrainedOptions

Width = Annotated[int, Field(ge=1, le=65536)]


class AlexNetOptions(PretrainedOptions):
    channels: list[Width] = Field(
        [64, 192, 384, 256, 256],
        min_length=5,
        max_length=5,
        description="Channels of the five convolutions.",
    )
    dense: list[Width] = Field(
        [4096, 4096], min_length=2, max_length=2, description="Neurons of the dense layers."
    )


class AlexNet(Pretrained):
    """Five convolutions and two dense layers with ReLU, in the form of Krizhevsky 2014 that
    torchvision has (MAS §5.1). For images of 63 × 63 or more; its weights expect ImageNet's
    normalisation."""

    name: ClassVar[str] = "alexnet"
    Options: ClassVar = AlexNetOptions
    sources: ClassVar[tuple[str, ...]] = (
        *(f"features.{i}" for i in (0, 3, 6, 8, 10)),
        *("classifier.1", "classifier.4"),
    )
    url: ClassVar[str] = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"

    def __init__(self, options: AlexNetOptions, shape: tuple[int, int, int]) -> None:
        one, two, three, four, five = options.channels
        pool = MaxPool(3, stride=2)
        first, second = options.dense
        layers: tuple[Layer, ...] = (
            *(Conv(one, kernel=11, stride=4, padding=2), pool),
            *(Conv(two, kernel=5, padding=2), pool),
            *(Conv(channels, kernel=3, padding=1) for channels in (three, four, five)),
            *(pool, AveragePool(6)),
            *(Dropout(0.5), Dense(first), Dropout(0.5), Dense(second)),
        )
        super().__init__(options, shape, layers)
