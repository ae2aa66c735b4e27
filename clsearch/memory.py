"""The memory of this machine, and what this process has of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path

_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    # The older cgroups:
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Where a container's limit stands, and what is used of it, files included that can be dropped."""


def machine_memory() -> int:
    """The memory of this machine, or of the container this runs in, in bytes."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder, limit, *_ in _GROUPS:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is `max`
            found.append(int(Path(folder, limit).read_text("ascii")))
    return min(found)


def free_memory() -> int:
    """How much of it new programs can have, in bytes."""
    free = [machine_memory(), _available()]
    for folder, limit, used, files in _GROUPS:
        with contextlib.suppress(OSError, ValueError):
            most, now = (int(Path(folder, name).read_text("ascii")) for name in (limit, used))
            said = re.search(rf"^{files} (\d+)$", Path(folder, "memory.stat").read_text(), re.M)
            free.append(most - now + (int(said[1]) if said else 0))
    return max(0, min(free))


def _available() -> int:
    """What this machine has free, or can drop."""
    with contextlib.suppress(OSError):
        said = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("ascii"))
        if said:
            return int(said[1]) << 10
    name = "SC_AVPHYS_PAGES"
    known = name in os.sysconf_names
    return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") if known else machine_memory()


def give_back() -> None:
    """Gives the system what this process has freed: glibc keeps pages that lie between others in
    use, and with every task they are more. Does nothing where there is another library of C."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
