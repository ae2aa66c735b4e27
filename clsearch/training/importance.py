"""Importance of parameters from per-sample gradients, exact and batched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import linear

from clsearch.methods.base import ImportanceObjective
from clsearch.models.base import Backbone, Gates, Params, Tap, head_names
from clsearch.training.batch import Batch, DeviceData, Readout, answer

PER_SAMPLE_BATCH = 16


def mean_moment(
    backbone: Backbone,
    params: Params,
    data: DeviceData,
    readout: Readout,
    gates: Gates | None,
    names: Sequence[str],
    objective: ImportanceObjective,
    batch_size: int,
) -> Params:
    """`1/N Σ_k m(∂objective(x_k)/∂θ)` of each named parameter, m the magnitude or the square.

    Gradients are of single samples, never of a batch's mean (EWC: Kirkpatrick et al. 2017; MAS
    eq. 2), so the result does not depend on `batch_size` but for rounding. Dense layers take a
    closed form: a sample's gradient is the outer product `δ aᵀ`, hence `m(δ)ᵀ m(a)` over a batch.
    Other parameters are differentiated sample by sample in chunks. Accumulates in float64.
    """
    moment = torch.abs if objective.moment == "magnitude" else torch.square
    own = {name: params[name].detach() for name in params}
    dense: dict[str, nn.Module] = {}
    closed: set[str] = set()
    if len(readout.heads) == 1:
        dense = _dense_layers(backbone, own, next(data.batches(2)), readout, gates)
        closed = {f"{module}.{part}" for module in dense for part in ("weight", "bias")}
        closed |= set(head_names(readout.heads[0]))
    total = {name: torch.zeros_like(own[name], dtype=torch.float64) for name in names}
    rest = [name for name in names if name not in closed]
    for batch in data.batches(batch_size):
        if len(rest) < len(names):
            for name, value in _closed_form(
                backbone, dense, own, batch, readout, gates, objective, moment
            ).items():
                if name in total:
                    total[name] += value
    if rest:
        for batch in data.batches(PER_SAMPLE_BATCH):
            for name, value in _sample_by_sample(
                backbone, own, batch, readout, gates, rest, objective
            ).items():
                total[name] += moment(value).sum(0)
    return {name: (value / len(data)).float() for name, value in total.items()}


@torch.no_grad()
def _dense_layers(
    backbone: Backbone, params: Params, batch: Batch, readout: Readout, gates: Gates | None
) -> dict[str, nn.Module]:
    """The dense layers the closed form holds for, by name: those that a forward of the backbone
    calls once, with one row a sample. A layer with shared weights or over tokens is none."""
    calls: dict[str, list[int]] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            calls.setdefault(name, []).append(inputs[0].ndim)

        return hook

    dense = {n: m for n, m in backbone.named_modules() if isinstance(m, nn.Linear)}
    handles = [module.register_forward_hook(count(name)) for name, module in dense.items()]
    try:
        answer(backbone, params, batch.x, readout, gates, batch.group)
    finally:
        for handle in handles:
            handle.remove()
    return {name: module for name, module in dense.items() if calls.get(name) == [2]}


def _closed_form(
    backbone: Backbone,
    dense: Mapping[str, nn.Module],
    params: Mapping[str, Tensor],
    batch: Batch,
    readout: Readout,
    gates: Gates | None,
    objective: ImportanceObjective,
    moment: Callable[[Tensor], Tensor],
) -> Params:
    """Σ over a batch of m(per-sample gradient), for dense layers and the head."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            # The output may be the first to need a gradient: parameters are constants here.
            leaf = output if output.requires_grad else output.detach().requires_grad_()
            seen[name] = (inputs[0], leaf)
            return leaf

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in dense.items()]
    try:
        with torch.enable_grad():
            body = {n: params[n] for n, _ in backbone.named_parameters()}
            features = functional_call(backbone, body, (batch.x, Tap(gates)))
            weight, bias = readout.weights(params)
            logits = linear(features, weight, bias)
            if not logits.requires_grad:
                logits.requires_grad_()
            seen[f"head.{readout.heads[0]}"] = (features, logits)
            value = objective.value(logits, batch.y).sum()
            deltas = torch.autograd.grad(value, [output for _, output in seen.values()])
    finally:
        for handle in handles:
            handle.remove()
    result: Params = {}
    for (name, (inputs, _)), delta in zip(seen.items(), deltas, strict=True):
        m_delta = moment(delta)
        result[f"{name}.weight"] = m_delta.T @ moment(inputs.detach())
        result[f"{name}.bias"] = m_delta.sum(0)
    return result


def _sample_by_sample(
    backbone: Backbone,
    params: Mapping[str, Tensor],
    batch: Batch,
    readout: Readout,
    gates: Gates | None,
    names: Sequence[str],
    objective: ImportanceObjective,
) -> Params:
    """The gradient of every sample of a batch, `[B, …]` for each name."""

    def one(own: Params, x: Tensor, y: Tensor, group: Tensor | None) -> Tensor:
        of_one = None if group is None else group[None]
        logits, _ = answer(backbone, {**params, **own}, x[None], readout, gates, of_one)
        return objective.value(logits, y[None])[0]

    in_dims = (None, 0, 0, None if batch.group is None else 0)
    per_sample = vmap(grad(one), in_dims=in_dims)
    grads: Params = per_sample({n: params[n] for n in names}, batch.x, batch.y, batch.group)
    return grads
