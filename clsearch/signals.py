"""What stops a command: Ctrl-C, and the signals that stand for it."""

from __future__ import annotations

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
