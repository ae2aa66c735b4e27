"""The update of a pack: torch's own fused Adam and SGD over the members of stacked tensors.

Its functions, not its classes: those import torch's compiler, which takes longer than all else that
a worker does before it trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from clsearch.config import TrainingConfig

Stack = dict[str, Tensor]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's, as its paper has them (Kingma and Ba 2015, alg. 1)."""


class _Group(NamedTuple):
    """Members of one learning rate: where their tensors stand, and views of these."""

    rate: float
    places: list[tuple[str, int]]
    params: list[Tensor]
    moments: list[list[Tensor]]
    steps: list[Tensor]


class PackOptimizer:
    """Fused Adam or SGD over stacks `[K, …]`, each member with its own learning rate.

    Members are views of the stacks; those of one learning rate form one group, and a group is one
    fused call. Every element's arithmetic is that of its own tensor, so a member moves bit for bit
    as it would alone.
    """

    def __init__(self, config: TrainingConfig, stack: Stack, rates: Sequence[float]) -> None:
        self.config = config
        self.taken = 0
        count = 2 if config.optimizer == "adam" else int(config.momentum > 0)
        moments = [
            {name: torch.zeros_like(value) for name, value in stack.items()} for _ in range(count)
        ]
        self._build(stack, moments, rates)

    def _build(self, stack: Stack, moments: list[Stack], rates: Sequence[float]) -> None:
        self.stack, self.moments, self.rates = stack, moments, list(rates)
        alike: dict[str, list[int]] = {}
        for k, rate in enumerate(self.rates):  # by its text: NaN is not even equal to itself
            alike.setdefault(repr(rate), []).append(k)
        self.groups = []
        for members in alike.values():
            places = [(name, k) for k in members for name in stack]
            params, *own = ([part[name][k] for name, k in places] for part in (stack, *moments))
            steps = [p.new_tensor(self.taken, dtype=torch.float32) for p in params]
            self.groups.append(_Group(self.rates[members[0]], places, params, own, steps))

    @torch.no_grad()
    def step(self, grads: Mapping[str, Tensor]) -> None:
        """Moves every member by its gradient, in place."""
        for group in self.groups:
            # contiguous, or the fused update rounds otherwise
            found = [grads[name][k].contiguous() for name, k in group.places]
            if self.config.optimizer == "adam":
                first, second = group.moments
                adam(
                    group.params, found, first, second, [], group.steps, fused=True,
                    amsgrad=False, beta1=BETA1, beta2=BETA2, lr=group.rate, weight_decay=0.0,
                    eps=EPSILON, maximize=False,
                )  # fmt: skip
            else:
                momentum: list[Tensor | None] = [None] * len(found)
                momentum[:] = group.moments[0] if group.moments else momentum
                sgd(
                    group.params, found, momentum, fused=True, weight_decay=0.0,
                    momentum=self.config.momentum, lr=group.rate, dampening=0.0,
                    nesterov=False, maximize=False,
                )  # fmt: skip
        self.taken += 1

    def keep(self, index: Sequence[int]) -> Stack:
        """Drops all members but those at `index`; their state goes on. Returns the new stack."""
        chosen = torch.tensor(list(index), device=next(iter(self.stack.values())).device)
        stack, *moments = (
            {name: value.index_select(0, chosen) for name, value in part.items()}
            for part in (self.stack, *self.moments)
        )
        self._build(stack, moments, [self.rates[k] for k in index])
        return self.stack
