"""Whether something that speaks gRPC answers at an address, asked before Ray is."""

from __future__ import annotations

import os
import socket

TIMEOUT = 5.0
"""Seconds to wait for an answer."""

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How an HTTP/2 client begins: the preface and an empty SETTINGS frame (RFC 9113 §3.4)."""


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
