"""Whether anything that can be a cluster answers at an address: asked before Ray is imported, which
takes its time."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from clsearch.errors import InputError

TIMEOUT = 5.0
"""Seconds to wait for an answer."""

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How an HTTP/2 client begins: the preface and an empty SETTINGS frame (RFC 9113 §3.4)."""

ALLOWED = "auto, or HOST:PORT of a running Ray cluster"
DASHBOARD = "A dashboard's address is for `clsearch launch`; this joins the cluster itself."


def check_address(address: str) -> None:
    """Raises `InputError`, within seconds, for an address other than `auto` where no cluster can
    be."""
    if address == "auto":
        return
    if "://" in address:
        step = DASHBOARD if address.startswith("http") else "Give HOST:PORT of its head."
        raise InputError("address", address, ALLOWED, step)
    try:
        within(TIMEOUT, lambda: answers(address))
    except (OSError, ValueError) as error:
        raise unreached(address, error) from error


def unreached(address: str, error: Exception) -> InputError:
    """What is said of an address where no cluster is reached."""
    return InputError("address", address, ALLOWED, f"The reason: {' '.join(str(error).split())}")


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


def answers(address: str) -> None:
    """Raises `OSError` or `ValueError` unless something that speaks gRPC answers.

    Left to itself, Ray waits 40 seconds for a port that does not, and minutes for a host.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError("it is not HOST:PORT")
    with socket.create_connection((host.strip("[]"), int(port)), TIMEOUT) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        connection.settimeout(TIMEOUT)
        connection.sendall(HELLO)
        answer = b""
        while len(answer) < 4 and (part := connection.recv(9)):
            answer += part
    if answer[3:4] != b"\x04":  # the type of a SETTINGS frame, with which a server begins
        raise OSError("what listens there does not speak gRPC")
