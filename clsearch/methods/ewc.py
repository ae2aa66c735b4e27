"""Elastic Weight Consolidation (Kirkpatrick et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from clsearch.errors import InputError
from clsearch.methods._anchor import AnchorOptions, QuadraticAnchor
from clsearch.methods.base import (
    Context,
    Evidence,
    ImportanceObjective,
    MethodOptions,
    Start,
    State,
)
from clsearch.models.base import Params
from clsearch.scenarios.base import Task
from clsearch.space import Hyper


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """`−log p(y|x)` of each sample: logits `[B, classes]`, labels `[B]` to `[B]`."""
    return cross_entropy(logits, labels, reduction="none")


def expected_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """`√p(c|x) · log p(c|x)` of every class c, the root held fixed: `[B, classes]`.

    The squares of its gradients add up to the expectation over the model's own answers.
    """
    log = log_softmax(logits, -1)
    return (log / 2).exp().detach() * log


FISHER = {
    "empirical": ImportanceObjective(negative_log_likelihood, "square"),
    "true": ImportanceObjective(expected_log_likelihood, "square"),
}
"""The diagonal of the Fisher information, over the labels or over the model's own answers."""


def fisher(kind: str, task: Task) -> ImportanceObjective:
    """What the Fisher information of a task is measured by.

    Over the labels it is the task's own loss that is differentiated: the squared distance of
    embeddings is −log p of a Gaussian of variance ½ around them, up to a constant.
    """
    objective = FISHER[kind]
    return replace(objective, value=task.answers.losses) if kind == "empirical" else objective


class EWCOptions(AnchorOptions):
    fisher: Literal["empirical", "true"] = Field(
        "empirical",
        description="Labels of the data, or the expectation over the model's own answers (one"
        " backward pass for each class).",
    )
    anchors: Literal["running", "per_task"] = Field(
        "running",
        description="One anchor, the latest weights, or a penalty for each task around its own"
        " (Kirkpatrick et al. 2017).",
    )


class EWC(QuadraticAnchor):
    """`λ/2 · Σ_i F_i (θ_i − θ*_i)²` (Kirkpatrick et al. 2017, eq. 3), λ called `strength`.

    F is the diagonal of the Fisher information: the mean over training samples of the *squared
    per-sample* gradient of the log-likelihood, so that it does not depend on the batch size it is
    estimated with. With `anchors: running` the sum of F and the latest weights stand for all
    earlier tasks (online EWC). With `per_task` every task keeps its own penalty; their sum is,
    up to a constant, one penalty with F = Σ F_t around θ* = Σ F_t θ*_t / Σ F_t, and that is what
    is stored.
    """

    name: ClassVar[str] = "ewc"
    version: ClassVar[int] = 2
    Options: ClassVar[type[MethodOptions]] = EWCOptions
    space: ClassVar[dict[str, Hyper]] = {
        "strength": Hyper(100.0, (1.0, 10.0, 100.0, 1000.0), "λ of the quadratic penalty.")
    }

    def check(self, tasks: Sequence[Task], epochs: int) -> None:
        if self.options.fisher == "true" and not all(t.answers.probabilities for t in tasks):
            allowed = (
                "empirical, where tasks answer with embeddings: there are no classes to expect"
            )
            raise InputError("fisher", "true", allowed)
        if self.options.anchors == "per_task" and self.options.accumulate != "sum":
            allowed = "sum, where `anchors` is per_task: every task keeps its own penalty"
            raise InputError("accumulate", self.options.accumulate, allowed)

    def measure(self, start: Start, params: Params, evidence: Evidence, context: Context) -> Params:
        return evidence.importance(fisher(self.options.fisher, context.task))

    def anchor(self, state: State, name: str, new: Tensor, value: Tensor) -> Tensor:
        old = state.get(f"importance.{name}")
        if self.options.anchors == "running" or old is None:
            return value
        total = old + new
        mean = (old * state[f"anchor.{name}"] + new * value) / total
        return torch.where(total > 0, mean, value)
