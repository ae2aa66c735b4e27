"""Encoder Based Lifelong Learning (Rannen Triki et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, mse_loss, pad

from clsearch.errors import InputError
from clsearch.methods.base import ChainState, Context, Evidence, MethodOptions, Start, Thresholds
from clsearch.methods.lwf import LwF, LwFOptions
from clsearch.models.base import Params, head_names
from clsearch.products import REGISTER
from clsearch.regularizers.base import Hypers
from clsearch.scenarios.base import Task
from clsearch.space import Hyper


class EBLLOptions(LwFOptions):
    code: int | None = Field(
        None, ge=1, description="Numbers in a code; default a fourth as many as there are features."
    )
    reconstruction: float = Field(
        0.1, ge=0, description="Weight of the reconstruction beside the task's loss."
    )
    code_epochs: int = Field(20, ge=1, description="Epochs of training an autoencoder.")
    code_lr: float = Field(0.01, gt=0, description="Learning rate of an autoencoder (Adam).")


class EBLL(LwF):
    """LwF and `α/2 · Σ_old tasks ‖σ(W_t F(x)) − σ(W_t F*(x))‖²` (Rannen Triki et al. 2017, eq. 8).

    F* are the features before training, F those of now, W_t the encoder of task t: after each
    task an autoencoder of one hidden layer is trained on the features to reconstruct them, and to
    let the output layer answer right from the reconstruction (eq. 5); its encoder is kept and its
    decoder thrown away. Codes keep what an old task needs of the features and leave the rest
    free. α is called `code_strength`. State: LwF's, and `encoders.weight`
    `[tasks · code, features]` and `.bias`: a little more for each task.
    """

    name: ClassVar[str] = "ebll"
    version: ClassVar[int] = 2
    Options: ClassVar[type[MethodOptions]] = EBLLOptions
    space: ClassVar[dict[str, Hyper]] = {
        **LwF.space,
        "code_strength": Hyper(1.0, (0.1, 1.0, 10.0), "α of the loss between codes."),
    }

    def check(self, tasks: Sequence[Task], epochs: int) -> None:
        super().check(tasks, epochs)
        features, code = self.backbone.features, self.options.code
        if code is not None and code >= features:
            allowed = f"fewer numbers than the {features} features of the last hidden layer"
            raise InputError("code", code, allowed)

    def targets(self, start: Start, features: Tensor) -> dict[str, Tensor]:
        """LwF's, and `codes` `[B, old tasks · code]`, filled up: the codes of the features."""
        if "encoders.weight" not in start.state:
            return {}
        return super().targets(start, features) | {"codes": _codes(start, features)}

    def distillation(
        self,
        params: Mapping[str, Tensor],
        features: Tensor,
        targets: Mapping[str, Tensor],
        start: Start,
        hyper: Hypers,
    ) -> Tensor:
        answers = super().distillation(params, features, targets, start, hyper)
        change = _codes(start, features) - targets["codes"]
        return answers + hyper["code_strength"] / 2 * change.square().sum(-1).mean()

    def consolidate(
        self,
        start: Start,
        params: Params,
        evidence: Evidence,
        thresholds: Thresholds | None,
        context: Context,
    ) -> ChainState:
        """Trains the task's autoencoder and keeps its encoder."""
        chain = super().consolidate(start, params, evidence, thresholds, context)
        state = dict(chain.state)
        for name, new in self._encoder(params, evidence, context).items():
            state[name] = torch.cat([state.get(name, new[:0]), new])
        return ChainState(params, state)

    def _encoder(self, params: Params, evidence: Evidence, context: Context) -> Params:
        """`encoders.weight` and `.bias` of one trained on the task's features."""
        features, labels = evidence.features()
        options, rng = self.options, context.generator("autoencoder")
        size, bound = features.shape[1], features.shape[1] ** -0.5
        code = options.code or math.ceil(size / 4)
        shapes = ((code, size), (code,), (size, code), (size,))
        leaves = [torch.empty(shape).uniform_(-bound, bound, generator=rng) for shape in shapes]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        head = [params[name] for name in head_names(context.task.head)]
        optimizer = torch.optim.Adam(leaves, lr=options.code_lr)
        for _ in range(options.code_epochs):
            for index in torch.split(torch.randperm(len(features), generator=rng), BATCH):
                x = features[index]
                again = linear(linear(x, *leaves[:2]).sigmoid(), *leaves[2:])
                loss = options.reconstruction * mse_loss(again, x)
                loss = loss + cross_entropy(linear(again, *head), labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return {"encoders.weight": leaves[0].detach(), "encoders.bias": leaves[1].detach()}


def _codes(start: Start, features: Tensor) -> Tensor:
    """`σ(W_t F)` of every old task t, side by side, and ½ up to a multiple of `REGISTER`."""
    weight, bias = start.state["encoders.weight"], start.state["encoders.bias"]
    missing = -len(bias) % REGISTER
    return linear(features, pad(weight, (0, 0, 0, missing)), pad(bias, (0, missing))).sigmoid()


BATCH = 128
"""Samples in a step of an autoencoder's training."""
