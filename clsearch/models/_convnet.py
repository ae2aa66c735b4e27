"""Convolutional backbones from a list of layers: what the published networks have in common."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clsearch.errors import InputError
from clsearch.models.base import Staged, Tap, UnitLayer

EPSILON = 1e-5
"""Added to a variance before its root is taken (torch's default)."""


@dataclass(frozen=True)
class Conv:
    """A convolution with a square kernel and ReLU; with `norm` batch-normalised in between."""

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    norm: bool = False


@dataclass(frozen=True)
class Dense:
    """A dense layer with ReLU, on the flattened output of the layer before."""

    units: int


@dataclass(frozen=True)
class MaxPool:
    """The maximum in square windows."""

    kernel: int
    stride: int
    padding: int = 0


@dataclass(frozen=True)
class AveragePool:
    """The mean in windows that leave `side` × `side` places whatever the size before them.

    With `overlap` a window of every place slides over all of the image but `side` − 1 rows and
    columns. A `side` × `side` convolution that reads every place, averaged over them, is then a
    dense layer that reads what is left here: both are linear, and their order does not matter.
    """

    side: int
    overlap: bool = False


@dataclass(frozen=True)
class Dropout:
    """Drops each number with probability `rate` in training (Hinton et al. 2012)."""

    rate: float


Layer = Conv | Dense | MaxPool | AveragePool | Dropout


class BatchNorm(nn.Module):
    """`γ (x − μ) / √(σ² + ε) + β` for each channel (Ioffe and Szegedy 2015, alg. 1).

    μ and σ² are what the tap says: the batch's in training, the running ones otherwise.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        self.name = name
        for part in ("weight", "bias"):
            self.register_parameter(part, nn.Parameter(torch.empty(channels, device="meta")))
        for part in ("running_mean", "running_var"):
            self.register_buffer(part, torch.empty(channels, device="meta"))

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        """`[B, channels, H, W]` to the same."""
        mean, variance = tap.moments(self.name, x, self.running_mean, self.running_var)
        scale = self.weight * (variance + EPSILON).rsqrt()
        mean, scale, bias = (v.view(-1, 1, 1) for v in (mean, scale, self.bias))
        return (x - mean) * scale + bias


class ConvNet(Staged):
    """Layers in a row; every convolution and dense layer is a unit layer, with ReLU.

    They are called `conv1`, `conv2`, …, `fc1`, … in order, a normalisation `conv1_norm`. Heads read
    the flattened output of the last layer. Images lie in memory with their channels last.
    """

    def __init__(self, options: Any, shape: tuple[int, int, int], layers: Sequence[Layer]) -> None:
        super().__init__(options, shape)
        self.layers = tuple(zip(_names(layers), layers, strict=True))
        units: list[UnitLayer] = []
        size = shape
        for name, layer in self.layers:
            if isinstance(layer, Conv | Dense):
                if units:
                    fan = 1 if isinstance(layer, Conv) else size[1] * size[2]
                    units[-1] = replace(units[-1], outgoing=f"{name}.weight", fan=fan)
                units.append(self._add(name, layer, size))
            size = self._after(layer, size)
        units[-1] = replace(units[-1], fan=size[1] * size[2])
        self.unit_layers = tuple(units)
        named = [name for name, _ in self.layers]
        begins = [0, *(named.index(unit.name) for unit in units[1:]), len(named)]
        self.stages = [self.layers[a:b] for a, b in itertools.pairwise(begins)]

    def _add(self, name: str, layer: Conv | Dense, size: tuple[int, int, int]) -> UnitLayer:
        """Adds the modules of a layer that reads `size`, `(C, H, W)`."""
        weight, bias, norm = f"{name}.weight", f"{name}.bias", None
        if isinstance(layer, Dense):
            inputs = size[0] * size[1] * size[2]
            self.add_module(name, nn.Linear(inputs, layer.units, device="meta"))
            return UnitLayer(name, layer.units, weight, bias, None)
        module = nn.Conv2d(
            size[0], layer.channels, layer.kernel, layer.stride, layer.padding,
            bias=not layer.norm, device="meta",
        )  # fmt: skip
        self.add_module(name, module)
        if layer.norm:
            norm = f"{name}_norm"
            self.add_module(norm, BatchNorm(norm, layer.channels))
            bias = f"{norm}.bias"
        return UnitLayer(name, layer.channels, weight, bias, None, norm=norm)

    def _after(self, layer: Layer, size: tuple[int, int, int]) -> tuple[int, int, int]:
        """The size `(C, H, W)` after a layer; raises `InputError` where nothing would be left."""
        channels, *space = size
        if isinstance(layer, Dense):
            return layer.units, 1, 1
        if isinstance(layer, Conv):
            channels = layer.channels
        if isinstance(layer, Conv | MaxPool):
            reach = layer.kernel - 2 * layer.padding
            space = [(side - reach) // layer.stride + 1 for side in space]
        elif isinstance(layer, AveragePool):
            space = [layer.side if s >= layer.side or not layer.overlap else 0 for s in space]
        if min(space) < 1:
            found = "x".join(map(str, self.shape[1:]))
            step = "Its layers leave nothing of them: give the images a larger `size`."
            raise InputError("model.name", self.name, f"a backbone for images of {found}", step)
        return channels, space[0], space[1]

    def stage(self, layer: int, x: Tensor, tap: Tap) -> Tensor:
        x = x if layer else _channels_last(x)
        for name, part in self.stages[layer]:
            x = self._through(name, part, x, tap)
        return x if layer + 1 < len(self.stages) else x.flatten(1)

    def _through(self, name: str, layer: Layer, x: Tensor, tap: Tap) -> Tensor:
        """`[B, …]` through one layer."""
        match layer:
            case Dense():
                return tap(name, self.get_submodule(name)(x.flatten(1)).relu())
            case Conv():
                x = self.get_submodule(name)(x)
                if layer.norm:
                    x = self.get_submodule(f"{name}_norm")(x, tap)
                return tap(name, x.relu_())
            case MaxPool():
                return functional.max_pool2d(x, layer.kernel, layer.stride, layer.padding)
            case AveragePool(side, overlap=True):
                window = (x.shape[2] - side + 1, x.shape[3] - side + 1)
                return functional.avg_pool2d(x, window, 1)
            case AveragePool(side):
                return functional.adaptive_avg_pool2d(x, side)
            case Dropout(rate):
                return tap.dropout(name, x, rate)


def _names(layers: Sequence[Layer]) -> Iterator[str]:
    """`conv1`, `conv2`, `fc1`, …: the layers numbered by kind."""
    kinds = {Conv: "conv", Dense: "fc", MaxPool: "max", AveragePool: "average", Dropout: "drop"}
    seen: dict[str, int] = {}
    for layer in layers:
        kind = kinds[type(layer)]
        seen[kind] = seen.get(kind, 0) + 1
        yield f"{kind}{seen[kind]}"


def _channels_last(x: Tensor) -> Tensor:
    """`[B, C, H, W]` as it is, in memory by sample, row, column and channel.

    A CPU convolves so in less time, and leaves its result in the same order. Under `vmap` too,
    where torch's `memory_format` is not to be had.
    """
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
