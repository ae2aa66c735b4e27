"""Continual Learning via Neural Pruning (Golkar, Kagan, Cho 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from clsearch.errors import DepletedError, InputError, unknown
from clsearch.methods.base import (
    ChainState,
    Context,
    Evidence,
    Method,
    MethodOptions,
    Start,
    State,
    Thresholds,
)
from clsearch.models.base import Gates, Params, UnitLayer, head_names
from clsearch.models.partition import fitted, free_rows, needed, without_interference
from clsearch.models.widths import resized
from clsearch.records import LayerCapacity
from clsearch.scenarios.base import Task


class CLNPOptions(MethodOptions):
    grow: dict[str, Literal["auto"] | Annotated[int, Field(strict=True, ge=1, le=65536)]] = Field(
        {},
        description="By unit layer (`fc1`, `conv3`), how many free neurons each task from the "
        "second on finds there at least: missing ones are added before it starts. `auto`: as many "
        "as the earlier task that took the most in this layer.",
    )


class CLNP(Method):
    """Trains each task in the free neurons of a pruned network (CLNP alg. 1): zero forgetting.

    A task starts with W_int at zero and W_free re-initialised, trains W_free and its head, and is
    pruned by mean activation over the training set at the selected threshold θ; what stays active
    is frozen, biases and normalisation included. With a head for each task, a network without free
    neurons goes on as last-layer transfer (§3.2). With one shared head, each task owns a part of
    the last hidden layer and its gate silences the rest (§2.1, fig. 2 right); the output bias is
    frozen after the first task, and a last layer without free neurons ends the chain. Layers named
    in `grow` are widened between tasks instead (§4): new neurons stand behind the old ones, free
    and with W_int at zero, and every earlier task is answered in the widths it was learned in, by
    the same numbers in the same order. State: `active.<layer>` bool `[units]`; with a shared head
    `gate.<task>` bool `[units of the last layer]`; with `grow` for each task `units.<task>` and
    `taken.<task>`, int64 `[layers]`: the widths, and the neurons that the task took.
    """

    name: ClassVar[str] = "clnp"
    Options: ClassVar[type[MethodOptions]] = CLNPOptions
    regularizers: ClassVar[tuple[str, ...]] = ("l1_param",)
    prunes: ClassVar[bool] = True

    def prunable(self, state: State) -> dict[str, Tensor]:
        """The free neurons N_l \\ N_act."""
        if not state:
            return super().prunable(state)
        return {u.name: ~state[f"active.{u.name}"] for u in self.backbone.unit_layers}

    def check(self, tasks: Sequence[Task], epochs: int) -> None:
        layers = {u.name: u for u in self.backbone.unit_layers}
        for name, wanted in self.options.grow.items():
            if name not in layers:
                raise unknown(f"grow.{name}", name, layers)
            group = layers[name].group
            if wanted != "auto" and wanted % group:
                allowed = f"auto, or a multiple of {group}, the neurons that compete"
                raise InputError(f"grow.{name}", wanted, allowed)

    def grow(self, parent: ChainState) -> ChainState:
        """Widens the layers of `grow` that have fewer free neurons than it asks for."""
        state = dict(parent.state)
        for layer in self.backbone.unit_layers:
            if layer.name in self.options.grow:
                active = state[f"active.{layer.name}"]
                missing = max(0, self._wanted(layer, state) - int((~active).sum()))
                state[f"active.{layer.name}"] = pad(active, (0, missing))
        wider = resized(self.backbone, self.units(state))
        return replace(parent, params=fitted(parent.params, wider), state=state)

    def _wanted(self, layer: UnitLayer, state: State) -> int:
        """The free neurons that the next task finds in a layer of `grow`, at least."""
        wanted = self.options.grow[layer.name]
        if wanted != "auto":
            return int(wanted)
        place = self.backbone.unit_layers.index(layer)
        return max(int(v[place]) for name, v in state.items() if name.startswith("taken."))

    def units(self, state: State, task: Task | None = None) -> dict[str, int]:
        names = [u.name for u in self.backbone.unit_layers]
        if task is not None and f"units.{task.number}" in state:
            return dict(zip(names, state[f"units.{task.number}"].tolist(), strict=True))
        return {name: len(state[f"active.{name}"]) for name in names} if state else {}

    def begin(self, parent: ChainState | None, context: Context) -> Start:
        state = dict(parent.state) if parent else {}
        free = self.prunable(state)
        last = self.backbone.unit_layers[-1]
        own = free[last.name]
        if context.shared_head and not own.any():
            raise DepletedError(
                f"no free neurons are left in {last.name}, which the shared head reads"
            )
        fresh = self.fresh_parameters(context)
        params = dict(parent.params) if parent else fresh
        masks = free_rows(params, self.backbone, free)
        params |= {
            name: torch.where(mask, fresh[name], params[name]) for name, mask in masks.items()
        }
        params = without_interference(
            params, self.backbone, {layer: ~neurons for layer, neurons in free.items()}
        )
        statistics = {n: masks.pop(n) for n in self.backbone.statistics if n in masks}
        weight, bias = head_names(context.task.head)
        head = self.new_heads({}, context)
        if context.shared_head and parent:
            masks[weight] = last.by_input(own).view(1, -1)
            params[weight] = torch.where(masks[weight], head[weight], params[weight])
        else:
            params |= head
            masks |= self.everything([weight, bias])
        gates = {last.name: own} if context.shared_head else {}
        return Start(params, state, masks, gates, statistics=statistics)

    def transfers(self, start: Start) -> bool:
        return self.backbone.unit_layers[-1].weight not in start.trainable

    def consolidate(
        self,
        start: Start,
        params: Params,
        evidence: Evidence,
        thresholds: Thresholds | None,
        context: Context,
    ) -> ChainState:
        """Prunes at θ, extends the active set and zeroes the new W_int (CLNP alg. 1)."""
        taken = self._taken(start.state, evidence.activity(), thresholds)
        active = self._active(start.state, taken)
        state = start.state | {f"active.{layer}": kept for layer, kept in active.items()}
        if context.shared_head:
            state[f"gate.{context.task.number}"] = taken[self.backbone.unit_layers[-1].name]
        if self.options.grow:
            widths, counts = (
                [len(a) for a in active.values()],
                [int(t.sum()) for t in taken.values()],
            )
            state[f"units.{context.task.number}"] = torch.tensor(widths)
            state[f"taken.{context.task.number}"] = torch.tensor(counts)
        return ChainState(self._cut(params, active, context), state)

    def pruned(
        self,
        start: Start,
        params: Params,
        activity: Mapping[str, Tensor],
        thresholds: Thresholds,
        context: Context,
    ) -> Start:
        """Only the weights of this task that survive may move (CLNP §2.2, §3.2): those into the
        neurons it has taken, and its head's from active neurons. What is pruned is silenced."""
        taken = self._taken(start.state, activity, thresholds)
        active = self._active(start.state, taken)
        last = self.backbone.unit_layers[-1]
        masks = free_rows(params, self.backbone, taken)
        statistics = {n: masks.pop(n) for n in self.backbone.statistics if n in masks}
        weight, bias = head_names(context.task.head)
        masks[weight] = start.trainable[weight] & last.by_input(active[last.name]).view(1, -1)
        if bias in start.trainable:
            masks[bias] = start.trainable[bias]
        gates = active | ({last.name: taken[last.name]} if context.shared_head else {})
        params = self._cut(params, active, context)
        return replace(start, params=params, trainable=masks, gates=gates, statistics=statistics)

    def _taken(
        self, state: State, activity: Mapping[str, Tensor], thresholds: Thresholds | None
    ) -> dict[str, Tensor]:
        """The free neurons that the task keeps: those above θ, or all where nothing is pruned."""
        free = self.prunable(state)
        if thresholds is None:
            return free
        return {
            layer: mask & (activity[layer].to(mask.device) > thresholds[layer])
            for layer, mask in free.items()
        }

    def _active(self, state: State, taken: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The neurons that a task needs so far, this one's included."""
        return {layer: ~free | taken[layer] for layer, free in self.prunable(state).items()}

    def _cut(self, params: Params, active: Mapping[str, Tensor], context: Context) -> Params:
        """The parameters with W_int at zero, and the task's own head reading active neurons."""
        params = without_interference(params, self.backbone, active)
        if not context.shared_head:
            last, (weight, _) = self.backbone.unit_layers[-1], head_names(context.task.head)
            zero = params[weight].new_zeros(())
            params[weight] = torch.where(last.by_input(active[last.name]), params[weight], zero)
        return params

    def gates(self, state: State, task: Task) -> Gates | None:
        """With a shared head: the task's own part of the last hidden layer."""
        if not any(name.startswith("gate.") for name in state):
            return {}
        gate = state.get(f"gate.{task.number}")
        return None if gate is None else {self.backbone.unit_layers[-1].name: gate}

    def capacity(self, before: State, chain: ChainState, task: Task) -> tuple[LayerCapacity, ...]:
        read = needed(self.backbone, chain.params, task.head, self.gates(chain.state, task))
        account = []
        for layer in self.backbone.unit_layers:
            active = chain.state[f"active.{layer.name}"]
            old = before.get(f"active.{layer.name}", active.new_zeros(0))
            old = pad(old, (0, len(active) - len(old)))
            account.append(
                LayerCapacity(
                    layer.name,
                    len(active),
                    used=int(active.sum()),
                    new=int((active & ~old).sum()),
                    reused=int((read[layer.name] & old).sum()),
                )
            )
        return tuple(account)
