"""Sums over every neuron's neighbours: `K₀ h` with SLNI's Gaussian, K₀ᵢⱼ = e^{−(i−j)²/2σ²}, i ≠ j.

K₀ is a Toeplitz matrix with zeros on its diagonal. Layers of up to `DENSE_UNITS` neurons take the
N×N product, larger ones a convolution by FFT, which costs the same for every σ. On a CPU two ways
are faster: a narrow Gaussian is a band around the diagonal, a wide one goes by a coarse grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, library
from torch.func import vmap
from torch.nn.functional import threshold

from clsearch.products import REGISTER, product
from clsearch.regularizers import _activations

DENSE_UNITS = 512
"""The largest layer for which the N×N product is not slower than the FFT, on one CPU core."""

COARSE = 8.0
"""On a CPU a Gaussian of a σ from here on goes by a coarse grid, and a narrower one is a band."""

DENSITY = 1.75
"""Points of the grid in σ neurons: what is lost is under 1e-6 of every weight."""

BLOCK = 96
"""Neurons of a block: the product with its neighbours is fastest at about this size."""

KEPT = 64
"""The blocks that a process keeps, those of the latest σ."""

REACH = 5.7
"""In σ: e^{−REACH²/2} is what float32 rounds to nothing beside 1."""


def neighbours(h: Tensor, sigma: Tensor, discount: Tensor | None = None) -> Tensor:
    """`D K₀ D h` of every sample: `h [M, units]`, σ 0-d, D diagonal `[units]`, to `[M, units]`.

    `h` is a constant. Without a discount D is left out.
    """
    units = h.shape[1]
    if units > DENSE_UNITS:
        return _operator()(h, sigma, discount)
    if discount is None:
        return _activations.pack_product(h, gaussian(units, sigma))
    return _activations.pack_product(h * discount, gaussian(units, sigma)) * discount


def gaussian(units: int, sigma: Tensor) -> Tensor:
    """K₀ `[units, units]`."""
    matrix: Tensor = profile(units, sigma).unfold(0, units, 1)
    return matrix.flip(0)


def profile(units: int, sigma: Tensor) -> Tensor:
    """`e^{−d²/2σ²}` for d = 1−units … units−1, and 0 for d = 0: `[2·units − 1]`. σ = 0: zeros.

    Values that nothing is left of in a sum are 0: products of them would be denormal numbers,
    which a CPU is slow at. Distances run on to a multiple of `REGISTER`.
    """
    width = 2 * units - 1
    end = 1 - units + math.ceil(width / REGISTER) * REGISTER
    distance = torch.arange(1.0 - units, end, device=sigma.device)
    exponent = (-distance.square() / 2).masked_fill(distance == 0, -torch.inf)
    exponent = threshold(exponent / sigma.square().clamp(max=1e30), -46.0, -torch.inf)
    return exponent.exp()[:width]


def by_fft(h: Tensor, sigma: Tensor, discount: Tensor | None = None) -> Tensor:
    """`D K₀ D h` as a convolution on a circle that is long enough."""
    units = h.shape[1]
    length = min(m << max(0, math.ceil(math.log2((2 * units - 1) / m))) for m in (1, 3, 5))
    line = profile(units, sigma)
    circle = [line[units - 1 :], line.new_zeros(length - 2 * units + 1), line[: units - 1]]
    response = torch.fft.rfft(torch.cat(circle)).real.repeat_interleave(2)  # real: it is even
    h = h.contiguous() if discount is None else h.contiguous() * discount
    spectrum = torch.fft.rfft(h, n=length)
    torch.view_as_real(spectrum).flatten(1).mul_(response)
    found: Tensor = torch.fft.irfft(spectrum, n=length)[:, :units]
    found = found.contiguous() if discount is None else found * discount
    return found.T.contiguous().T  # samples beside each other, as a layer has them


def by_band(h: Tensor, sigma: float, discount: Tensor | None = None) -> Tensor:
    """`D K₀ D h`, block of neurons by block: beyond `REACH·σ` nothing is left of the Gaussian."""
    rows = _rows(h, discount)
    band, reach = _band(sigma)
    found = _sweep(band, rows, -reach, BLOCK, len(rows))
    return (found if discount is None else found.mul_(discount.unsqueeze(1))).T


@lru_cache(KEPT)
def _band(sigma: float) -> tuple[Tensor, int]:
    """A block of K₀, `[BLOCK, BLOCK + 2·reach]`, and how many neurons one reaches to a side."""
    reach = math.ceil(REACH * sigma)
    apart = torch.arange(BLOCK + 2 * reach) - reach - torch.arange(BLOCK).unsqueeze(1)
    return _bell(apart, sigma).masked_fill_(apart == 0, 0.0), reach


def by_grid(h: Tensor, sigma: float, discount: Tensor | None = None) -> Tensor:
    """`D K₀ D h = D (Gᵀ G − 1) D h`: from neurons to the points of a coarse grid and back.

    Two Gaussians of σ/√2 around a grid's points, summed over the grid, are one of σ between
    neurons, but for a relative `2 e^{−π² DENSITY² / 2}`.
    """
    rows = _rows(h, discount)
    units, step = len(rows), int(sigma / DENSITY)
    there, back, edge = _grid(sigma, step)
    # Point p is at neuron (p − edge)·step; the last is the last that a neuron reaches.
    points = edge + int((units - 1 + REACH * sigma / math.sqrt(2)) / step) + 1
    grid = _sweep(there, rows, -2 * edge * step, len(back), points)
    found = _sweep(back, grid, 0, len(there), units).sub_(rows)
    return (found if discount is None else found.mul_(discount.unsqueeze(1))).T


@lru_cache(KEPT)
def _grid(sigma: float, step: int) -> tuple[Tensor, Tensor, int]:
    """A block of G, one of Gᵀ, and the points that a neuron reaches to either side."""
    half, block = sigma / math.sqrt(2), math.ceil((BLOCK + 4 * sigma) / step)
    edge = math.ceil(REACH * half / step)
    scale = math.sqrt(step / (half * math.sqrt(math.pi)))
    near = torch.arange((block + 2 * edge) * step) - edge * step
    far = step * (torch.arange(block + 2 * edge) - edge)
    there = _bell(near - step * torch.arange(block).unsqueeze(1), half) * scale
    back = _bell(torch.arange(block * step).unsqueeze(1) - far, half) * scale
    return there, back, edge


def _rows(h: Tensor, discount: Tensor | None) -> Tensor:
    """`D h`, a row a neuron, `[units, M]`."""
    return h.T if discount is None else h.T * discount.unsqueeze(1)


def _bell(distance: Tensor, sigma: float) -> Tensor:
    """`e^{−distance²/2σ²}`, and 0 beyond `REACH·σ`."""
    value = (distance.double().square_() / (-2 * sigma**2)).exp_()
    return value.masked_fill_(distance.abs() > REACH * sigma, 0.0).float()


def _sweep(block: Tensor, rows: Tensor, first: int, stride: int, count: int) -> Tensor:
    """`count` rows of the products of one block `[c, width]` with the rows from `first`, from
    `first + stride` and so on; a row beyond the ends is 0."""
    width, units, parts = block.shape[1], len(rows), []
    for begin in range(first, first + stride * math.ceil(count / len(block)), stride):
        end = begin + width
        whole = begin >= 0 and end <= units  # slices cost as much as a small product
        part = block if whole else block[:, max(-begin, 0) : min(width, units - begin)]
        parts.append(product(part, rows[max(begin, 0) : end].t()))
    return torch.cat(parts)[:count]


def _of_member(h: Tensor, sigma: Tensor, discount: Tensor | None) -> Tensor:
    if h.device.type != "cpu" or not 0 < float(sigma) < h.shape[1]:
        return by_fft(h, sigma, discount)
    way = by_grid if float(sigma) >= COARSE else by_band
    return way(h, float(sigma), discount)


_library = library.Library("clsearch", "FRAGMENT")  # type: ignore[no-untyped-call]


@cache
def _operator() -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """`clsearch::neighbours`, declared on first use. Under `vmap` a CPU goes member by member.

    An operator is given numbers where `vmap` traces: on a CPU, where that costs nothing, it looks
    at σ. The discount is one for the whole pack.
    """
    schema = "neighbours(Tensor h, Tensor sigma, Tensor? discount) -> Tensor"
    _library.define(schema)  # type: ignore[no-untyped-call]
    _library.impl("neighbours", _of_member, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]

    def under_vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        h: Tensor,
        sigma: Tensor,
        discount: Tensor | None,
    ) -> tuple[Tensor, int]:
        h, sigma = (
            value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            for value, dim in zip((h, sigma), in_dims[:2], strict=True)
        )
        if h.device.type != "cpu":
            return vmap(by_fft, in_dims=(0, 0, None))(h, sigma, discount), 0
        if len(h) == 1:
            return _of_member(h[0], sigma[0], discount).unsqueeze(0), 0
        # In memory of its own: matrix products round by where their operands lie.
        found = [_of_member(a.clone(), s, discount).T for a, s in zip(h, sigma, strict=True)]
        return torch.stack(found).mT, 0

    library.register_vmap("clsearch::neighbours", under_vmap, lib=_library)
    return torch.ops.clsearch.neighbours.default
