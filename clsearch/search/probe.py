"""What a cluster says of itself before it is joined: whether it answers, and asks for a token."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue

from clsearch.search import local
from clsearch.search._ray import authenticated, ray, raylet, services

TIMEOUT = 5.0
"""Seconds to wait for an answer."""

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How an HTTP/2 client begins: the preface and an empty SETTINGS frame (RFC 9113 §3.4)."""


def within(seconds: float, act: Callable[[], None]) -> None:
    """Does something that has its own limits for every step, or raises `TimeoutError`."""
    ended: SimpleQueue[Exception | None] = SimpleQueue()

    def run() -> None:
        try:
            act()
            ended.put(None)
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            ended.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        error = ended.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error


def find(address: str) -> str:
    """HOST:PORT of the cluster at `auto` or HOST:PORT, which answers. Raises `OSError` or
    `ValueError`."""
    if address == "auto":
        address = str(services.canonicalize_bootstrap_address_or_die(address))
    within(TIMEOUT, lambda: probe(address))
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


def probe(address: str) -> None:
    """Raises `OSError` or `ValueError` unless something that speaks gRPC answers.

    Left to itself, Ray waits 40 seconds for a port that does not, and minutes for a host.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), TIMEOUT) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        connection.settimeout(TIMEOUT)
        connection.sendall(HELLO)
        answer = b""
        while len(answer) < 4 and (part := connection.recv(9)):
            answer += part
    if answer[3:4] != b"\x04":  # the type of a SETTINGS frame, with which a server begins
        raise OSError("what listens there does not speak gRPC")
