"""Named randomness: every stream has a name, no generator is global."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*names: str | int) -> int:
    """A 63-bit seed for the stream called `names`, the same on every machine.

    Names are joined by their JSON-like representation, so `("a", "bc")` and `("ab", "c")` differ.
    """
    digest = hashlib.sha256(repr(tuple(names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*names: str | int) -> torch.Generator:
    """A CPU generator seeded for the stream called `names`.

    Streams are drawn on the CPU and moved, so that CPU and GPU runs see the same numbers.
    """
    return torch.Generator().manual_seed(seed_of(*names))
