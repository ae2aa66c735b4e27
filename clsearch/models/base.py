"""The contract of a backbone: a module that names its unit layers, and the network around it.

Parameters live in a flat dictionary (`fc1.weight`, `head.0.bias`), never inside the module: the
module is the formula, so that one member and a pack of K run through the same code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.func import functional_call

Params = dict[str, Tensor]
Gates = Mapping[str, Tensor]
"""By unit layer, bool `[units]`: False silences the neuron. A layer not named is open."""


@dataclass(frozen=True)
class UnitLayer:
    """A place where neurons (or channels) are counted, pruned and penalised.

    `weight` and `bias` are the parameters that feed its `units` neurons. Their dimension 0 holds
    `rows` rows for each neuron, one neuron after the other: 1, or the pieces of a maxout unit.
    `outgoing` is the next layer's weight that reads the neurons (dimension 1), None for the last
    layer, which heads read. `fan` inputs of `outgoing` belong to each neuron: 1 between dense
    layers, H·W from a channel through a flatten.

    Of every `group` neurons in a row, which compete (LWTA), each one's output depends on the
    weights of all. They have one activity, so that they are pruned, frozen and freed together;
    `group` divides `units`.
    """

    name: str
    units: int
    weight: str
    bias: str
    outgoing: str | None
    fan: int = 1
    rows: int = 1
    group: int = 1

    def by_row(self, neurons: Tensor) -> Tensor:
        """`[units]` to `[units·rows]`: each neuron's value for all rows that feed it."""
        return neurons.repeat_interleave(self.rows)


class Tap:
    """Called by a backbone at each unit layer: silences gated neurons, keeps the activations."""

    def __init__(self, gates: Gates | None = None) -> None:
        self.gates = gates or {}
        self.activations: dict[str, Tensor] = {}

    def __call__(self, layer: str, activation: Tensor) -> Tensor:
        """Activation `[B, units, …]` to the same, with silenced neurons at exactly zero."""
        gate = self.gates.get(layer)
        if gate is not None:
            gate = gate.view(-1, *[1] * (activation.ndim - 2))
            activation = torch.where(gate, activation, activation.new_zeros(()))
        self.activations[layer] = activation
        return activation


class BackboneOptions(BaseModel):
    """Options of a backbone; each declares its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Backbone(nn.Module, ABC):
    """Images to features, naming its unit layers in order. One file a backbone.

    The last unit layer is what heads read. The constructor takes the options and the input shape
    `(C, H, W)`, and raises `InputError` for a shape it cannot take. Its modules are formulas
    without values: build them on `device="meta"`, without buffers, and with a parameter called
    `weight` in each (`initial_parameters` draws by it). CLNP trains the weights and biases that
    `unit_layers` name, and no others. `version` is part of every trial's key: raise it when the
    formula changes, so that trials of the old one are not taken for trials of the new.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Options: ClassVar[type[BackboneOptions]]
    unit_layers: tuple[UnitLayer, ...]

    def __init__(self, options: Any, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.options, self.shape = options, shape

    @property
    def dense_relu(self) -> bool:
        """Whether the unit layers are dense layers in a row, each relu(W x + b), the first reading
        the flattened input, and nothing stands between them: the threshold scan may then add
        neurons up layer by layer instead of calling `forward` once per threshold."""
        return False

    @abstractmethod
    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        """`[B, C, H, W]` to features `[B, units of the last layer]`, calling `tap` at each layer.

        A batch row depends on no other row.
        """


def initial_parameters(backbone: Backbone, generator: torch.Generator) -> Params:
    """Fresh parameters of the backbone: uniform within ±1/√fan-in, as `nn.Linear` draws them.

    A weight has the fan-in of its trailing dimensions, a bias that of the weight beside it. A
    weight of one dimension scales (a normalisation's) and starts at 1, its bias at 0.
    """
    params: Params = {}
    for name, like in backbone.named_parameters():
        layer, _, part = name.rpartition(".")
        weight = backbone.get_parameter(f"{layer}.weight")
        if weight.ndim == 1:
            params[name] = torch.full(like.shape, 1.0 if part == "weight" else 0.0)
            continue
        bound = weight[0].numel() ** -0.5
        params[name] = torch.empty(like.shape).uniform_(-bound, bound, generator=generator)
    return params


def head_names(head: int) -> tuple[str, str]:
    """The names of the weight `[classes, units]` and bias `[classes]` of an output layer."""
    return f"head.{head}.weight", f"head.{head}.bias"


def initial_head(head: int, classes: int, features: int, generator: torch.Generator) -> Params:
    """A fresh output layer: weight `[classes, features]`, bias `[classes]`, ±1/√features."""
    weight, bias = head_names(head)
    bound = features**-0.5
    return {
        weight: torch.empty(classes, features).uniform_(-bound, bound, generator=generator),
        bias: torch.empty(classes).uniform_(-bound, bound, generator=generator),
    }


def forward(
    backbone: Backbone, params: Mapping[str, Tensor], x: Tensor, head: int, gates: Gates | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Normalised images `[B, C, H, W]` to logits `[B, classes]` and activations by unit layer."""
    tap = Tap(gates)
    weight, bias = head_names(head)
    own = {name: params[name] for name, _ in backbone.named_parameters()}
    features = functional_call(backbone, own, (x, tap))
    return nn.functional.linear(features, params[weight], params[bias]), tap.activations
