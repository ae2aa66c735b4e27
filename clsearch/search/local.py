"""What Ray needs of the machine it is started on: folders, and a token."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from clsearch.errors import InputError
from clsearch.files import ENTRY

FOLDER = "clsearch-ray-"
"""What Ray's folders begin with; the number of the process that made them comes next."""

RAY = "r"
"""Ray's own folder in there: Ray lets everybody write to it, so a closed one is around it."""

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""Ray's own variables: `token` or `disabled`, the token, and the file that holds it."""

UNPROTECTED = f"{MODE}=disabled joins a cluster without one, open to all who reach its ports."


def new_folder() -> str:
    """A folder for this process alone. In /tmp: the path of a socket may have 107 characters."""
    return tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-", dir="/tmp")


def sweep() -> None:
    """Deletes the folders of runs that were killed."""
    host = re.escape(platform.node())
    places = (FOLDER, "/tmp", ""), (ENTRY, tempfile.gettempdir(), f"{host}-")
    for prefix, place, of in places:
        for folder in Path(place).glob(f"{prefix}*"):
            named = re.fullmatch(rf"{prefix}(\d+)-{of}[^-]+", folder.name)
            with contextlib.suppress(OSError, OverflowError):
                if named is None or folder.stat().st_uid != os.getuid():
                    continue
                try:
                    os.kill(int(named[1]), 0)
                except ProcessLookupError:
                    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Sets variables, None deletes one, and puts back what was there."""
    before = {name: os.environ.get(name) for name in values}

    def put(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(values)
    try:
        yield
    finally:
        put(before)


def new_token(folder: str) -> dict[str, str | None]:
    """A token of 256 random bits in a file of mode 0600; the variables by which Ray finds it."""
    path = Path(folder, "auth_token")
    with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as stream:
        stream.write(secrets.token_hex(32))
    return {MODE: "token", TOKEN: None, TOKEN_PATH: str(path)}


def cluster_token(address: str) -> dict[str, str | None]:
    """The variables for a cluster whose token is found where Ray looks for it: in RAY_AUTH_TOKEN,
    in the file of RAY_AUTH_TOKEN_PATH, in ~/.ray/auth_token. That file is made 0600 if it is ours.

    `RAY_AUTH_MODE=disabled` asks for none. Raises `InputError` where there is none.
    """
    if open_cluster():
        return {MODE: "disabled"}
    if not os.environ.get(TOKEN, "").strip():
        path = Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
        try:
            if not path.read_text().strip():
                raise ValueError("it is empty")
            found = path.stat()
            if found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) & 0o077:
                path.chmod(0o600)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            step = f"{path} cannot be read ({reason}). Put the token there, or into {TOKEN}."
            allowed = "a cluster whose token is known here"
            raise InputError("address", address, allowed, f"{step} {UNPROTECTED}") from error
    return {MODE: "token"}


def open_cluster() -> bool:
    """Whether the user said that the cluster may be one without a token."""
    return os.environ.get(MODE, "").lower() == "disabled"
