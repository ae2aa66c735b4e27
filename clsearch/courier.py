"""The thread that empties an outbox, and the ledger of what it has delivered. Knows nothing of
MLflow."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clsearch.errors import StoreError, UndeliveredError
from clsearch.files import content_of, entry_folder
from clsearch.outbox import Entry, Outbox, jsonable
from clsearch.records import digest
from clsearch.redaction import redacted

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between attempts: doubled after each failure, up to the longest."""

PATIENCE = 5
"""Failures of one entry after which the next one is tried, to see which of the two is to blame."""

LAST_TRIES = 3
"""Failures after which a closing courier gives up although time is left."""

FINISH = "finish"
"""The kind of entry that counts as sent before only if nothing else was sent since."""

Files = Callable[[Path], Mapping[str, Path]]


def describe(error: Exception) -> str:
    """An error in one line, without secrets."""
    if isinstance(error, UndeliveredError):
        return str(error)
    return redacted(" ".join(f"{type(error).__name__}: {error}".split()))


class Ledger:
    """The identities already delivered to one receiver, oldest first: a text file, one a line.
    Raises `StoreError` where it cannot be read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            lines = content_of(file).decode(errors="replace").split()
        except FileNotFoundError:
            lines = []
        except OSError as error:
            raise StoreError(f"{file} cannot be read: {error}") from error
        self._known = dict.fromkeys(lines)

    def __contains__(self, identity: object) -> bool:
        return identity in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._known))

    def add(self, identity: str) -> None:
        """Notes a delivery. Raises `OSError` when it cannot be written."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(f"\n{identity}\n")  # the first newline ends a line cut short by a kill
        self._known[identity] = None

    def clear(self) -> None:
        """Forgets everything: the receiver was deleted."""
        self._file.unlink(missing_ok=True)
        self._known.clear()


class Courier:
    """Delivers the entries of an outbox in order, in one daemon thread started when needed.

    `deliver(content, files)` raises on failure. `refused(error)` tells whether the receiver said
    no to this very entry: refused twice, it goes to `rejected/` and the queue moves on. Any other
    failure is tried again after a pause. An entry that fails `PATIENCE` times while the one after
    it gets through is rejected too.
    """

    def __init__(
        self,
        outbox: Outbox,
        ledger: Ledger,
        deliver: Callable[[dict[str, Any], Path], None],
        refused: Callable[[Exception], bool],
    ) -> None:
        self._outbox, self._ledger = outbox, ledger
        self._deliver, self._refused = deliver, refused
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        waiting = [name for name in outbox.identities() if name not in ledger]
        self._sent = set(waiting)
        """What was sent and is not in the ledger: it waits, or was rejected."""
        before = (*ledger, *waiting)
        self._order = {name: number for number, name in enumerate(before)}
        """Of what other processes have sent, and was not rejected: its place among the others."""
        others = [name for name in before if not name.startswith(FINISH)]
        self._latest = others[-1] if others else None
        self.problem = ""

    def send(
        self,
        kind: str,
        content: Mapping[str, Any],
        files: Files | None = None,
        about: Sequence[str] = (),
    ) -> str:
        """Puts an entry into the outbox unless it was sent before, with the time in `time`; returns
        its identity.

        `files`, asked for only then, gives the entry's files: path inside it to source. It may make
        them in the temporary folder it is given. `about`: the entries that this one has something
        to add to: where one of them was sent after it, it is sent again, each time under a name of
        its own. Raises `StoreError` when it cannot be written.
        """
        plain = {"kind": kind, **jsonable(content)}
        after = self._latest if kind == FINISH else None
        identity = f"{kind}-{digest([plain, after])}"
        while (sent := self._order.get(identity)) is not None:
            if all(self._order.get(name, math.inf) < sent for name in about):
                break
            identity = f"{kind}-{digest([plain, identity])}"
        if identity in self._sent or identity in self._ledger:
            return identity
        self._sent.add(identity)  # before it can be delivered
        try:
            with entry_folder() as folder:
                sources = files(Path(folder)) if files else {}
                self._outbox.append(identity, {**plain, "time": time.time()}, sources)
        except BaseException as error:
            self._sent.discard(identity)
            if isinstance(error, OSError):  # of the disk for temporary files
                raise StoreError(f"an entry for MLflow cannot be written: {error}") from error
            raise
        if kind != FINISH:
            self._latest = identity
        self.wake()
        return identity

    def wake(self) -> None:
        """There is something to deliver. Does nothing once closed: it waits for the next run."""
        if self._thread is None and not self._closing.is_set():
            self._thread = threading.Thread(target=self._work, name="clsearch-outbox", daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.notify_all()

    def close(self, timeout: float) -> int:
        """Delivers what it can within `timeout` seconds; returns how many entries still wait."""
        self._closing.set()
        try:
            with self._changed:
                self._changed.notify_all()
            if self._thread is not None:
                self._thread.join(max(0.0, timeout))
        finally:
            self._stop.set()
        return len(self._outbox)

    def _work(self) -> None:
        failures = last_tries = 0
        while (entry := self._take()) is not None and not self._stop.is_set():
            if self._attempt(entry) or (failures >= PATIENCE - 1 and self._passed_over(entry)):
                failures = last_tries = 0
                continue
            failures += 1
            last_tries += self._closing.is_set()
            if last_tries >= LAST_TRIES:
                return
            self._pause(min(FIRST_PAUSE * 2 ** min(failures - 1, 10), LONGEST_PAUSE))

    def _take(self) -> Entry | None:
        """The oldest entry, waited for; None when closing and nothing is left."""
        while (entry := self._outbox.first()) is None:
            self._outbox.tidy()
            with self._changed:
                if self._closing.is_set():
                    return None
                if self._outbox.first() is None:
                    self._changed.wait()
        return entry

    def _pause(self, seconds: float) -> None:
        """Waits, but not for long once the courier is closing."""
        if self._closing.is_set():
            self._stop.wait(min(seconds, FIRST_PAUSE))
        else:
            self._closing.wait(seconds)

    def _attempt(self, entry: Entry) -> bool:
        """Delivers or rejects an entry; False if it has to wait."""
        error = self._try(entry)
        if error is not None and self._refused(error):
            error = self._try(entry)
            if error is not None and self._refused(error):
                return self._reject(entry, error)
        return error is None

    def _passed_over(self, entry: Entry) -> bool:
        """Whether the next entry gets through while this one, tried once more, does not."""
        following = self._outbox.second()
        if following is None or self._try(following) is not None:
            return False
        error = self._try(entry)
        return error is None or self._reject(entry, error)

    def _try(self, entry: Entry) -> Exception | None:
        try:
            if entry.identity not in self._ledger:
                self._deliver(entry.read(), entry.files)
                self._ledger.add(entry.identity)
            self._sent.discard(entry.identity)
            self._outbox.remove(entry)
        except Exception as error:  # noqa: BLE001 - whatever a client raises, the thread goes on
            self.problem = describe(error)
            return error
        self.problem = ""
        return None

    def _reject(self, entry: Entry, error: Exception) -> bool:
        try:
            self._outbox.reject(entry, describe(error))
        except (OSError, StoreError) as trouble:
            self.problem = describe(trouble)
            return False
        return True
