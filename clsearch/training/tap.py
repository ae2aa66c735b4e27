"""What a forward pass is run with in training: dropout's draws, and normalisation by the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clsearch.models.base import Gates, Tap


class Noise:
    """What the dropouts of one step draw: a mask for each place, the same for all members.

    It is drawn on the CPU and moved, in the order in which a forward pass comes by.
    """

    def __init__(self, source: torch.Generator) -> None:
        self.source = source
        self.masks: dict[str, Tensor] = {}

    def mask(self, place: str, shape: Sequence[int], rate: float, device: torch.device) -> Tensor:
        """0 with probability `rate`, to 1/65536, else 1 / (1 − rate); float32 of `shape`.

        Images `[B, C, H, W]` get theirs in memory as they lie themselves, channels last.
        """
        if place not in self.masks:
            batch, channels, *space = shape
            drawn = _sixteen_bits((batch, *space, channels), self.source)
            kept = drawn >= round(rate * 2**16) - 2**15
            mask = kept.to(device).to(torch.float32).mul_(1 / (1 - rate))
            self.masks[place] = mask.movedim(-1, 1)
        return self.masks[place]


def _sixteen_bits(shape: Sequence[int], source: torch.Generator) -> Tensor:
    """Uniform int16 of a shape: four from each draw of 64 bits, a quarter of the work."""
    count = torch.Size(shape).numel()
    draws = torch.empty(-(-count // 4), dtype=torch.int64)
    draws.random_(-(2**63), None, generator=source)
    return draws.view(torch.int16)[:count].view(*shape)


class TrainingTap(Tap):
    """Drops by `noise` (None: nothing), and normalises free channels by the batch's own moments.

    `free` are the masks of the running statistics that may change, by name. A channel whose
    statistics are frozen is normalised by them, as in evaluation: it stays the feature that earlier
    tasks know. `found` holds the moments of the batch, by the name of the statistic that is to
    follow them, `[channels]`; the variance is the unbiased one.
    """

    def __init__(
        self, gates: Gates | None, free: Mapping[str, Tensor], noise: Noise | None
    ) -> None:
        super().__init__(gates)
        self.free, self.noise = free, noise
        self.found: dict[str, Tensor] = {}

    def dropout(self, place: str, x: Tensor, rate: float) -> Tensor:
        if self.noise is None:
            return x
        return x * self.noise.mask(place, x.shape, rate, x.device)

    def moments(
        self, norm: str, x: Tensor, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        names = f"{norm}.running_mean", f"{norm}.running_var"
        free = self.free.get(names[0])
        if free is None:
            return mean, variance
        others = [0, *range(2, x.ndim)]
        own = x.mean(others, keepdim=True)
        spread = (x - own).square().mean(others)
        own = own.flatten()
        count = x.numel() // x.shape[1]
        unbiased = spread.detach() * (count / max(count - 1, 1))
        self.found |= dict(zip(names, (own.detach(), unbiased), strict=True))
        return torch.where(free, own, mean), torch.where(free, spread, variance)
