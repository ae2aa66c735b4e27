"""Facts embedded beside word vectors, judged by retrieving images with facts (MAS §5.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from clsearch.scenarios.answers import Answers

MODALITIES = ("subject", "predicate", "object")


@dataclass(frozen=True, eq=False)
class Retrieval(Answers):
    """Outputs are three embeddings side by side: of subject, predicate and object.

    A sample's label is the number of its fact. `vectors` float32 `[facts, 3, D]` are the language
    views t of the facts, and `given` bool `[facts, 3]` says what a fact has: <S,*,*> has a subject
    alone, <S,P,*> a predicate too, and what it leaves open, its wild cards, does not count. An
    image x is as far from a fact f as its embeddings φ are from the fact's words,
    `d(x, f) = Σ_m w_m ‖φ_m(x) − t_m‖²`, w_m 1 where m is given and 0 where it is a wild card
    (Elhoseiny et al., "Sherlock: Scalable Fact Learning in Images", AAAI 2017). The loss is the
    distance from the image's own fact (MAS §5.2: the pairwise distance between the visual and the
    language embedding); the authors' code takes half of it.

    Every fact ranks all images, nearest first, those labelled with it being relevant; the measure
    is the mean over facts of the average precision (MAP of fact to image retrieval, MAS §5.2). An
    image of several facts is one image, though a sample for each of them.
    """

    vectors: Tensor
    given: Tensor
    loss: ClassVar[str] = "squared distance"
    outputs_are: ClassVar[str] = "embeddings of subject, predicate and object, side by side"
    probabilities: ClassVar[bool] = False
    shared_labels: ClassVar[bool] = False

    @property
    def identity(self) -> Mapping[str, str]:
        sha = hashlib.sha256(repr(tuple(self.vectors.shape)).encode())
        for part in (self.vectors, self.given):
            sha.update(part.contiguous().numpy().data)
        return {"facts": sha.hexdigest()}

    def width(self, classes: int) -> int:
        return self.vectors[0].numel()

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        away = self._parts(outputs) - self.vectors[labels]
        return (away.square().sum(-1) * self.given[labels]).sum(-1)

    def guess(self, width: int) -> float:
        """The mean distance of facts from embeddings of zero."""
        return float((self.vectors.square().sum(-1) * self.given).sum(-1).mean())

    def own(self, outputs: Tensor, own: Tensor) -> Tensor:
        return outputs.where(own, 0.0).reshape(*outputs.shape[:-1], -1, self.width(0)).sum(-2)

    def judged(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The nearness −d(x, f) of each sample to every fact, `[…, B, facts]`.

        Each number comes of one row of outputs and one fact alone, whatever stands beside them.
        """
        embedded = self._parts(outputs)
        total = outputs.new_zeros((*outputs.shape[:-1], len(self.vectors)))
        for m in range(len(MODALITIES)):
            away = torch.cdist(
                embedded[..., m, :],
                self.vectors[:, m],
                compute_mode="donot_use_mm_for_euclid_dist",
            )
            total -= away.square() * self.given[:, m]
        return total

    def _parts(self, outputs: Tensor) -> Tensor:
        """`[…, 3 D]` to the three embeddings, `[…, 3, D]`."""
        return outputs.reshape(*outputs.shape[:-1], *self.vectors.shape[1:])

    def measure(self, judged: Tensor, labels: Tensor, image: Tensor | None = None) -> list[float]:
        """MAP over the facts that have images here."""
        return [float(average_precision(one, labels, image).nanmean()) for one in judged]

    def at_most(self, judged: Tensor, labels: Tensor, image: Tensor | None = None) -> list[float]:
        """No bound before all are ranked."""
        ranked = judged.shape[1] == len(labels)
        return self.measure(judged, labels, image) if ranked else [1.0] * len(judged)

    def joined(self, others: Sequence[Answers]) -> Answers:
        """All facts, in order."""
        parts = [other for other in others if isinstance(other, Retrieval)]
        return Retrieval(
            torch.cat([part.vectors for part in parts]), torch.cat([part.given for part in parts])
        )

    def on(self, device: torch.device) -> Self:
        return type(self)(self.vectors.to(device), self.given.to(device))


def average_precision(scores: Tensor, labels: Tensor, image: Tensor | None = None) -> Tensor:
    """`AP_f = Σ_n (R_n − R_{n−1}) P_n` of each fact, float64 `[facts]`; NaN for one without images.

    Scores `[N, facts]`, labels int64 `[N]`: sample n is relevant to fact `labels[n]` alone. P and R
    are precision and recall among the samples that score as high as the n-th or higher: samples of
    equal score come in together, so that their order says nothing. Samples with the same number in
    `image`, int64 `[N]`, are of one image, which a fact ranks once: by the sample labelled with the
    fact, or else by its first.
    """
    n, facts = scores.shape
    relevant = labels.unsqueeze(1) == torch.arange(facts, device=labels.device)
    counted = torch.ones_like(relevant)
    if image is not None:
        number = torch.unique(image, return_inverse=True)[1]
        shows = torch.zeros_like(relevant)
        shows[number, labels] = True
        relevant &= first_of(number * facts + labels).unsqueeze(1)
        counted = relevant | (first_of(number).unsqueeze(1) & ~shows[number])
    ranked, order = scores.sort(0, descending=True)
    relevant, counted = relevant.gather(0, order), counted.gather(0, order)
    place = torch.arange(n, device=scores.device).unsqueeze(1)
    last = torch.ones_like(relevant)
    last[:-1] = ranked[:-1] != ranked[1:]
    end = place.where(last, n).flip(0).cummin(0).values.flip(0)  # of the samples of equal score
    found, among = (each.cumsum(0).gather(0, end) for each in (relevant, counted))
    precision = (found.double() / among).where(relevant, 0.0)
    return precision.sum(0) / relevant.sum(0)


def first_of(numbers: Tensor) -> Tensor:
    """Which of `numbers`, int64 `[N]`, stand at the first place of their value: bool `[N]`."""
    ranked, order = numbers.sort(stable=True)
    new = torch.ones_like(ranked, dtype=torch.bool)
    new[1:] = ranked[1:] != ranked[:-1]
    return torch.empty_like(new).scatter(0, order, new)
