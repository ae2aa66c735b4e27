"""Matrix products of fp32 on a CPU by oneDNN.

Torch hands fp32 products on a CPU to MKL. oneDNN, which torch brings along for convolutions, is
used instead, for two reasons: it is twice as fast on AMD's processors, where MKL takes a slower
path; and its result does not depend on where in memory an operand lies, as MKL's does in the last
bit. A member inside a stack lies elsewhere than one alone: with oneDNN its bits are the same.
Both compute in fp32 and differ in the order of summation.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

REGISTER = 64
"""A multiple of the numbers a CPU takes at once. Torch rounds an exponential (and what has one in
it) otherwise in what is left over, so that a member's bits would depend on where it lies in a pack:
what is to have its bits in any pack is filled up to a multiple of this."""


@cache
def available() -> bool:
    """Whether this torch has oneDNN's product, and it computes what `linear` does.

    The operator is torch's own and not promised to stay: it is tried once, on operands of the
    strides that training gives it, and left alone if it raises or says anything else.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    a, b, bias = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(3, 4), torch.arange(4.0)
    try:
        given = onednn(a, b.T, bias)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(given, linear(a, b.T, bias))


def onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """`a bᵀ + bias`: `[M, I]`, `[N, I]` and `[N]` to `[M, N]`; any strides, where `available`."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return result


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a bᵀ`: `[M, I]` and `[N, I]` to `[M, N]`, of any strides, by oneDNN where that pays.

    For constants: autograd does not follow it.
    """
    fast = a.device.type == "cpu" and a.dtype == b.dtype == torch.float32 and available()
    return onednn(a, b) if fast else a @ b.T
