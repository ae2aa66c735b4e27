"""What a worker process sets for itself."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

ENDS = """
import atexit, ctypes, sys
libc = ctypes.CDLL(None)
libc.on_exit(libc.pause, None)
from clsearch.training.worker import end_with_python
end_with_python()
atexit.register(print, "Python has ended")
sys.exit(3)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "on_exit"), reason="no handlers of glibc here")
def test_it_ends_whatever_a_library_waits_for_at_exit() -> None:
    """`pause` waits for a signal, which nobody sends."""
    done = subprocess.run(
        [sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "Python has ended\n", "")
