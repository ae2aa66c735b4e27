"""Fine-tuning with an L1 norm on the weights."""

from __future__ import annotations

from typing import ClassVar

from clsearch.methods.base import Method


class L1(Method):
    """Fine-tuning with the weight regulariser of CLNP §2.2, and nothing pruned or frozen."""

    name: ClassVar[str] = "l1"
    regularizers: ClassVar[tuple[str, ...]] = ("l1_param",)
