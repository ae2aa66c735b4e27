"""L1 norm of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from clsearch.errors import InputError
from clsearch.models.base import Backbone
from clsearch.regularizers.base import Hypers, Regularizer, RegularizerOptions, per_member
from clsearch.space import Hyper


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
    """`Σ_l l1·f_l·Σ|w|` over the weights (not the biases) of layer l (CLNP §2.2, §3.1)."""

    name: ClassVar[str] = "l1_param"
    Options: ClassVar = L1ParamOptions
    space: ClassVar[dict[str, Hyper]] = {
        "l1": Hyper(1e-5, (0.0, 1e-6, 1e-5, 1e-4), "Strength of the L1 norm of the weights.")
    }
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
        self.factors = dict(zip([u.weight for u in backbone.unit_layers], factors, strict=False))
        self.head_factor = factors[-1]

    def _weights(self, params: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
        for name in params:
            if name.endswith("weight"):
                factor = self.head_factor if name.startswith("head.") else self.factors.get(name)
                if factor:
                    yield name, factor

    def penalty(
        self,
        params: Mapping[str, Tensor],
        activations: Mapping[str, Tensor],
        importance: Mapping[str, Tensor],
        hyper: Hypers,
    ) -> Tensor:
        total = hyper["l1"].new_zeros(())
        if self.options.mode == "gradient":
            for name, factor in self._weights(params):
                total = total + hyper["l1"] * factor * params[name].abs().sum()
        return total

    def add_gradient(
        self, grads: dict[str, Tensor], params: Mapping[str, Tensor], hyper: Hypers
    ) -> None:
        if self.options.mode == "gradient":
            for name, factor in self._weights(params):
                strength = per_member(hyper["l1"] * factor, params[name])
                grads[name].addcmul_(params[name].sign(), strength)

    @property
    def updates(self) -> bool:
        return bool(self.options.mode == "proximal")

    def after_update(self, params: dict[str, Tensor], hyper: Hypers) -> None:
        """Soft-thresholding by `lr·l1·f_l`: the proximal step of the L1 norm."""
        for name, factor in self._weights(params) if self.updates else ():
            weight = params[name]
            cut = per_member(hyper["lr"] * hyper["l1"] * factor, weight)
            weight.copy_(weight.sign() * (weight.abs() - cut).clamp_(min=0))
