"""Fine-tuning: go on training, protect nothing. The lower reference of every comparison."""

from __future__ import annotations

from typing import ClassVar

from clsearch.methods.base import Method


class Finetune(Method):
    """Trains every task from the last one's weights without any protection."""

    name: ClassVar[str] = "finetune"
