"""The memory of this machine, and what this process has of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",  # of a container with the older cgroups
)


def machine_memory() -> int:
    """The memory of this machine, or of the container this runs in, in bytes."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is `max`
            found.append(int(Path(name).read_text(encoding="ascii")))
    return min(found)


def give_back() -> None:
    """Gives the system what this process has freed: glibc keeps pages that lie between others in
    use, and with every task they are more. Does nothing where there is another library of C."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
