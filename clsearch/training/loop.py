"""The epoch loop of a pack: K members of one chain trained together, each with its own fate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from clsearch.config import TrainingConfig
from clsearch.models.base import Params
from clsearch.records import DIVERGENCE, digest
from clsearch.training.augment import Views
from clsearch.training.batch import DeviceData, PackData
from clsearch.training.step import Objective
from clsearch.training.tap import Noise
from clsearch.training.update import PackOptimizer

DIVERGED = 10.0
"""A member has diverged whose mean loss over its last epoch is so many times a guess's."""

HUGE = 1e6
"""So has one with a weight larger than this."""

MOMENTUM = 0.1
"""How far a running statistic moves to the batch's after a step (torch's default)."""


@dataclass
class Trained:
    """What became of one member: `params` are its trained parameters and the running statistics it
    kept, or None with a `reason`.

    `curve` holds the validation accuracy (fraction) after each epoch; `accuracy` that of `params`.
    `running` is what the method kept by `after_step`, as it was with these `params`.
    """

    member: int
    params: Params | None
    accuracy: float | None
    reason: str = ""
    curve: list[float] = field(default_factory=list)
    running: Params = field(default_factory=dict)


@dataclass
class _Best:
    accuracy: float = -1.0
    epoch: int = 0
    entropy: float = 0.0
    params: Params = field(default_factory=dict)
    statistics: Params = field(default_factory=dict)
    running: Params = field(default_factory=dict)


def train_pack(
    objective: Objective,
    hypers: Sequence[Mapping[str, float]],
    data: PackData,
    config: TrainingConfig,
    generator: Callable[[str], torch.Generator],
) -> Iterator[Trained]:
    """Trains one member for each of `hypers` and yields each as soon as its fate is known.

    All members share initial weights and the order of the samples (common random numbers); what
    augmentation draws goes by a member's hyperparameters, whatever pack it is in. A member whose
    loss or weights stop being finite is yielded with the reason and dropped, and so is one that
    stops early; the others go on bit for bit as if alone. One that ends with finite weights and a
    loss far above a guess's has diverged, and is yielded with that reason.
    """
    device = data.train.device
    pack = _Pack(objective, hypers, config, device)
    train = objective.with_targets(data.train, objective.backbone.evaluation_batch)
    n = len(train)
    for epoch in range(1, config.epochs + 1):
        order = torch.randperm(n, generator=generator(f"order-{epoch}")).to(device)
        pack.warm_up(epoch)
        noise = generator(f"dropout-{epoch}")
        views = pack.views(n, epoch, generator)
        finite = pack.epoch(torch.split(order, config.batch_size), train, noise, views)
        yield from pack.drop_broken(finite, epoch)
        if not pack.members:
            return
        yield from pack.validate(data.validation, epoch)
        if not pack.members:
            return


