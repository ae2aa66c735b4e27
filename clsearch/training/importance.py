"""Importance of parameters from per-sample gradients, exact and batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import linear

from clsearch.methods.base import ImportanceObjective
from clsearch.models.base import Backbone, Gates, Params, Tap, head_names
from clsearch.products import product
from clsearch.training.batch import Batch, DeviceData, Readout, answer
from clsearch.training.dense import fast_linear

PER_SAMPLE_BATCH = 16
"""Samples differentiated one by one at once. The result does not depend on it."""


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
    """`1/N Σ_k Σ_p m(∂objective_p(x_k)/∂θ)` of each named parameter, m the magnitude or the square.

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
            for grads in _sample_by_sample(backbone, own, batch, readout, gates, rest, objective):
                for name, value in grads.items():
                    total[name] += moment(value).sum(0)
    return {name: (value / len(data)).float() for name, value in total.items()}


@torch.no_grad()
def _dense_layers(
    backbone: Backbone, params: Params, batch: Batch, readout: Readout, gates: Gates | None
) -> dict[str, nn.Module]:
    """The dense layers the closed form holds for, by name: those that a forward of the backbone
    calls once, with one row a sample. A layer with shared weights or over tokens is none."""
    calls: dict[str, list[bool]] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            one_row_a_sample = inputs[0].ndim == 2 and len(inputs[0]) == len(batch.y)
            calls.setdefault(name, []).append(one_row_a_sample)

        return hook

    dense = {n: m for n, m in backbone.named_modules() if isinstance(m, nn.Linear)}
    handles = [module.register_forward_hook(count(name)) for name, module in dense.items()]
    try:
        answer(backbone, params, batch.x, readout, gates, batch.group)
    finally:
        for handle in handles:
            handle.remove()
    return {name: module for name, module in dense.items() if calls.get(name) == [True]}


class _LocalTap(Tap):
    """Cuts the network at each unit layer; `norms` `[B]` adds up the layers' squared norms."""

    norms: Tensor | float = 0.0

    def __call__(self, layer: str, activation: Tensor) -> Tensor:
        activation = super().__call__(layer, activation)
        self.norms = self.norms + activation.square().flatten(1).sum(1)
        return activation.detach()


def _scalars(
    backbone: Backbone,
    params: Mapping[str, Tensor],
    batch: Batch,
    readout: Readout,
    gates: Gates | None,
    objective: ImportanceObjective,
    leaf: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The objective's scalars `[B, P]`, and what they came by: features and logits.

    `leaf`: the logits may be the first to need a gradient.
    """
    tap = _LocalTap(gates) if objective.local else Tap(gates)
    features = functional_call(backbone, backbone.values(params), (batch.x, tap))
    logits = linear(features, *readout.weights(params))
    if leaf and not logits.requires_grad:
        logits.requires_grad_()
    value = objective.value(readout.mask(logits, batch.group), batch.y)
    value = value.unsqueeze(1) if value.ndim == 1 else value
    if isinstance(tap, _LocalTap):
        value = value + torch.as_tensor(tap.norms).unsqueeze(-1)
    return value, features, logits


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
        with torch.enable_grad(), fast_linear(batch.x.device, packed=False):
            values, features, logits = _scalars(
                backbone, params, batch, readout, gates, objective, leaf=True
            )
            seen[f"head.{readout.heads[0]}"] = (features, logits)
            outputs = [output for _, output in seen.values()]
            passes = [
                torch.autograd.grad(value, outputs, retain_graph=True) for value in values.sum(0)
            ]
    finally:
        for handle in handles:
            handle.remove()
    result: Params = {}
    for i, (name, (inputs, _)) in enumerate(seen.items()):
        deltas = sum(moment(deltas[i]) for deltas in passes)
        assert isinstance(deltas, Tensor)
        result[f"{name}.weight"] = product(deltas.T, moment(inputs.detach()).T)
        result[f"{name}.bias"] = deltas.sum(0)
    return result


def _sample_by_sample(
    backbone: Backbone,
    params: Mapping[str, Tensor],
    batch: Batch,
    readout: Readout,
    gates: Gates | None,
    names: Sequence[str],
    objective: ImportanceObjective,
) -> Iterator[Params]:
    """The gradient of every sample of a batch, `[B, …]` by name, for each scalar in turn."""

    def scalars(own: Params, x: Tensor, y: Tensor, group: Tensor | None) -> Tensor:
        one = Batch(x[None], y[None], None if group is None else group[None])
        values, _, _ = _scalars(backbone, {**params, **own}, one, readout, gates, objective)
        return values[0]

    inputs = (batch.x, batch.y, batch.group)
    own = {name: params[name] for name in names}
    with torch.no_grad():
        group = None if batch.group is None else batch.group[0]
        count = len(scalars(own, batch.x[0], batch.y[0], group))
    in_dims = (None, 0, 0, None if batch.group is None else 0)
    for i in range(count):

        def one(*arguments: Any, i: int = i) -> Tensor:
            return scalars(*arguments)[i]

        yield vmap(grad(one), in_dims=in_dims)(own, *inputs)


class _GradientTap(Tap):
    """Makes the activation of every unit layer one that a gradient can be taken at."""

    def __call__(self, layer: str, activation: Tensor) -> Tensor:
        if not activation.requires_grad:
            activation = activation.detach().requires_grad_()
        return super().__call__(layer, activation)


def neuron_importance(
    backbone: Backbone,
    params: Params,
    data: DeviceData,
    readout: Readout,
    gates: Gates | None,
    batch_size: int,
) -> dict[str, Tensor]:
    """α by unit layer, float32 `[units]`: `1/M Σ_m ‖∂L(y_m, f(x_m))/∂n_i‖` (SLNI eq. 5).

    L is the loss of one sample; a channel's norm is over space. Accumulates in float64.
    """
    body = {name: value.detach() for name, value in backbone.values(params).items()}
    total: dict[str, Tensor] = {}
    for batch in data.batches(batch_size):
        with torch.enable_grad():
            tap = _GradientTap(gates)
            features = functional_call(backbone, body, (batch.x, tap))
            logits = readout.mask(linear(features, *readout.weights(params)), batch.group)
            loss = readout.answers.losses(logits, batch.y).sum()
            found = torch.autograd.grad(loss, list(tap.activations.values()))
        for layer, gradient in zip(tap.activations, found, strict=True):
            gate = (gates or {}).get(layer)
            norms = gradient.flatten(2).norm(dim=2) if gradient.ndim > 2 else gradient.abs()
            mean = norms.sum(0, dtype=torch.float64) / len(data)
            mean = mean if gate is None else mean * gate
            total[layer] = total[layer] + mean if layer in total else mean
    return {layer: value.float() for layer, value in total.items()}
