"""Whether the head of a cluster still answers: Ray looks for one that is gone, not that hangs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from clsearch.errors import ClsearchError
from clsearch.search._ray import head_client

PULSE, ANSWER = 10.0, 10.0
"""Seconds between questions, and for an answer."""

IN_A_ROW = 3
"""Questions without an answer, at least: time passes too where this process is stopped."""


def patience() -> float:
    """Seconds without an answer until the head is given up: more than Ray looks for one that it has
    lost."""
    looks = os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", "60")  # noqa: SIM112 - Ray's
    return float(looks) + 15


class HeadWatch:
    """Asks the head, in a thread, as long as a search goes on; `tell` gets the error of one that
    hangs."""

    def __init__(self, tell: Callable[[Exception], None]) -> None:
        self._tell, self._over = tell, threading.Event()
        self._ask, self._patience = head_client().internal_kv_get, patience()
        threading.Thread(target=self._watch, name="clsearch-head", daemon=True).start()

    def end(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        answered, unanswered = time.monotonic(), 0
        while not self._over.wait(PULSE):
            try:
                self._ask(b"clsearch", b"clsearch", timeout=ANSWER)
                answered, unanswered = time.monotonic(), 0
            except Exception as error:  # noqa: BLE001 - whatever Ray raises, it is no answer
                unanswered += 1
                if unanswered >= IN_A_ROW and time.monotonic() - answered > self._patience:
                    said = " ".join(str(error).split())[:200]
                    what = f"Ray's head has not answered for {self._patience:g} s: {said}"
                    self._tell(ClsearchError(what))
                    return