class _Pack:
    """The members still training: stacked parameters, statistics, hyperparameters, optimiser."""

    def __init__(
        self,
        objective: Objective,
        hypers: Sequence[Mapping[str, float]],
        config: TrainingConfig,
        device: torch.device,
    ) -> None:
        self.objective = objective
        self.config, self.method, self.start = config, objective.method, objective.start
        self.held: list[str] = []
        self.limit = DIVERGED * objective.guess
        self.updating = [r for r in objective.regularizers if r.updates]
        self.frozen = {
            name: (~mask, objective.start.params[name])
            for name, mask in objective.start.trainable.items()
            if not bool(mask.all())
        }
        self.members, self.hypers = list(range(len(hypers))), hypers
        self.gradient, self.judge = objective.gradient(), objective.judge()
        k = len(hypers)
        self.stack, self.statistics = (
            {name: torch.stack([self.start.params[name]] * k) for name in part}
            for part in (self.start.trainable, self.start.statistics)
        )
        self.hyper = {
            name: torch.tensor([h[name] for h in hypers], device=device) for name in hypers[0]
        }
        self.optimizer = PackOptimizer(config, self.stack, [h["lr"] for h in hypers])
        self.running = self.method.running(self.stack) if self.method.tracks else {}
        self.entropy = torch.zeros(k, device=device)
        self.curves: list[list[float]] = [[] for _ in hypers]
        self.best = [_Best() for _ in hypers]

    def warm_up(self, epoch: int) -> None:
        """Holds or lets go what the start trains only after its warm-up, and the statistics.

        Letting go begins the optimiser anew: moments of a time of no movement say nothing.
        """
        if epoch == 1 and self.start.warm_up:
            self.held = [name for name in self.stack if name not in self.start.alone]
            still = replace(self.objective, start=replace(self.start, statistics={}))
            self.gradient = still.gradient()
        elif epoch == self.start.warm_up + 1 and self.held:
            self.held, self.gradient = [], self.objective.gradient()
            self.optimizer = PackOptimizer(self.config, self.stack, self.optimizer.rates)

    def views(
        self, samples: int, epoch: int, generator: Callable[[str], torch.Generator]
    ) -> list[Views] | list[None]:
        """How the members see the samples of each batch of an epoch; None: as they are."""
        size, augment = self.config.batch_size, self.config.augment
        if augment is None:
            return [None] * math.ceil(samples / size)
        names = [digest(dict(self.hypers[member])) for member in self.members]
        sources = [generator(f"augment-{epoch}-{name}") for name in names]
        return Views.draw(augment, sources, samples, self.entropy.device).split(size)

    def epoch(
        self,
        batches: Sequence[Tensor],
        data: DeviceData,
        source: torch.Generator,
        views: Sequence[Views | None],
    ) -> Tensor:
        """One pass over the samples; bool `[steps, K]`: which losses were finite.

        Dropout draws from `source`.
        """
        losses, entropies = [], []
        for index, own in zip(batches, views, strict=True):
            batch = data.batch(index, Noise(source), own)
            gradient = self.gradient(self.stack | self.statistics, self.hyper, batch)
            for name in self.held:
                gradient.whole[name].zero_()
            before = {}
            if gradient.task is not None:
                before = {name: value.clone() for name, value in self.stack.items()}
            self.optimizer.step(gradient.whole)
            self._follow(gradient.moments)
            if self.updating:
                self._update()
            if gradient.task is not None:
                self.method.after_step(self.running, gradient.task, before, self.stack)
            losses.append(gradient.losses)
            entropies.append(gradient.entropies)
        self.entropy = torch.stack(entropies).mean(0)
        return torch.stack(losses).isfinite()

    def _follow(self, moments: Mapping[str, Tensor]) -> None:
        """Moves the free running statistics towards the batch's."""
        for name, found in moments.items():
            old, free = self.statistics[name], self.start.statistics[name]
            self.statistics[name] = torch.where(free, old.lerp(found, MOMENTUM), old)

    def _update(self) -> None:
        """What regularisers do after a step, to the entries that may move alone."""
        for regularizer in self.updating:
            regularizer.after_update(self.stack, self.hyper)
        for name, (frozen, start) in self.frozen.items():
            self.stack[name].copy_(torch.where(frozen, start, self.stack[name]))
        for name in self.held:
            self.stack[name].copy_(self.start.params[name].expand_as(self.stack[name]))

    def drop_broken(self, finite: Tensor, epoch: int) -> Iterator[Trained]:
        """Yields and drops the members whose losses or weights are not finite."""
        kept = (self.stack | self.statistics).values()
        sound = torch.stack([v.flatten(1).isfinite().all(1) for v in kept]).all(0)
        broken = [k for k in range(len(self.members)) if not (finite[:, k].all() and sound[k])]
        for k in broken:
            steps = (~finite[:, k]).nonzero()
            step = int(steps[0]) + 1 if len(steps) else finite.shape[0]
            what = "loss" if len(steps) else "weights"
            reason = f"{what} not finite (NaN or infinite) in epoch {epoch}, step {step}"
            yield Trained(self.members[k], None, None, reason, self.curves[k])
        self._keep([k for k in range(len(self.members)) if k not in broken])

    def validate(self, data: DeviceData, epoch: int) -> Iterator[Trained]:
        """Measures all members; yields and drops those that are done."""
        stack = self.stack | self.statistics
        batches = data.batches(self.objective.backbone.evaluation_batch)
        judged = torch.cat([self.judge(stack, batch) for batch in batches], 1)
        done = []
        answers = self.objective.readout.answers
        for k, accuracy in enumerate(answers.measure(judged, data.labels, data.image)):
            self.curves[k].append(accuracy)
            if self._finished(k, accuracy, epoch):
                yield self._trained(k)
                done.append(k)
        self._keep([k for k in range(len(self.members)) if k not in done])

    def _trained(self, k: int) -> Trained:
        """Member k with the weights it stops with, or the reason why these are none."""
        best, member, curve = self.best[k], self.members[k], self.curves[k]
        largest = max(float(value.abs().max()) for value in best.params.values())
        what = ""
        if best.entropy > self.limit:
            loss = self.objective.readout.answers.loss
            what = f"a {loss} of {best.entropy:.3g}, over {DIVERGED:g} times a guess's"
        elif largest > HUGE:
            what = f"a weight of {largest:.3g}"
        if what:
            reason = f"{DIVERGENCE}: {what} in epoch {best.epoch}; take a smaller lr"
            return Trained(member, None, None, reason, curve)
        params = best.params | best.statistics
        return Trained(member, params, best.accuracy, "", curve, best.running)

    def _finished(self, k: int, accuracy: float, epoch: int) -> bool:
        """Whether member k stops here; keeps the weights it would stop with."""
        best, patience = self.best[k], self.config.patience
        if epoch <= self.start.warm_up:
            return False  # its accuracy is that of the old body under a new head
        last = epoch == self.config.epochs
        if accuracy > best.accuracy if patience else last:
            parts = (
                {name: value[k].clone() for name, value in part.items()}
                for part in (self.stack, self.statistics, self.running)
            )
            self.best[k] = _Best(accuracy, epoch, float(self.entropy[k]), *parts)
        return last or (patience is not None and epoch - self.best[k].epoch >= patience)

    def _keep(self, index: Sequence[int]) -> None:
        if len(index) == len(self.members):
            return
        self.members = [self.members[k] for k in index]
        self.curves = [self.curves[k] for k in index]
        self.best = [self.best[k] for k in index]
        if index:
            chosen = torch.tensor(index, device=self.hyper["lr"].device)
            self.hyper = {n: v.index_select(0, chosen) for n, v in self.hyper.items()}
            self.running, self.statistics = (
                {n: v.index_select(0, chosen) for n, v in part.items()}
                for part in (self.running, self.statistics)
            )
            self.entropy = self.entropy.index_select(0, chosen)
            self.stack = self.optimizer.keep(index)
