"""What a worker process sets for itself before it trains."""

from __future__ import annotations

import ctypes
from functools import cache

import torch

# glibc's <malloc.h>
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


@cache
def prepare_worker() -> None:
    """One thread, and an allocator that keeps what is freed. For processes that only train.

    By default glibc hands every large tensor back to the kernel when it is freed, and the next
    step's has to be mapped and cleared again, page by page: a tenth of a dense network's step on a
    CPU, a third of a convolutional one's, whose feature maps are larger.
    """
    torch.set_num_threads(1)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


@cache
def end_with_python() -> None:
    """Ends this process as soon as Python has ended in it, with its exit code.

    What libraries do later, in handlers of C, is of no use any more. Workers of Ray 2.60 were found
    waiting there for a lock of Ray's own, long after their search, with all of their memory.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc's; the last one that is told is the first that is called
        libc.on_exit(libc._exit, None)
