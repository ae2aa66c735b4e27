"""The update of a pack: torch's own fused optimisers over the members of stacked tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clsearch.config import TrainingConfig

Stack = dict[str, Tensor]


class PackOptimizer:
    """Fused Adam or SGD over stacks `[K, …]`, each member with its own learning rate.

    Members are views of the stacks; those of one learning rate form one parameter group, and a
    group is one fused call. Every element's arithmetic is that of its own tensor, so a member
    moves bit for bit as it would alone.
    """

    def __init__(self, config: TrainingConfig, stack: Stack, rates: Sequence[float]) -> None:
        self.config = config
        self._build(stack, rates)

    def _build(self, stack: Stack, rates: Sequence[float]) -> None:
        self.stack, self.rates = stack, list(rates)
        self.views = {name: value.unbind(0) for name, value in stack.items()}
        alike: dict[str, list[int]] = {}
        for k, rate in enumerate(self.rates):  # by its text: NaN is not even equal to itself
            alike.setdefault(repr(rate), []).append(k)
        groups = [
            {
                "params": [views[k] for k in members for views in self.views.values()],
                "lr": self.rates[members[0]],
            }
            for members in alike.values()
        ]
        self.optimizer: torch.optim.Optimizer
        if self.config.optimizer == "adam":
            self.optimizer = torch.optim.Adam(groups, fused=True)
        else:
            momentum = self.config.momentum
            self.optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)

    def step(self, grads: Mapping[str, Tensor]) -> None:
        """Moves every member by its gradient, in place."""
        for name, views in self.views.items():
            for view, grad in zip(views, grads[name].unbind(0), strict=True):
                view.grad = grad.contiguous()  # or the fused update rounds otherwise
        self.optimizer.step()

    def keep(self, index: Sequence[int]) -> Stack:
        """Drops all members but those at `index`; their state goes on. Returns the new stack."""
        old_views, old_state = self.views, self.optimizer.state
        chosen = torch.tensor(list(index), device=next(iter(self.stack.values())).device)
        self._build(
            {name: value.index_select(0, chosen) for name, value in self.stack.items()},
            [self.rates[k] for k in index],
        )
        for name, views in self.views.items():
            for view, k in zip(views, index, strict=True):
                state = old_state.get(old_views[name][k])
                if state is not None:
                    self.optimizer.state[view] = state
        return self.stack
