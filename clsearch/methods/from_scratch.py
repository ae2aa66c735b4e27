"""Reference: every task has a fresh model of its own."""

from __future__ import annotations

from typing import ClassVar

from clsearch.methods.base import Method


class FromScratch(Method):
    """Trains each task alone from fresh weights ("from scratch", CLNP fig. 4a): no transfer,
    no forgetting, and as many models as tasks."""

    name: ClassVar[str] = "from_scratch"
    independent: ClassVar[bool] = True
