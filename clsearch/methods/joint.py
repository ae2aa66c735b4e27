"""Reference: one model trained on all tasks so far at once."""

from __future__ import annotations

from typing import ClassVar

from clsearch.methods.base import ChainState, Context, Method, Start


class Joint(Method):
    """Trains on the data of every task so far, from fresh weights (MAS §5: joint training).

    It keeps old data, which a continual learner may not: the upper reference. Its validation
    accuracy is over the validation samples of all tasks so far.
    """

    name: ClassVar[str] = "joint"
    uses_all_tasks: ClassVar[bool] = True

    def begin(self, parent: ChainState | None, context: Context) -> Start:
        """Fresh weights at every task; nothing is handed on."""
        return super().begin(None, context)
