"""Dense layers of a pack on a CPU: one matrix product a member, by oneDNN, for `linear`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, library
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from clsearch.products import available, onednn


def fast_linear(device: torch.device, packed: bool = True) -> AbstractContextManager[object]:
    """Within it `linear` goes through `PackLinear`, on a device where that pays: under `vmap`, or
    with `packed` False outside of it."""
    return _FastLinear(packed) if device.type == "cpu" and available() else nullcontext()


class _FastLinear(TorchFunctionMode):
    """Sends `linear` of fp32 rows to `PackLinear`, under `vmap` by way of the operator
    `clsearch::linear`, which it knows."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.packed = packed

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is linear and not kwargs and len(args) == 3 and args[2] is not None:
            x, weight, bias = args
            if x.ndim == 2 and x.dtype == weight.dtype == torch.float32:
                if self.packed:
                    return _operator()(x, weight, bias)
                return PackLinear.apply(x, weight[None], bias[None])[0]  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def _products(a: Tensor, b: Tensor) -> Tensor:
    """`a bᵀ` of K members, `[K, M, I]` and `[K, N, I]` to `[K, M, N]`; `b [N, I]` is for all.

    Against one `b` the members' rows are those of one product, which gives each the bits it has
    alone. A single row would not: that is a matrix-vector product, summed in another order.
    """
    if b.ndim == 2 and a.shape[1] > 1:
        return onednn(a.flatten(0, 1), b).view(*a.shape[:2], len(b))
    others = [b] * len(a) if b.ndim == 2 else b.unbind(0)
    members = [onednn(*one) for one in zip(a.unbind(0), others, strict=True)]
    return members[0].unsqueeze(0) if len(members) == 1 else torch.stack(members)


class PackLinear(torch.autograd.Function):
    """`x Wᵀ + b` of K members: `W [K, N, I]`, `b [K, N]`, `x [K, B, I]`, or `[B, I]` for all.

    In memory a result lies as `[K, N, B]`, features before samples: then every product here,
    forward and backward, takes its operands as they lie, but for `W` in `δ W`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Gives `[K, B, N]`."""
        ctx.save_for_backward(x, weight)
        return _products(weight, x).add_(bias.unsqueeze(-1)).mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        """`δ W`, `δᵀ x` and `Σ_b δ` of each member, as far as they are asked for."""
        x, weight = ctx.saved_tensors
        back = forth = None
        if ctx.needs_input_grad[0]:
            back = _products(weight.mT, delta).mT
            if x.ndim == 2:
                back = back[0] if len(back) == 1 else back.sum(0)  # a sum forgets how it lies
        if ctx.needs_input_grad[1]:
            forth = _products(delta.mT, x.mT)
        return back, forth, delta.sum(1)


_library = library.Library("clsearch", "FRAGMENT")  # type: ignore[no-untyped-call]


@cache
def _operator() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`clsearch::linear`, declared on first use: `linear`, and under `vmap` `pack_linear`.

    The second operator is there because an autograd function called within `vmap` goes through
    Python transforms that cost more than a small layer's arithmetic.
    """
    for name, function in (("linear", linear), ("pack_linear", PackLinear.apply)):
        _library.define(f"{name}(Tensor x, Tensor weight, Tensor bias) -> Tensor")  # type: ignore[no-untyped-call]
        _library.impl(name, function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
    pack_linear = torch.ops.clsearch.pack_linear.default

    def under_vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, int]:
        k = info.batch_size
        weight, bias = (
            value.expand(k, *value.shape) if dim is None else value.movedim(dim, 0)
            for value, dim in ((weight, in_dims[1]), (bias, in_dims[2]))
        )
        return pack_linear(x if in_dims[0] is None else x.movedim(in_dims[0], 0), weight, bias), 0

    library.register_vmap("clsearch::linear", under_vmap, lib=_library)
    return torch.ops.clsearch.linear.default
