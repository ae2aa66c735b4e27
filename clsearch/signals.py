"""What stops a command: Ctrl-C, and the signals that stand for it; and how its process ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

AT_ONCE, UNHEARD, ENDING = 1.0, 10.0, 45.0
"""Seconds: within which a second signal is the first one, as `timeout` sends it twice; that one may
stay unheard by Python, whose main thread can be in somebody else's code for ever; and until a
command that was stopped has ended."""


class Stopper:
    """Ends a command that was stopped and does not end by itself, with exit code 130: what hangs
    then hangs in code of others. Nothing is lost by it: a search can be killed at any time."""

    def __init__(self) -> None:
        self.heard = threading.Event()
        self.way_on: Callable[[], str] | None = str
        """What to say after a command that was interrupted; None if that is said by others."""

    def watch(self) -> None:
        """From now on. Python's own handlers write into the pipe when a signal comes, whatever the
        main thread does, which is to run the others."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(
            target=self._watch, args=(reader,), name="clsearch-signals", daemon=True
        ).start()

    def _watch(self, reader: int) -> None:
        while not self._came(reader, None):
            pass
        first = time.monotonic()
        while (now := time.monotonic()) < first + (ENDING if self.heard.is_set() else UNHEARD):
            if self._came(reader, 0.2) and not self.heard.is_set() and now > first + AT_ONCE:
                break
        if self.way_on is not None:
            said = f"clsearch: interrupted. {self.way_on()}".rstrip()
            with contextlib.suppress(OSError):
                os.write(2, f"{said}\n".encode(errors="replace"))
        os._exit(130)

    def _came(self, reader: int, seconds: float | None) -> bool:
        """Whether a signal that stops comes within so many seconds."""
        ready, _, _ = select.select([reader], [], [], seconds)
        return bool(ready) and not STOPS.isdisjoint(os.read(reader, 4096))

    @contextlib.contextmanager
    def saying(self, way_on: Callable[[], str] | None) -> Iterator[None]:
        """What to say in the meantime."""
        before, self.way_on = self.way_on, way_on
        try:
            yield
        finally:
            self.way_on = before


stopper = Stopper()


def _stop(signum: int, frame: Any) -> NoReturn:
    stopper.heard.set()
    raise KeyboardInterrupt


def _stop_again(dropped: sys.UnraisableHookArgs) -> None:
    """Sends a signal once more where Python dropped its exception: it came in a destructor. Not
    SIGINT, which is ignored in what a shell runs in the background."""
    if isinstance(dropped.exc_value, KeyboardInterrupt):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(dropped)


def stop_on_signals() -> None:
    """SIGTERM and SIGHUP stop the command as Ctrl-C does, whatever it is doing when they come; in
    the end with exit code 130 without its help (`Stopper`)."""
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup` stays in force
            signal.signal(number, _stop)
    sys.unraisablehook = _stop_again
    stopper.watch()


class Leaving:
    """Ends the process with its exit code, when all is done that was to be done at its end. That of
    the interpreter itself is left out: what crashes there would say otherwise of a search that has
    said its last word."""

    def __init__(self) -> None:
        self.code = 1
        """Of an error that nobody foresaw."""
        atexit.register(self._leave)  # the first to be registered is the last to be called

    def _leave(self) -> None:
        for stream in filter(None, (sys.stdout, sys.stderr)):  # either may be closed
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.code)
