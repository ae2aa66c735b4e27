"""Imported in the driver and in every worker under test, with the methods: it notes which trials
are begun, and breaks what `CLSEARCH_INJECT` names, once, in the worker that comes first.

`CLSEARCH_INJECTION` is a folder: `begun` gets a line for every trial that a worker begins (its key,
the process, the time), and the file `injected` is made when something is broken.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clsearch import store, trial

FOLDER = Path(os.environ["CLSEARCH_INJECTION"])
FAULT = os.environ.get("CLSEARCH_INJECT", "")


def first() -> bool:
    """Whether this is the first to ask, of all processes."""
    try:
        (FOLDER / "injected").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def noted(members: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def begin(bench: Any, job: Any, *rest: Any) -> Iterator[Any]:
        lines = "".join(f"{key} {os.getpid()} {time.time()}\n" for key in job.keys)
        handle = os.open(FOLDER / "begun", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, lines.encode())  # in one piece, whoever else writes
        os.close(handle)
        return members(bench, job, *rest)

    return begin


def dies_around_publishing(publish: Callable[..., None]) -> Callable[..., None]:
    """Dies when a trial's bundle is written, but has not its name; or as soon as it has it."""

    def published(self: Any, place: str, target: str) -> None:
        mine = "/trials/" in target and first()
        if mine and FAULT == "die-before-rename":
            die()
        publish(self, place, target)
        if mine:
            die()

    return published


trial._members = noted(trial._members)
if FAULT in ("die-before-rename", "die-after-rename"):
    store.Store._publish = dies_around_publishing(store.Store._publish)  # type: ignore[method-assign]
