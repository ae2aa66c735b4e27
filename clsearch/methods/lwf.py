"""Learning without Forgetting (Li and Hoiem 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear, log_softmax, softmax

from clsearch.errors import InputError
from clsearch.methods.base import (
    ChainState,
    Context,
    Evidence,
    Method,
    MethodOptions,
    Start,
    Thresholds,
)
from clsearch.models.base import Params, head_names
from clsearch.regularizers.base import Hypers
from clsearch.scenarios.base import Task
from clsearch.space import Hyper


class LwFOptions(MethodOptions):
    temperature: float = Field(2.0, ge=0.01, description="T of the softened answers.")
    warm_up: int = Field(
        0,
        ge=0,
        description="Epochs in which a new output layer is trained alone; where tasks share one"
        " there are none.",
    )


class LwF(Method):
    """`λ · Σ_old tasks −Σ_c y'_c log ŷ'_c`, y' = softmax(z/T) (Li and Hoiem 2016, eq. 2–4).

    y' are the answers that the network gave to the new task's samples with each old output layer
    before training, ŷ' those of now; mean over samples, λ called `strength`. Old output layers
    train on. With `warm_up` a new output layer first trains alone, the rest frozen. State:
    `heads`, the output layers learned so far.
    """

    name: ClassVar[str] = "lwf"
    needs_classes: ClassVar[bool] = True
    Options: ClassVar[type[MethodOptions]] = LwFOptions
    space: ClassVar[dict[str, Hyper]] = {
        "strength": Hyper(1.0, (0.1, 1.0, 10.0), "λ of the distillation of old answers.")
    }

    def check(self, tasks: Sequence[Task], epochs: int) -> None:
        if self.options.warm_up >= epochs:
            allowed = f"fewer than the {epochs} epochs of training"
            raise InputError("warm_up", self.options.warm_up, allowed)

    def begin(self, parent: ChainState | None, context: Context) -> Start:
        start = super().begin(parent, context)
        if parent is None:
            return start
        old = [name for head in self._heads(start) for name in head_names(head)]
        new = tuple(n for n in head_names(context.task.head) if n not in old)
        return replace(
            start,
            trainable=start.trainable | self.everything(old),
            alone=new,
            warm_up=self.options.warm_up if new else 0,
        )

    @staticmethod
    def _heads(start: Start) -> list[int]:
        heads = start.state.get("heads")
        return [] if heads is None else [int(head) for head in heads]

    def targets(self, start: Start, features: Tensor) -> dict[str, Tensor]:
        """`answer.<head>` `[B, classes]`: the softened answers of each old output layer."""
        return {
            f"answer.{head}": softmax(
                self._logits(start.params, features, head) / self.options.temperature, -1
            )
            for head in self._heads(start)
        }

    @staticmethod
    def _logits(params: Mapping[str, Tensor], features: Tensor, head: int) -> Tensor:
        weight, bias = head_names(head)
        return linear(features, params[weight], params[bias])

    def distillation(
        self,
        params: Mapping[str, Tensor],
        features: Tensor,
        targets: Mapping[str, Tensor],
        start: Start,
        hyper: Hypers,
    ) -> Tensor:
        total = features.new_zeros(())
        for head in self._heads(start):
            now = log_softmax(self._logits(params, features, head) / self.options.temperature, -1)
            total = total - (targets[f"answer.{head}"] * now).sum(-1).mean()
        return hyper["strength"] * total

    def consolidate(
        self,
        start: Start,
        params: Params,
        evidence: Evidence,
        thresholds: Thresholds | None,
        context: Context,
    ) -> ChainState:
        heads = dict.fromkeys([*self._heads(start), context.task.head])
        return ChainState(params, {**start.state, "heads": torch.tensor(list(heads))})
