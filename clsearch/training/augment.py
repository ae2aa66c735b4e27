"""Random shifts and flips of training images, on the device, each member its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from clsearch.config import AugmentConfig


@dataclass(frozen=True)
class Views:
    """How each of K members sees each of N samples: shifted, and then flipped left to right.

    `flips` bool `[K, N]`; `shifts` int64 `[K, N, 2]`, rows and columns, from 0 to 2·`crop`: where
    the image's first pixel is taken from, once `crop` pixels of 0 stand around it.
    """

    crop: int
    flips: Tensor
    shifts: Tensor

    @classmethod
    def draw(
        cls,
        config: AugmentConfig,
        sources: Sequence[torch.Generator],
        count: int,
        device: torch.device,
    ) -> Views:
        """Draws from each member's own CPU source, in turn, and moves what was drawn."""

        def drawn(values: int, *shape: int) -> Tensor:
            if values == 1:
                return torch.zeros(len(sources), *shape, dtype=torch.int64, device=device)
            members = [torch.randint(values, shape, generator=source) for source in sources]
            return torch.stack(members).to(device)

        flips = drawn(1 + config.flip, count).bool()
        return cls(config.crop, flips, drawn(2 * config.crop + 1, count, 2))

    def split(self, size: int) -> list[Views]:
        """The views of `size` samples after another."""
        parts = zip(*(torch.split(v, size, 1) for v in (self.flips, self.shifts)), strict=True)
        return [Views(self.crop, flips, shifts) for flips, shifts in parts]

    def of(self, pixels: Tensor) -> Tensor:
        """Pixels `[N, C, H, W]` to `[K, N, C, H, W]` of the same type, channels last in memory."""
        samples, _, height, width = pixels.shape
        device = pixels.device
        padded = pad(pixels, [self.crop] * 4).permute(0, 2, 3, 1).contiguous()
        columns = torch.arange(width, device=device)
        columns = torch.where(self.flips[..., None], columns.flip(0), columns)
        columns = columns + self.shifts[..., 1, None]
        rows = torch.arange(height, device=device) + self.shifts[..., 0, None]
        sample = torch.arange(samples, device=device).view(-1, 1, 1)
        return padded[sample, rows[..., :, None], columns[..., None, :]].movedim(-1, 2)
