"""Multi-layer perceptron."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from clsearch.models.base import Backbone, BackboneOptions, Tap, UnitLayer


class MLPOptions(BackboneOptions):
    hidden: list[Annotated[int, Field(ge=1, le=65536)]] = Field(
        [100, 100], min_length=1, description="Neurons of each hidden layer."
    )


class MLP(Backbone):
    """Dense layers with ReLU; every hidden layer is a unit layer (CLNP §3.1, SLNI §3.1)."""

    name: ClassVar[str] = "mlp"
    Options: ClassVar = MLPOptions
    dense_relu: ClassVar[bool] = True

    def __init__(self, options: MLPOptions, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        widths = [math.prod(shape), *options.hidden]
        layers = []
        for i, (inputs, units) in enumerate(itertools.pairwise(widths), start=1):
            self.add_module(f"fc{i}", nn.Linear(inputs, units, device="meta"))
            outgoing = f"fc{i + 1}.weight" if i < len(options.hidden) else None
            layers.append(UnitLayer(f"fc{i}", units, f"fc{i}.weight", f"fc{i}.bias", outgoing))
        self.unit_layers = tuple(layers)

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        x = x.flatten(1)
        for layer in self.unit_layers:
            x = tap(layer.name, self.get_submodule(layer.name)(x).relu())
        return x
