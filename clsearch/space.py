"""Hyperparameters: what a method or regulariser declares, and the grids a config spans."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Hyper:
    """A hyperparameter: its default where a grid does not name it, and a range worth searching.

    With the default None it is left out there, as if it did not exist. Values must lie in
    `[low, high]`, without `low` itself if `above_low`.
    """

    default: float | None
    grid: tuple[float, ...]
    doc: str
    low: float = 0.0
    high: float = math.inf
    above_low: bool = False

    def allows(self, value: float) -> bool:
        if not math.isfinite(value) or value > self.high:
            return False
        return value > self.low if self.above_low else value >= self.low

    @property
    def allowed(self) -> str:
        """The range in words, for messages."""
        start = f"numbers above {self.low:g}" if self.above_low else f"numbers from {self.low:g}"
        return start if math.isinf(self.high) else f"{start} to {self.high:g}"


LEARNING_RATE = Hyper(1e-3, (3e-4, 1e-3, 3e-3), "Learning rate of the optimiser.", above_low=True)
"""Every method has it, as `lr`."""
