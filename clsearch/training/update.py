"""The update of a pack: torch's own fused updates over the members of stacked tensors.

The functions, not `torch.optim.Adam` and `SGD`: their constructors import torch's compiler, which
takes every worker that starts two seconds and 77 MB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from clsearch.config import TrainingConfig

Stack = dict[str, Tensor]

ADAM: dict[str, Any] = {
    **{"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
    **{"amsgrad": False, "maximize": False, "fused": True},
}
SGD: dict[str, Any] = {
    **{"weight_decay": 0.0, "dampening": 0.0, "nesterov": False, "maximize": False, "fused": True},
}
"""torch's defaults, and `fused`."""


@dataclass
class Moments:
    """What is remembered of one member's tensor: Adam's step and averages, or SGD's momentum."""

    step: Tensor
    first: Tensor
    second: Tensor
    momentum: Tensor | None = None

    @classmethod
    def of(cls, view: Tensor, adam: bool) -> Moments:
        step = torch.zeros((), dtype=torch.float32, device=view.device)
        like = view if adam else view.new_empty(0)
        return cls(step, torch.zeros_like(like), torch.zeros_like(like))


class PackOptimizer:
    """Fused Adam or SGD over stacks `[K, …]`, each member with its own learning rate.

    Members are views of the stacks; those of one learning rate are one fused call. Every element's
    arithmetic is that of its own tensor, so a member moves bit for bit as it would alone.
    """

    def __init__(self, config: TrainingConfig, stack: Stack, rates: Sequence[float]) -> None:
        self.config = config
        self._build(stack, rates)
        adam = config.optimizer == "adam"
        self.moments = {
            name: [Moments.of(view, adam) for view in views] for name, views in self.views.items()
        }

    def _build(self, stack: Stack, rates: Sequence[float]) -> None:
        self.stack, self.rates = stack, list(rates)
        self.views = {name: value.unbind(0) for name, value in stack.items()}
        alike: dict[str, list[int]] = {}
        for k, rate in enumerate(self.rates):  # by its text: NaN is not even equal to itself
            alike.setdefault(repr(rate), []).append(k)
        self.alike = list(alike.values())

    @torch.no_grad()
    def step(self, grads: Mapping[str, Tensor]) -> None:
        """Moves every member by its gradient, in place."""
        # Contiguous, or the fused update rounds otherwise.
        parts = {name: [g.contiguous() for g in grads[name].unbind(0)] for name in self.views}
        for members in self.alike:
            places = [(name, k) for k in members for name in self.views]
            params = [self.views[name][k] for name, k in places]
            gradients = [parts[name][k] for name, k in places]
            moments = [self.moments[name][k] for name, k in places]
            self._move(params, gradients, moments, self.rates[members[0]])

    def _move(
        self, params: list[Tensor], grads: list[Tensor], moments: list[Moments], rate: float
    ) -> None:
        if self.config.optimizer == "adam":
            first, second = [m.first for m in moments], [m.second for m in moments]
            adam(params, grads, first, second, [], [m.step for m in moments], lr=rate, **ADAM)
            return
        buffers = [m.momentum for m in moments]
        sgd(params, grads, buffers, lr=rate, momentum=self.config.momentum, **SGD)
        for one, buffer in zip(moments, buffers, strict=True):  # made by the first step
            one.momentum = buffer

    def keep(self, index: Sequence[int]) -> Stack:
        """Drops all members but those at `index`; their state goes on. Returns the new stack."""
        chosen = torch.tensor(list(index), device=next(iter(self.stack.values())).device)
        self._build(
            {name: value.index_select(0, chosen) for name, value in self.stack.items()},
            [self.rates[k] for k in index],
        )
        self.moments = {name: [own[k] for k in index] for name, own in self.moments.items()}
        return self.stack
