"""Whether anything that can be a cluster, or its job server, answers at an address: asked before
Ray is imported, which takes its time."""

from __future__ import annotations

import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from queue import Empty, SimpleQueue
from typing import TypeVar
from urllib.parse import urlsplit

from clsearch.errors import InputError
from clsearch.files import parse
from clsearch.redaction import holds_secret
from clsearch.search import local

T = TypeVar("T")

TIMEOUT = 5.0
"""Seconds to wait for an answer."""

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How an HTTP/2 client begins: the preface and an empty SETTINGS frame (RFC 9113 §3.4)."""

ALLOWED = "auto, or HOST:PORT of a running Ray cluster"
SERVERS = "auto, HOST:PORT of a running Ray cluster, or http://HOST:PORT of its dashboard"
TUNNEL = "`ray dashboard cluster.yaml` opens a way to it: http://127.0.0.1:8265."
SILENT = "Is Ray at work there (`ray status`), and its port open from here?"
"""What to look at where nothing answers."""
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


def check_server(address: str) -> None:
    """Raises `InputError`, within seconds, for an address other than `auto` where no job server of
    a cluster can be: http://HOST:PORT of its dashboard, or HOST:PORT of the cluster itself."""
    if holds_secret(address):
        step = f"The token comes from the environment: {local.TOKEN}, or ~/.ray/auth_token."
        raise InputError("address", address, "an address without secrets", step)
    if "://" in address:
        if not _is_web(address):
            raise InputError("address", address, SERVERS)
        check_asks(address.rstrip("/"), address)
    elif address != "auto":
        try:
            within(TIMEOUT, lambda: answers(address))
        except NotClusterError as error:
            hint = NotClusterError(f"{error}. If it is the dashboard, write http://{address}.")
            raise unreached(address, hint, SERVERS) from error
        except (OSError, ValueError) as error:
            raise unreached(address, error, SERVERS) from error


def check_asks(url: str, address: str) -> None:
    """Asks a job server without a token, before it is told one. Raises `InputError` for one that
    asks for none, where the user did not say that it may, and for what does not ask as Ray does: it
    is no cluster."""
    try:
        within(TIMEOUT, lambda: _ask(url))
    except _AskedError:
        return
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        raise unserved(url, address, error) from error
    if not local.open_cluster():
        raise not_asked(address)


class _AskedError(Exception):
    """A job server asks for a token."""


class _Straight(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: whom it is sent to may ask for the token, and who sends may not."""

    def redirect_request(self, *_: object) -> None:
        return None


def _ask(url: str) -> None:
    # Through no proxy of the environment, which would be asked in place of the job server.
    straight = urllib.request.build_opener(_Straight, urllib.request.ProxyHandler({}))
    try:
        with straight.open(f"{url}/api/version", timeout=TIMEOUT) as answer:
            parse(answer.read(10_000))["ray_version"]
    except urllib.error.HTTPError as error:
        if error.code != 401 or b"authentication token" not in error.read(10_000):
            raise
        raise _AskedError from error


def _is_web(address: str) -> bool:
    """Whether it is http://HOST:PORT, or https; the port need not be said."""
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def unreached(address: str, error: Exception, allowed: str = ALLOWED) -> InputError:
    """What is said of an address where no cluster is reached."""
    step = f"The reason: {' '.join(str(error).split()).rstrip('.')}."
    silent = isinstance(error, OSError) and not isinstance(error, NotClusterError)
    return InputError("address", address, allowed, f"{step} {SILENT}" if silent else step)


def unserved(url: str, address: str, error: Exception) -> InputError:
    """What is said of an address where no job server is reached."""
    said = " ".join(str(getattr(error, "reason", None) or error).split())
    step = f"No job server of Ray answers at {url} ({said}). {TUNNEL}"
    return InputError("address", address, SERVERS, step)


def not_asked(address: str) -> InputError:
    """What is said of a cluster that lets everybody in."""
    step = "It was started without. " + local.UNPROTECTED
    return InputError("address", address, "a cluster that asks for a token", step)


def within(seconds: float, act: Callable[[], T]) -> T:
    """What something gives that has its own limits for every step, or raises `TimeoutError`."""
    ended: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

    def run() -> None:
        try:
            ended.put((act(), None))
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            ended.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        found, error = ended.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return found  # type: ignore[return-value]


class NotClusterError(OSError):
    """Something else than a cluster answers."""


def answers(address: str) -> None:
    """Raises `OSError` or `ValueError` unless something that speaks gRPC answers, `NotClusterError`
    where something else does.

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
        raise NotClusterError("what listens there does not speak gRPC")
