"""What addresses say: of a database, of a host, of a bucket."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qsl

SQLITE = "sqlite:///"
"""How the address of a file of SQLite begins."""
ANONYMOUS = "gs://anonymous@"
"""How the address of a bucket of Google's begins that is asked for without credentials."""
_HOST = re.compile(r"([\w.-]+|\[[0-9a-fA-F:]+\])(:[0-9]+)?")
"""A server, with its port or without; of other forms, readers find different hosts in it."""


def database_of(uri: str) -> Path | None:
    """The file of an address of SQLite, sqlite:///PATH; None for any other."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def is_loopback(host: str) -> bool:
    """Whether a name or an address, in brackets or not, is this machine's to itself alone."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def shows_token(bucket: str) -> bool:
    """Whether Google's token would go to a server that the address of a bucket names, or there in
    the clear: whoever hears it can use it for an hour."""
    if not bucket.startswith("gs://") or bucket.startswith(ANONYMOUS):
        return False
    given = parse_qsl(bucket.partition("?")[2], keep_blank_values=True)
    servers = [_HOST.fullmatch(value) for key, value in given if key == "endpoint_override"]
    clear = any(key == "scheme" and value != "https" for key, value in given)
    inside = bool(servers) and all(found and is_loopback(found[1]) for found in servers)
    return (clear or bool(servers)) and not inside
