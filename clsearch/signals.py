"""What stops a command: Ctrl-C, and the signals that stand for it; and how its process ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from typing import Any, NoReturn


def _stop(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _stop_again(dropped: sys.UnraisableHookArgs) -> None:
    """Sends a signal once more where Python dropped its exception: it came in a destructor. Not
    SIGINT, which is ignored in what a shell runs in the background."""
    if isinstance(dropped.exc_value, KeyboardInterrupt):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(dropped)


def stop_on_signals() -> None:
    """SIGTERM and SIGHUP stop the command as Ctrl-C does, whatever it is doing when they come."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup` stays in force
            signal.signal(number, _stop)
    sys.unraisablehook = _stop_again


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
