"""The pure step: one member's loss, and its gradient for a whole pack.

A pack of one goes through the same `vmap` as a pack of K, and on a CPU dense layers go member by
member through the same product (see `dense`), so a trial's result does not depend on the pack it
was trained in. Networks with convolutions go member by member altogether on a CPU: a convolution
fills a core alone, and under `vmap` it would be a grouped one, slower and of other bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from clsearch.methods.base import Method, Start
from clsearch.models.base import Backbone, Tap
from clsearch.regularizers.base import Regularizer
from clsearch.training.batch import Batch, DeviceData, Readout, answer
from clsearch.training.dense import fast_linear
from clsearch.training.tap import Noise, TrainingTap

Stack = dict[str, Tensor]
"""Trained parameters and running statistics of a pack by name, `[K, …]`."""

OWN_IMAGES = 5
"""Dimensions of images that each member has its own of, `[K, B, C, H, W]`."""


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
    """The stacked gradient `[K, …]` of a pack, its losses and those of the task alone, `[K]`:
    the cross-entropies, where the task is to tell classes apart.

    `task` is the gradient of the task's loss, where the method tracks it. `moments` are the
    batch's, by the running statistic that is to follow them.
    """

    whole: Stack
    losses: Tensor
    entropies: Tensor
    task: Stack | None = None
    moments: Stack = field(default_factory=dict)


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
        """Whether the task's loss is all that autograd differentiates."""
        return self.method.analytic and not self.method.distils and not self.differentiated

    @property
    def guess(self) -> float:
        """The loss of guessing: of classes, the log of their number."""
        return self.readout.answers.guess(len(self.readout.weights(self.start.params)[1]))

    def outputs(
        self,
        own: Mapping[str, Tensor],
        hyper: Mapping[str, Tensor],
        x: Tensor,
        group: Tensor | None,
        targets: Mapping[str, Tensor],
        noise: Noise | None,
    ) -> tuple[Tensor, ...]:
        """One member's outputs `[B, C]`, the terms (0-d) that autograd has to differentiate, and
        the batch's moments, one for each of `self.start.statistics`."""
        everything = {**self.start.params, **own}
        params = {name: own[name] for name in self.start.trainable}
        tap = TrainingTap(self.start.gates, self.start.statistics, noise)
        logits, activations = answer(self.backbone, everything, x, self.readout, None, group, tap)
        terms = logits.new_zeros(())
        if not self.method.analytic:
            terms = terms + self.method.penalty(params, self.start.state, hyper)
        if targets:
            terms = terms + self.method.distillation(
                everything, tap.features, targets, self.start, hyper
            )
        for regularizer, importance in self.differentiated:
            terms = terms + regularizer.penalty(params, activations, importance, hyper)
        return logits, terms, *(tap.found[name] for name in self.start.statistics)

    def losses(
        self, stack: Stack, hyper: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor, Stack]:
        """Each member's mean loss at the task and the terms that autograd differentiates, `[K]`,
        and the batch's moments."""
        shared = (batch.group, batch.targets, batch.noise)
        logits, terms, *moments = self._members(self.outputs, (stack, hyper), batch.x, shared)
        k, b, _ = logits.shape
        each = self.readout.answers.losses(logits.flatten(0, 1), batch.y.repeat(k))
        found = dict(zip(self.start.statistics, moments, strict=True))
        return each.view(k, b).mean(1), terms, found

    def _members(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        stacks: Sequence[Mapping[str, Tensor]],
        x: Tensor,
        shared: Sequence[Any],
    ) -> Iterable[Tensor]:
        """What a function of one member's tensors, images and what all share gives of each;
        stacked.

        The images `x` are each member's own, `[K, B, C, H, W]`, or for all, `[B, C, H, W]`. Their
        device decides how.
        """
        device, own = x.device, x.ndim == OWN_IMAGES
        loop = self.backbone.convolutional and device.type == "cpu"
        with fast_linear(device, packed=not loop):
            if not loop:
                in_dims = (0,) * len(stacks) + (0 if own else None,) + (None,) * len(shared)
                pack = vmap(function, in_dims=in_dims, randomness="same")
                return tuple(pack(*stacks, x, *shared))
            parts = [{name: value.unbind(0) for name, value in s.items()} for s in stacks]
            results = [
                function(
                    *({name: one[k] for name, one in part.items()} for part in parts),
                    x[k] if own else x,
                    *shared,
                )
                for k in range(len(next(iter(stacks[0].values()))))
            ]
        return tuple(map(torch.stack, zip(*results, strict=True)))

    def gradient(self) -> Callable[[Stack, Mapping[str, Tensor], Batch], Gradient]:
        """A function of (stack, hyper `[K]`, batch) to the pack's gradient."""
        masks = {n: m for n, m in self.start.trainable.items() if not bool(m.all())}

        def of(stack: Stack, hyper: Mapping[str, Tensor], batch: Batch) -> Gradient:
            params = {name: stack[name] for name in self.start.trainable}
            leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
            task, terms, moments = self.losses(stack | leaves, hyper, batch)
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
                self.method.add_gradient(grads, params, self.start.state, hyper)
            for regularizer in self.regularizers:
                if regularizer.analytic:
                    regularizer.add_gradient(grads, params, hyper)
            for name, mask in masks.items():
                grads[name].mul_(mask)
            return Gradient(grads, (task + terms).detach(), task.detach(), tracked, moments)

        return of

    def with_targets(self, data: DeviceData, batch_size: int) -> DeviceData:
        """The samples with what the network before training says of them, for distillation."""
        if not self.method.distils:
            return data
        found: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for batch in data.batches(batch_size):
                tap = Tap(self.start.gates)
                answer(
                    self.backbone, self.start.params, batch.x, self.readout, None, batch.group, tap
                )
                for name, value in self.method.targets(self.start, tap.features).items():
                    found.setdefault(name, []).append(value)
        return replace(data, targets={name: torch.cat(parts) for name, parts in found.items()})

    def judge(self) -> Callable[[Stack, Batch], Tensor]:
        """A function of (stack, batch) to what each member's answers are judged by, `[K, B, …]`."""

        def one(own: Stack, x: Tensor, group: Tensor | None) -> tuple[Tensor]:
            everything = {**self.start.params, **own}
            gates = self.start.gates
            return (answer(self.backbone, everything, x, self.readout, gates, group)[0],)

        @torch.no_grad()
        def of(stack: Stack, batch: Batch) -> Tensor:
            (outputs,) = self._members(one, (stack,), batch.x, (batch.group,))
            return self.readout.answers.judged(outputs, batch.y)

        return of
