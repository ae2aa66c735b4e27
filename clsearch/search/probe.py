"""What a cluster says of itself before it is joined: whether it answers, and asks for a token."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from clsearch.search import local
from clsearch.search._ray import authenticated, ray, raylet, services
from clsearch.search.reach import TIMEOUT, answers, within


def find(address: str) -> str:
    """HOST:PORT of the cluster at `auto` or HOST:PORT, which answers. Raises `OSError` or
    `ValueError`."""
    if address == "auto":
        address = str(services.canonicalize_bootstrap_address_or_die(address))
    within(TIMEOUT, lambda: answers(address))
    return address


def asks_for_token(address: str) -> bool:
    """Whether the cluster at HOST:PORT refuses who has no token: it is asked without, once. Raises
    what Ray raises."""

    def ask() -> None:
        client = raylet.GcsClient(address=address)  # type: ignore[attr-defined]
        client.internal_kv_get(b"clsearch", b"clsearch", timeout=TIMEOUT)

    try:
        with authenticated({local.MODE: "disabled"}), stderr_closed():
            within(TIMEOUT, ask)
    except ray.exceptions.AuthenticationError:
        return True
    return False


@contextlib.contextmanager
def stderr_closed() -> Iterator[None]:
    """Ray writes a refusal to the terminal too, whatever its loggers are told."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def is_here(address: str) -> bool:
    """Whether HOST:PORT is on this machine."""
    host = address.rpartition(":")[0].strip("[]")
    for family, kind, _, _, place in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
        with contextlib.suppress(OSError), socket.socket(family, kind) as own:
            own.bind(place)  # only an address of this machine can be
            return True
    return False
