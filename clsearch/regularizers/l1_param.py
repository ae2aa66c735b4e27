"""L1 norm of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from clsearch.errors import InputError
from clsearch.models.base import Backbone
from clsearch.regularizers.base import Hypers, Regularizer, RegularizerOptions, per_member
from clsearch.space import Hyper

HEAD = "head"
"""What the output layers are called beside the unit layers."""

STRENGTH = Hyper(1e-5, (0.0, 1e-6, 1e-5, 1e-4), "Strength of the L1 norm of the weights.")


class L1ParamOptions(RegularizerOptions):
    layers: list[float] | None = Field(
        None,
        description="Factors on `l1`: one for each unit layer, one for the output layer.",
    )
    mode: Literal["gradient", "proximal"] = Field(
        "gradient",
        description="`gradient` adds l1·sign(w) (CLNP §2.2); `proximal` soft-thresholds by lr·l1.",
    )


class L1Param(Regularizer):
    """`Σ_l l1·f_l·Σ|w|` over the weights (not the biases) of layer l (CLNP §2.2, §3.1).

    A grid may give a layer a strength of its own, which stands in place of `l1·f_l`: `l1.fc1`,
    `l1.conv2`, … by the unit layers' names, `l1.head` for the output layers.
    """

    name: ClassVar[str] = "l1_param"
    Options: ClassVar = L1ParamOptions
    space: ClassVar[dict[str, Hyper]] = {"l1": STRENGTH}
    analytic: ClassVar[bool] = True

    def __init__(self, options: L1ParamOptions, backbone: Backbone) -> None:
        super().__init__(options, backbone)
        n = len(backbone.unit_layers)
        factors = [1.0] * (n + 1) if options.layers is None else options.layers
        if len(factors) != n + 1 or not all(0 <= f < math.inf for f in factors):
            raise InputError(
                "layers",
                factors,
                f"{n + 1} factors of 0 or more: one for each unit layer ({n}), one for the output",
            )
        self.layers = {u.weight: u.name for u in backbone.unit_layers}
        self.factors = dict(zip([*self.layers.values(), HEAD], factors, strict=True))

    @property
    def axes(self) -> Mapping[str, Hyper]:
        doc = "Strength in layer {}, in place of `l1` times its factor."
        own = {n: replace(STRENGTH, default=None, doc=doc.format(n)) for n in self.factors}
        return {**self.space, **{f"l1.{n}": hyper for n, hyper in own.items()}}

    def _strengths(
        self, params: Mapping[str, Tensor], hyper: Hypers
    ) -> Iterator[tuple[str, Tensor, float]]:
        """The weights that have a strength, by name, each with it and the factor on it."""
        for name in params:
            layer = HEAD if name.startswith("head.") else self.layers.get(name)
            if layer is None or not name.endswith("weight"):
                continue
            if f"l1.{layer}" in hyper:
                yield name, hyper[f"l1.{layer}"], 1.0
            elif self.factors[layer]:
                yield name, hyper["l1"], self.factors[layer]

    def penalty(
        self,
        params: Mapping[str, Tensor],
        activations: Mapping[str, Tensor],
        importance: Mapping[str, Tensor],
        hyper: Hypers,
    ) -> Tensor:
        total = hyper["l1"].new_zeros(())
        if self.options.mode == "gradient":
            for name, strength, factor in self._strengths(params, hyper):
                total = total + strength * factor * params[name].abs().sum()
        return total

    def add_gradient(
        self, grads: dict[str, Tensor], params: Mapping[str, Tensor], hyper: Hypers
    ) -> None:
        if self.options.mode == "gradient":
            for name, strength, factor in self._strengths(params, hyper):
                weight = params[name]
                grads[name].addcmul_(weight.sign(), per_member(strength * factor, weight))

    @property
    def updates(self) -> bool:
        return bool(self.options.mode == "proximal")

    def after_update(self, params: dict[str, Tensor], hyper: Hypers) -> None:
        """Soft-thresholding by `lr` times the layer's strength: the proximal step of the norm."""
        for name, strength, factor in self._strengths(params, hyper) if self.updates else ():
            weight = params[name]
            cut = per_member(hyper["lr"] * strength * factor, weight)
            weight.copy_(weight.sign() * (weight.abs() - cut).clamp_(min=0))
