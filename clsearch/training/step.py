"""The pure step: one member's loss, and its gradient for a whole pack.

A pack of one goes through the same `vmap` as a pack of K, and on a CPU dense layers go member by
member through the same product (see `dense`), so a trial's result does not depend on the pack it
was trained in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import cross_entropy

from clsearch.methods.base import Method, Start
from clsearch.models.base import Backbone
from clsearch.regularizers.base import Regularizer
from clsearch.training.batch import Batch, Readout, answer
from clsearch.training.dense import fast_linear

Stack = dict[str, Tensor]
"""Trained parameters of a pack by name, `[K, …]`."""


@dataclass(frozen=True)
class Objective:
    """What a pack minimises: the method and regularisers over a backbone, from a start."""

    backbone: Backbone
    method: Method
    regularizers: Sequence[Regularizer]
    start: Start
    readout: Readout

    def outputs(
        self,
        params: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        x: Tensor,
        group: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One member's logits `[B, C]`, and the terms (0-d) that autograd has to differentiate."""
        everything = {**self.start.params, **params}
        logits, activations = answer(
            self.backbone, everything, x, self.readout, self.start.gates, group
        )
        terms = logits.new_zeros(())
        if not self.method.analytic:
            terms = terms + self.method.penalty(params, self.start.state, hyper)
        for regularizer in self.regularizers:
            if not regularizer.analytic:
                terms = terms + regularizer.penalty(params, activations, hyper)
        return logits, terms

    def losses(self, stack: Stack, hyper: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Each member's loss `[K]`: mean cross-entropy and the terms autograd differentiates."""
        pack = vmap(self.outputs, in_dims=(0, 0, None, None))
        with fast_linear(batch.x.device):
            logits, terms = pack(stack, hyper, batch.x, batch.group)
        k, b, _ = logits.shape
        each = cross_entropy(logits.flatten(0, 1), batch.y.repeat(k), reduction="none")
        return each.view(k, b).mean(1) + terms

    def gradient(self) -> Callable[[Stack, Mapping[str, Tensor], Batch], tuple[Stack, Tensor]]:
        """A function of (stack, hyper `[K]`, batch) to the stacked gradient and losses `[K]`."""
        masks = {n: m for n, m in self.start.trainable.items() if not bool(m.all())}

        def of(stack: Stack, hyper: Mapping[str, Tensor], batch: Batch) -> tuple[Stack, Tensor]:
            leaves = {name: value.detach().requires_grad_() for name, value in stack.items()}
            losses = self.losses(leaves, hyper, batch)
            # A member's loss depends on its own weights alone: the sum's gradient is each one's.
            found = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
            grads = dict(zip(leaves, found, strict=True))
            if self.method.analytic:
                self.method.add_gradient(grads, stack, self.start.state, hyper)
            for regularizer in self.regularizers:
                if regularizer.analytic:
                    regularizer.add_gradient(grads, stack, hyper)
            for name, mask in masks.items():
                grads[name].mul_(mask)
            return grads, losses.detach()

        return of

    def hits(self) -> Callable[[Stack, Batch], Tensor]:
        """A function of (stack, batch) to the number of right answers of each member `[K]`."""

        def one(params: Stack, x: Tensor, y: Tensor, group: Tensor | None) -> Tensor:
            everything = {**self.start.params, **params}
            logits, _ = answer(self.backbone, everything, x, self.readout, self.start.gates, group)
            return (logits.argmax(-1) == y).sum()

        pack = vmap(one, in_dims=(0, None, None, None))

        @torch.no_grad()
        def of(stack: Stack, batch: Batch) -> Tensor:
            with fast_linear(batch.x.device):
                return pack(stack, batch.x, batch.y, batch.group)

        return of
