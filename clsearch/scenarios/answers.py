"""What the outputs of a task's head mean: the loss they are trained by, and how they are judged."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


class Answers(ABC):
    """The meaning of a head's outputs. Another one is another file; a `Task` carries its own.

    `loss` and `outputs_are` name the loss and the outputs in messages and files.
    `probabilities`: the outputs are logits of a distribution over the classes. With
    `shared_labels` tasks that share a head share their labels too; without, every task's labels
    are its own.
    """

    loss: ClassVar[str]
    outputs_are: ClassVar[str]
    probabilities: ClassVar[bool]
    shared_labels: ClassVar[bool]

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, str]:
        """What goes into the digest of a task's data, by name."""

    @abstractmethod
    def width(self, classes: int) -> int:
        """How many outputs the head of a task of so many classes has."""

    @abstractmethod
    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample, `[N]`: outputs `[N, width]`, labels int64 `[N]`."""

    @abstractmethod
    def guess(self, width: int) -> float:
        """The mean loss of a head of so many outputs that knows nothing."""

    @abstractmethod
    def own(self, outputs: Tensor, own: Tensor) -> Tensor:
        """Of several heads side by side, `[B, Σ width]`, those of each sample's task.

        `own` bool `[B, Σ width]` says which these are.
        """

    @abstractmethod
    def judged(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """What `measure` has to know of each sample, `[…, B, …]`.

        Outputs `[…, B, width]` may be those of several models; labels int64 `[B]`.
        """

    @abstractmethod
    def measure(self, judged: Tensor, labels: Tensor, image: Tensor | None = None) -> list[float]:
        """How good each of M models is, from 0 to 1: `judged` `[M, N, …]`, labels int64 `[N]`.

        `image` int64 `[N]` says which samples are of one image; without, none are.
        """

    @abstractmethod
    def at_most(self, judged: Tensor, labels: Tensor, image: Tensor | None = None) -> list[float]:
        """The most that `measure` can be when of the N samples the first n are judged.

        `judged` `[M, n, …]`. That is `measure` itself where all are.
        """

    @abstractmethod
    def joined(self, others: Sequence[Answers]) -> Answers:
        """The answers to tasks side by side; `others` are those of all, with these first."""

    @abstractmethod
    def on(self, device: torch.device) -> Self:
        """The same on a device."""


@dataclass(frozen=True)
class Classification(Answers):
    """Outputs are logits, one a class: softmax and cross-entropy, judged by accuracy."""

    loss: ClassVar[str] = "cross-entropy"
    outputs_are: ClassVar[str] = "logits"
    probabilities: ClassVar[bool] = True
    shared_labels: ClassVar[bool] = True

    @property
    def identity(self) -> Mapping[str, str]:
        return {}

    def width(self, classes: int) -> int:
        return classes

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(outputs, labels, reduction="none")

    def guess(self, width: int) -> float:
        return math.log(width)

    def own(self, outputs: Tensor, own: Tensor) -> Tensor:
        return outputs.masked_fill(~own, float("-inf"))

    def judged(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Whether the class of the largest logit is the right one, bool `[…, B]`."""
        return outputs.max(-1).indices == labels

    def measure(self, judged: Tensor, labels: Tensor, image: Tensor | None = None) -> list[float]:
        """The fraction of samples answered right."""
        return self.at_most(judged, labels)

    def at_most(self, judged: Tensor, labels: Tensor, image: Tensor | None = None) -> list[float]:
        """As if all others were right."""
        total, seen = len(labels), judged.shape[1]
        return [(right + total - seen) / total for right in judged.sum(1).tolist()]

    def joined(self, others: Sequence[Answers]) -> Answers:
        return self

    def on(self, device: torch.device) -> Self:
        return self


CLASSIFICATION = Classification()
