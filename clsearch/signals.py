"""What stops a command: Ctrl-C, and the signals that stand for it; and how its process ends."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

AT_ONCE = 1.0
"""Seconds within which a second signal is the first one: `timeout` sends it twice."""
UNHEARD, ENDING = 10.0, 45.0
"""Seconds that a signal may stay unheard, while the main thread is in code that is not Python; and
that a command may take to end, once Python has heard the first."""
SAYING = 2.0
"""Seconds to say something in: the folder, and the terminal, may hang too."""


class Stopper:
    """Ends a command that was stopped and does not end by itself, with exit code 130: it hangs in
    code of others. Nothing is lost by it: a search can be killed at any time."""

    def __init__(self) -> None:
        self.heard = False
        """Whether Python has run a handler."""
        self.handled = False
        """Whether that has raised: what is at work ends."""
        self.way_on: Callable[[], str] | None = str
        """What to do after a command that was interrupted; None once that is said."""

    def watch(self) -> None:
        """Watches from now on. Python writes the number of each signal that has a handler into a
        pipe as soon as it comes; to run the handler, it waits for the main thread."""
        pipe = os.pipe()
        # Not in place of a standard stream that is closed.
        reader, writer = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in pipe)
        for end in pipe:
            os.close(end)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(
            target=self._watch, args=(reader,), name="clsearch-signals", daemon=True
        ).start()

    def _watch(self, reader: int) -> None:
        while not _stop_in(reader, None):
            pass
        first = time.monotonic()
        while time.monotonic() < first + (ENDING if self.heard else UNHEARD):
            again = _stop_in(reader, 0.2) and time.monotonic() > first + AT_ONCE
            if again and not self.handled:
                break
        try:
            saying = threading.Thread(target=self._say, daemon=True)
            saying.start()
            saying.join(SAYING)
        finally:
            os._exit(130)

    def _say(self) -> None:
        if self.way_on is not None:
            with contextlib.suppress(OSError):
                said = f"clsearch: interrupted. {self.way_on()}".rstrip()
                os.write(2, f"{said}\n".encode(errors="replace"))

    @contextlib.contextmanager
    def saying(self, way_on: Callable[[], str]) -> Iterator[None]:
        """Has this said of what is interrupted within the block."""
        before, self.way_on = self.way_on, way_on
        try:
            yield
        finally:
            self.way_on = before


def _stop_in(reader: int, seconds: float | None) -> bool:
    """Whether a signal that stops comes within so many seconds."""
    ready, _, _ = select.select([reader], [], [], seconds)
    return bool(ready) and not STOPS.isdisjoint(os.read(reader, 4096))


stopper = Stopper()


def _stop(signum: int, frame: Any) -> NoReturn:
    stopper.heard = stopper.handled = True
    raise KeyboardInterrupt


def _stop_again(dropped: sys.UnraisableHookArgs) -> None:
    """Sends a signal once more where Python dropped its exception: it came in a destructor. Not
    SIGINT, which is ignored in what a shell runs in the background."""
    if isinstance(dropped.exc_value, KeyboardInterrupt):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(dropped)


def stop_on_signals() -> None:
    """SIGTERM and SIGHUP stop the command as Ctrl-C does, whatever it is doing when they come; the
    `Stopper` ends one that hangs."""
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
