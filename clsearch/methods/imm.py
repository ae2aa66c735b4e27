"""Incremental Moment Matching (Lee et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from clsearch.errors import InputError
from clsearch.methods.base import (
    ChainState,
    Context,
    Evidence,
    ImportanceObjective,
    MethodOptions,
    Start,
    State,
    Thresholds,
)
from clsearch.methods.ewc import fisher
from clsearch.methods.l2 import L2
from clsearch.methods.mas import squared_norm
from clsearch.models.base import Params
from clsearch.scenarios.base import Task
from clsearch.space import Hyper

MAS = ImportanceObjective(squared_norm, "magnitude")
FLOOR = 1e-8
"""Added to importance: where no task needs a weight, `mode` is the mean."""


class IMMOptions(MethodOptions):
    merge: Literal["mean", "mode"] = Field(
        "mean", description="Mean of the tasks' weights, or mean by importance (the mode)."
    )
    importance: Literal["fisher", "mas"] | None = Field(
        None, description="What `mode` merges by: the empirical Fisher, or that of MAS."
    )
    weights: Literal["equal", "searched"] = Field(
        "equal",
        description="Every task weighs the same, or the newest task's share is searched on the"
        " kept validation samples of all tasks so far.",
    )
    shares: list[float] = Field(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        min_length=1,
        description="Shares of the newest task that `searched` tries, beside the equal one.",
    )


class IMM(L2):
    """`θ = Σ_t α_t θ_t`, or by importance `θ = Σ_t α_t F_t θ_t / Σ_t α_t F_t` (Lee et al. 2017).

    `merge: mean` is their eq. 2, `mode` their eq. 4. Each task starts from the last one's unmerged
    weights: weight-transfer with `strength` 0; above it L2-transfer, which adds
    `λ/2 · Σ (θ − θ_{t−1})²` (§4.2). After a task the model that answers is the merge of all so
    far, the last one the merge of the sequence; heads of single tasks stay as they are. With
    `weights: searched` the newest task's share a is the one with the highest mean accuracy on the
    kept validation samples of all tasks so far, the others' α are scaled by 1 − a: this keeps old
    validation data. State: beside the anchor (the unmerged weights) `merged.<parameter>` and
    `weight.<parameter>`, the running Σ α F.
    """

    name: ClassVar[str] = "imm"
    Options: ClassVar[type[MethodOptions]] = IMMOptions
    space: ClassVar[dict[str, Hyper]] = {
        "strength": Hyper(
            0.01, (0.0, 1e-3, 1e-2, 1e-1), "λ of the L2-transfer; 0 is weight-transfer."
        )
    }

    def check(self, tasks: Sequence[Task], epochs: int) -> None:
        if (self.options.merge == "mode") != (self.options.importance is not None):
            allowed = "fisher or mas where `merge` is mode, and only there"
            raise InputError("importance", self.options.importance, allowed)
        if self.options.weights == "equal" and "shares" in self.options.model_fields_set:
            allowed = "given only where `weights` is searched"
            raise InputError("shares", self.options.shares, allowed)
        if not all(0 < a < 1 for a in self.options.shares):
            raise InputError("shares", self.options.shares, "shares between 0 and 1")

    @property
    def validates(self) -> bool:
        return bool(self.options.weights == "searched")

    def begin(self, parent: ChainState | None, context: Context) -> Start:
        if parent is None:
            return super().begin(None, context)
        own = {name: parent.state.get(f"anchor.{name}", v) for name, v in parent.params.items()}
        return super().begin(replace(parent, params=own), context)

    def consolidate(
        self,
        start: Start,
        params: Params,
        evidence: Evidence,
        thresholds: Thresholds | None,
        context: Context,
    ) -> ChainState:
        """Merges the new weights into the running moments."""
        state = dict(super().consolidate(start, params, evidence, thresholds, context).state)
        importance = None
        if self.options.merge == "mode":
            own = self.options.importance == "fisher"
            importance = evidence.importance(fisher("empirical", context.task) if own else MAS)
        equal = 1.0 / int(state["tasks"])
        shares = [equal]
        if self.options.weights == "searched" and equal < 1:
            shares += [a for a in self.options.shares if a != equal]
        best, chosen = -1.0, None
        for share in shares:
            merged, moments = self._merge(share, start, params, importance)
            if len(shares) == 1:
                chosen = merged, moments
                break
            found = evidence.validation(merged, state | moments)
            if sum(found) / len(found) > best:
                best, chosen = sum(found) / len(found), (merged, moments)
        assert chosen is not None
        merged, moments = chosen
        return ChainState(merged, state | moments)

    def _merge(
        self, share: float, start: Start, params: Params, importance: Mapping[str, Tensor] | None
    ) -> tuple[Params, State]:
        """The merged parameters and their moments, the new task weighing `share`."""
        merged, moments = dict(params), dict[str, Tensor]()
        for name in start.trainable:
            new = params[name]
            weight = torch.ones(()) if importance is None else importance[name] + FLOOR
            old = start.state.get(f"merged.{name}")
            if old is not None:
                before = (1 - share) * start.state[f"weight.{name}"]
                weight = share * weight
                new = (before * old + weight * new) / (before + weight)
                weight = before + weight
            merged[name] = moments[f"merged.{name}"] = new
            moments[f"weight.{name}"] = weight
        return merged, moments
