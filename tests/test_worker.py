"""What a worker process sets for itself, and what any process gives back."""

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


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no malloc of glibc here")
def test_what_is_freed_between_what_is_in_use_is_given_back() -> None:
    """glibc keeps it: a driver would grow by the pages of each task's tables."""
    code = """
import os
from pathlib import Path
from clsearch.memory import give_back, machine_memory

def own() -> int:
    said = Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]
    return int(said) << 10

parts = [os.urandom(600) for _ in range(200_000)]
kept, full = parts[::1000], own()
del parts
give_back()
assert own() < full - (80 << 20), (full, own())
assert full < machine_memory()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
