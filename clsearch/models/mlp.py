"""Multi-layer perceptron."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from clsearch.models.activations import ActivationOptions
from clsearch.models.base import Staged, Tap, UnitLayer


class MLPOptions(ActivationOptions):
    hidden: list[Annotated[int, Field(ge=1, le=65536)]] = Field(
        [100, 100], min_length=1, max_length=1000, description="Neurons of each hidden layer."
    )


class MLP(Staged):
    """Dense layers with ReLU, maxout or LWTA; every hidden layer is a unit layer (CLNP §3.1, SLNI
    §3.1)."""

    name: ClassVar[str] = "mlp"
    Options: ClassVar = MLPOptions

    def __init__(self, options: MLPOptions, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        options.check("model.hidden", options.hidden)
        widths = [math.prod(shape), *options.hidden]
        layers = []
        for i, (inputs, units) in enumerate(itertools.pairwise(widths), start=1):
            name, rows = f"fc{i}", options.rows
            self.add_module(name, nn.Linear(inputs, units * rows, device="meta"))
            outgoing = f"fc{i + 1}.weight" if i < len(options.hidden) else None
            weight, bias = f"{name}.weight", f"{name}.bias"
            layers.append(
                UnitLayer(name, units, weight, bias, outgoing, rows=rows, group=options.rivals)
            )
        self.unit_layers = tuple(layers)

    @property
    def dense_relu(self) -> bool:
        return bool(self.options.activation == "relu")

    def stage(self, layer: int, x: Tensor, tap: Tap) -> Tensor:
        name = self.unit_layers[layer].name
        return tap(name, self.options.activate(self.get_submodule(name)(x.flatten(1))))
