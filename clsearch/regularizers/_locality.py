"""Sums over every neuron's neighbours: `K₀ h` with SLNI's Gaussian, K₀ᵢⱼ = e^{−(i−j)²/2σ²}, i ≠ j.

K₀ is a Toeplitz matrix with zeros on its diagonal. Layers of up to `DENSE_UNITS` neurons take the
N×N product, larger ones a convolution by FFT, which costs the same for every σ. On a CPU two ways
are faster: a narrow Gaussian is a band around the diagonal, a wide one a sum of a few cosines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, library
from torch.func import vmap
from torch.nn.functional import threshold

from clsearch.products import product
from clsearch.regularizers import _activations

DENSE_UNITS = 512
"""The largest layer for which the N×N product is not slower than the FFT, on one CPU core."""

WIDE = 75.0
"""On a CPU a Gaussian with `σ ≥ units / WIDE` is a sum of cosines, and a narrower one a band."""

BLOCK = 96
"""Neurons of a block of the band: the product with its neighbours is fastest at about this size."""

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
        return _activations.product(h, gaussian(units, sigma))
    return _activations.product(h * discount, gaussian(units, sigma)) * discount


def gaussian(units: int, sigma: Tensor) -> Tensor:
    """K₀ `[units, units]`."""
    matrix: Tensor = profile(units, sigma).unfold(0, units, 1)
    return matrix.flip(0)


def profile(units: int, sigma: Tensor) -> Tensor:
    """`e^{−d²/2σ²}` for d = 1−units … units−1, and 0 for d = 0: `[2·units − 1]`. σ = 0: zeros.

    Values that nothing is left of in a sum are 0: products of them would be denormal numbers,
    which a CPU is slow at. Distances run on to a full vector register: a last part of one is
    rounded otherwise, and a member of a pack would differ from one alone.
    """
    width = 2 * units - 1
    end = 1 - units + math.ceil(width / 64) * 64
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


def by_cosines(h: Tensor, sigma: float, discount: Tensor | None = None) -> Tensor:
    """`D K₀ D h = D (Φᵀ Φ − 1) D h`: the Gaussian, repeated after `units + REACH·σ`, is its
    Fourier series Φ, up to the frequency at which nothing is left of it."""
    units = h.shape[1]
    period = units + REACH * sigma
    step = 2 * math.pi / period
    order = torch.arange(math.ceil(REACH / sigma / step) + 1.0)
    weight = (-((step * sigma * order) ** 2) / 2).exp() * (sigma * math.sqrt(2 * math.pi) / period)
    weight[1:] *= 2
    angle = (step * order).unsqueeze(1) * torch.arange(units)
    basis = torch.cat([angle.cos(), angle.sin()]) * weight.sqrt().repeat(2).unsqueeze(1)
    if discount is None:
        return product(basis.T, product(h, basis)).sub_(h.T).T
    basis *= discount
    own = discount.square().unsqueeze(1)
    return product(basis.T, product(h, basis)).addcmul_(h.T, own, value=-1).T


def by_band(h: Tensor, sigma: float, discount: Tensor | None = None) -> Tensor:
    """`D K₀ D h`, block of neurons by block: beyond `REACH·σ` nothing is left of the Gaussian."""
    samples, units = h.shape
    reach = min(math.ceil(REACH * sigma), units - 1)
    whole = math.ceil(units / BLOCK) * BLOCK
    rows = h.new_zeros(whole + 2 * reach, samples)
    inside = rows[reach : reach + units]
    inside.copy_(h.T) if discount is None else torch.mul(h.T, discount.unsqueeze(1), out=inside)
    distance = (torch.arange(BLOCK + 2 * reach) - reach - torch.arange(BLOCK).unsqueeze(1)).abs()
    value = (-(distance.double() ** 2) / (2 * sigma**2)).exp()
    band = torch.where((distance > 0) & (distance <= reach), value, 0.0).float()
    width = band.shape[1]
    parts = [product(band, rows[i : i + width].T) for i in range(0, whole, BLOCK)]
    found = torch.cat(parts)[:units]
    return (found if discount is None else found.mul_(discount.unsqueeze(1))).T


def _of_member(h: Tensor, sigma: Tensor, discount: Tensor | None) -> Tensor:
    if h.device.type != "cpu" or not 0 < float(sigma) < math.inf:
        return by_fft(h, sigma, discount)
    way = by_cosines if float(sigma) >= h.shape[1] / WIDE else by_band
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
