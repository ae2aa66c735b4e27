"""The pure step: one member's loss, and its gradient for a whole pack.

A pack of one goes through the same `vmap` as a pack of K, and on a CPU dense layers go member by
member through the same product (see `dense`), so a trial's result does not depend on the pack it
was trained in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import cross_entropy

from clsearch.methods.base import Method, Start
from clsearch.models.base import Backbone
from clsearch.regularizers.base import Regularizer
from clsearch.training.batch import Batch, DeviceData, Readout, answer
from clsearch.training.dense import fast_linear

Stack = dict[str, Tensor]
"""Trained parameters of a pack by name, `[K, …]`."""


def state_of(regularizer: Regularizer, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A regulariser's part of `ChainState.regularizer_state`, by its own names."""
    prefix = f"{regularizer.name}."
    return {n.removeprefix(prefix): v for n, v in states.items() if n.startswith(prefix)}


def _gradient(losses: Tensor, leaves: Stack, keep: bool = False) -> Stack:
    """The stacked gradient of members' losses `[K]`: each depends on its own weights alone, so
    the gradient of their sum is each one's."""
    if not losses.requires_grad:
        return {name: torch.zeros_like(value) for name, value in leaves.items()}
    found = torch.autograd.grad(
        losses.sum(), list(leaves.values()), materialize_grads=True, retain_graph=keep
    )
    return dict(zip(leaves, found, strict=True))


@dataclass(frozen=True)
class Gradient:
    """The stacked gradient `[K, …]` of a pack, its losses and their cross-entropies, `[K]`.

    `task` is the gradient of the cross-entropy alone, where the method tracks it.
    """

    whole: Stack
    losses: Tensor
    entropies: Tensor
    task: Stack | None = None


@dataclass(frozen=True)
class Objective:
    """What a pack minimises: the method and regularisers over a backbone, from a start.

    `regularizer_state` is what the regularisers remember of earlier tasks.
    """

    backbone: Backbone
    method: Method
    regularizers: Sequence[Regularizer]
    start: Start
    readout: Readout
    regularizer_state: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def differentiated(self) -> list[tuple[Regularizer, Mapping[str, Tensor]]]:
        """The regularisers that autograd differentiates, each with what it remembers."""
        return [
            (r, state_of(r, self.regularizer_state)) for r in self.regularizers if not r.analytic
        ]

    @property
    def plain(self) -> bool:
        """Whether the cross-entropy is all that autograd differentiates."""
        return self.method.analytic and not self.method.distils and not self.differentiated

    @property
    def guess(self) -> float:
        """The cross-entropy of guessing: log of the number of classes."""
        return math.log(len(self.readout.weights(self.start.params)[1]))

    def outputs(
        self,
        params: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        x: Tensor,
        group: Tensor | None,
        targets: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """One member's logits `[B, C]`, and the terms (0-d) that autograd has to differentiate."""
        everything = {**self.start.params, **params}
        logits, activations = answer(
            self.backbone, everything, x, self.readout, self.start.gates, group
        )
        terms = logits.new_zeros(())
        if not self.method.analytic:
            terms = terms + self.method.penalty(params, self.start.state, hyper)
        if targets:
            features = activations[self.backbone.unit_layers[-1].name].flatten(1)
            terms = terms + self.method.distillation(
                everything, features, targets, self.start, hyper
            )
        for regularizer, importance in self.differentiated:
            terms = terms + regularizer.penalty(params, activations, importance, hyper)
        return logits, terms

    def losses(
        self, stack: Stack, hyper: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Each member's mean cross-entropy and the terms that autograd differentiates, `[K]`."""
        pack = vmap(self.outputs, in_dims=(0, 0, None, None, None))
        with fast_linear(batch.x.device):
            logits, terms = pack(stack, hyper, batch.x, batch.group, batch.targets)
        k, b, _ = logits.shape
        each = cross_entropy(logits.flatten(0, 1), batch.y.repeat(k), reduction="none")
        return each.view(k, b).mean(1), terms

    def gradient(self) -> Callable[[Stack, Mapping[str, Tensor], Batch], Gradient]:
        """A function of (stack, hyper `[K]`, batch) to the pack's gradient."""
        masks = {n: m for n, m in self.start.trainable.items() if not bool(m.all())}

        def of(stack: Stack, hyper: Mapping[str, Tensor], batch: Batch) -> Gradient:
            leaves = {name: value.detach().requires_grad_() for name, value in stack.items()}
            task, terms = self.losses(leaves, hyper, batch)
            tracked = None
            if self.method.tracks:
                tracked = _gradient(task, leaves, keep=not self.plain)
                grads = {name: value.clone() for name, value in tracked.items()}
                if not self.plain:
                    for name, value in _gradient(terms, leaves).items():
                        grads[name] += value
            else:
                grads = _gradient(task + terms, leaves)
            if self.method.analytic:
                self.method.add_gradient(grads, stack, self.start.state, hyper)
            for regularizer in self.regularizers:
                if regularizer.analytic:
                    regularizer.add_gradient(grads, stack, hyper)
            for name, mask in masks.items():
                grads[name].mul_(mask)
            return Gradient(grads, (task + terms).detach(), task.detach(), tracked)

        return of

    def with_targets(self, data: DeviceData, batch_size: int) -> DeviceData:
        """The samples with what the network before training says of them, for distillation."""
        if not self.method.distils:
            return data
        found: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for batch in data.batches(batch_size):
                _, activations = answer(
                    self.backbone, self.start.params, batch.x, self.readout, self.start.gates,
                    batch.group,
                )  # fmt: skip
                features = activations[self.backbone.unit_layers[-1].name].flatten(1)
                for name, value in self.method.targets(self.start, features).items():
                    found.setdefault(name, []).append(value)
        return replace(data, targets={name: torch.cat(parts) for name, parts in found.items()})

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
