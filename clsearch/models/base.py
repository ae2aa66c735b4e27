"""The contract of a backbone: a module that names its unit layers, and the network around it.

Parameters live in a flat dictionary (`fc1.weight`, `head.0.bias`), never inside the module: the
module is the formula, so that one member and a pack of K run through the same code. The running
statistics of batch normalisation lie beside them, in the same dictionary.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clsearch.options import Strict

EVALUATION_BATCH, EVALUATION_NUMBERS = 1000, 2**26
"""Samples evaluated at once, at most, and the numbers that their unit layers may compute."""

Params = dict[str, Tensor]
Gates = Mapping[str, Tensor]
"""By unit layer, bool `[units]`: False silences the neuron. A layer not named is open."""


@dataclass(frozen=True)
class UnitLayer:
    """A place where neurons (or channels) are counted, pruned and penalised.

    `weight` and `bias` are the parameters that feed its `units` neurons. Their dimension 0 holds
    `rows` rows for each neuron, one neuron after the other: 1, or the pieces of a maxout unit.
    `outgoing` is the next layer's weight that reads the neurons (dimension 1), None for the last
    layer, which heads read. `fan` inputs of `outgoing`, or of the heads, belong to each neuron: 1
    between dense layers, H·W from a channel through a flatten.

    `norm` names the module that normalises the rows between weight and activation, if there is
    one: `bias` is then its shift, and its scale and running statistics are the neuron's too.

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
    norm: str | None = None

    @property
    def vectors(self) -> tuple[str, ...]:
        """The names of what holds one number a row: the bias, and a normalisation's tensors."""
        norm = ("weight", "running_mean", "running_var") if self.norm else ()
        return self.bias, *(f"{self.norm}.{part}" for part in norm)

    def by_input(self, neurons: Tensor) -> Tensor:
        """`[units]` to `[units·fan]`: each neuron's value for all inputs of `outgoing` it gives."""
        return neurons.repeat_interleave(self.fan)

    def by_row(self, neurons: Tensor) -> Tensor:
        """`[units]` to `[units·rows]`: each neuron's value for all rows that feed it."""
        return neurons.repeat_interleave(self.rows)


