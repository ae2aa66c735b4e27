"""The memory of this machine, and what this process has of it."""

from __future__ import annotations

import ctypes
import os


def machine_memory() -> int:
    """The memory of this machine, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Gives the system what this process has freed: glibc keeps pages that lie between others in
    use, and with every task they are more. Does nothing where there is another library of C."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