class Tap:
    """What a forward pass is run with: gates, and what differs between training and all else.

    A backbone calls it at each unit layer, at each dropout and at each batch normalisation. This
    one evaluates: nothing is dropped, and normalisation goes by the running statistics.
    `features` are what the heads read, set by `forward`.
    """

    features: Tensor

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

    def dropout(self, place: str, x: Tensor, rate: float) -> Tensor:
        """`x` as it is; in training each number is dropped with probability `rate`, and the rest
        scaled by 1 / (1 − rate). `place` names the dropout within the backbone."""
        return x

    def moments(
        self, norm: str, x: Tensor, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance `[channels]` to normalise `x` `[B, channels, H, W]` by: the running
        ones, given. `norm` names the normalisation within the backbone."""
        return mean, variance


class BackboneOptions(Strict):
    """Options of a backbone; each declares its own."""


class Backbone(nn.Module, ABC):
    """Images to features, naming its unit layers in order. One file a backbone.

    The last unit layer is what heads read. The constructor takes the options and the input shape
    `(C, H, W)`, and raises `InputError` for a shape it cannot take. Its modules are formulas
    without values: build them on `device="meta"`, and with a parameter called `weight` in each
    (`initial_parameters` draws by it). Buffers are running statistics of batch normalisation, and
    no others. CLNP trains what `unit_layers` name, and nothing else. `version` is part of every
    trial's key: raise it when the formula changes, so that trials of the old one are not taken for
    trials of the new. `gain` scales fresh weights: √6 where deep ReLU layers would fade otherwise
    (He et al. 2015, eq. 10).
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    gain: ClassVar[float] = 1.0
    Options: ClassVar[type[BackboneOptions]]
    unit_layers: tuple[UnitLayer, ...]

    def __init__(self, options: Any, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.options, self.shape = options, shape

    @property
    def initial_digest(self) -> str | None:
        """What names the content of `initial`, for every trial's key; None if there is none."""
        return None

    def initial(self) -> Params:
        """Parameters that fresh ones start from instead of drawn ones: weights from a file.

        Of a widened network (`models.widths`) they are the configured one's: what is behind them
        is drawn.
        """
        return {}

    @property
    def features(self) -> int:
        """How many numbers of a sample the heads read."""
        last = self.unit_layers[-1]
        return last.units * last.fan

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """The names of the running statistics."""
        return tuple(name for name, _ in self.named_buffers())

    @cached_property
    def convolutional(self) -> bool:
        """Whether it has convolutions: a CPU then trains the members of a pack one by one."""
        return any(isinstance(module, nn.Conv2d) for module in self.modules())

    @cached_property
    def numbers(self) -> int:
        """How many numbers its unit layers compute for a sample, each place of a channel one."""
        from clsearch.models.widths import resized

        tap, network = Tap(), self
        if next(self.parameters()).is_meta:  # else an exported one, which holds its weights
            # Real numbers, of one group a layer: with none at all torch imports its compiler.
            network = resized(self, {u.name: u.group for u in self.unit_layers})
        named = itertools.chain(network.named_parameters(), network.named_buffers())
        values = {name: torch.zeros_like(v, device="cpu") if v.is_meta else v for name, v in named}
        device = next(iter(values.values())).device
        functional_call(network, values, (torch.zeros(1, *self.shape, device=device), tap))
        places = {u.name: tap.activations[u.name].numel() // u.units for u in network.unit_layers}
        return sum(places[u.name] * u.units * u.rows for u in self.unit_layers)

    @property
    def evaluation_batch(self) -> int:
        """Samples to evaluate at once: so many that their activations fit into memory."""
        return max(1, min(EVALUATION_BATCH, EVALUATION_NUMBERS // self.numbers))

    def values(self, params: Mapping[str, Tensor]) -> Params:
        """Those of `params` that are the backbone's own: its parameters and statistics."""
        named = itertools.chain(self.named_parameters(), self.named_buffers())
        return {name: params[name] for name, _ in named}

    @property
    def dense_relu(self) -> bool:
        """Whether the unit layers are dense layers in a row, each relu(W x + b), the first reading
        the flattened input, and nothing stands between them: the threshold scan may then add
        neurons up layer by layer instead of calling `forward` once per threshold."""
        return False

    @abstractmethod
    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        """`[B, C, H, W]` to features `[B, features]`, calling `tap` at each layer.

        A batch row depends on no other row, but by the moments that a training tap gives.
        """


class Staged(Backbone):
    """A backbone that runs in stages, one a unit layer, so that it can be run from a layer on.

    A stage begins with what its unit layer reads and ends with what the next one reads. Between
    the two it treats each neuron by itself and keeps a silenced one at zero, as pooling does, and
    takes its width from its parameters: with the rows of some neurons cut away it computes the
    others.
    """

    @abstractmethod
    def stage(self, layer: int, x: Tensor, tap: Tap) -> Tensor:
        """What unit layer number `layer` reads (images, for the first) to what the next one reads,
        `[B, units·n, …]`, neuron by neuron; the last gives the features. Leaves `x` as it is."""

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        for layer in range(len(self.unit_layers)):
            x = self.stage(layer, x, tap)
        return x


def initial_parameters(backbone: Backbone, generator: torch.Generator) -> Params:
    """Fresh parameters of the backbone: uniform within ±1/√fan-in, as `nn.Linear` draws them,
    weights within `gain` times that; or its `initial` ones.

    A weight has the fan-in of its trailing dimensions, a bias that of the weight beside it. A
    weight of one dimension scales (a normalisation's) and starts at 1, its bias at 0. Running
    statistics start at mean 0 and variance 1.
    """
    params: Params = {
        name: torch.full(like.shape, 1.0 if name.endswith("var") else 0.0)
        for name, like in backbone.named_buffers()
    }
    for name, like in backbone.named_parameters():
        layer, _, part = name.rpartition(".")
        weight = backbone.get_parameter(f"{layer}.weight")
        if weight.ndim == 1:
            params[name] = torch.full(like.shape, 1.0 if part == "weight" else 0.0)
            continue
        bound = weight[0].numel() ** -0.5 * (backbone.gain if part == "weight" else 1.0)
        params[name] = torch.empty(like.shape).uniform_(-bound, bound, generator=generator)
    for name, value in backbone.initial().items():
        params[name][tuple(map(slice, value.shape))] = value
    return params


def head_names(head: int) -> tuple[str, str]:
    """The names of the weight `[classes, units]` and bias `[classes]` of an output layer."""
    return f"head.{head}.weight", f"head.{head}.bias"


def initial_head(head: int, outputs: int, features: int, generator: torch.Generator) -> Params:
    """A fresh output layer: weight `[outputs, features]`, bias `[outputs]`, ±1/√features."""
    weight, bias = head_names(head)
    bound = features**-0.5
    return {
        weight: torch.empty(outputs, features).uniform_(-bound, bound, generator=generator),
        bias: torch.empty(outputs).uniform_(-bound, bound, generator=generator),
    }


def forward(
    backbone: Backbone,
    params: Mapping[str, Tensor],
    x: Tensor,
    head: int,
    gates: Gates | None,
    tap: Tap | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Normalised images `[B, C, H, W]` to logits `[B, classes]` and activations by unit layer.

    With a `tap`, which has gates of its own, the pass is run with that.
    """
    tap = tap or Tap(gates)
    weight, bias = head_names(head)
    tap.features = functional_call(backbone, backbone.values(params), (x, tap))
    return nn.functional.linear(tap.features, params[weight], params[bias]), tap.activations
