"""MLflow's UI on an output folder: a server on this machine, for as long as somebody looks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

from rich.console import Console

from clsearch.addresses import database_of
from clsearch.errors import ClsearchError, InputError
from clsearch.folder import run_config
from clsearch.messages import command
from clsearch.mlflow_places import put_right, wrong_with
from clsearch.notes import view_link
from clsearch.tracking import SETTINGS, is_server, store_of
from clsearch.views import SELECTIONS_KEY

HOST = "127.0.0.1"
PATIENCE, GRACE = 90.0, 10.0
"""Seconds a server may take to start, and to end before it is killed."""
_DIRECT = build_opener(ProxyHandler({}))
"""A way to this machine's own server that no proxy of the environment stands in."""


def ui_command(out: Path, uri: str | None = None) -> str:
    """What opens the audit trail of this output folder: a command, or a server's address."""
    return uri if uri is not None and is_server(uri) else command("ui", out)


def serve(out: Path, port: int | None, console: Console) -> None:
    """Serves MLflow's UI on the store of a run until it is interrupted, and prints its address.

    Says the address where the run's store is a server. Raises `InputError` for a folder without a
    store and for a port that is taken, `StoreError` for a database that is busy or cannot be
    written, `ClsearchError` when the server ends by itself.
    """
    config = run_config(out)
    uri = config.tracking.uri
    if is_server(uri):
        console.print(f"The audit trail of {out} is on its MLflow server: {uri}", soft_wrap=True)
        return
    store, artifacts = store_of(out, uri, "DIR")
    database = database_of(store)
    if database is not None and not database.is_file():
        step = "Nothing was delivered yet, or it was moved."
        step = f"There is no {database}. {step} Go on with: {command('resume', out)}"
        raise InputError("DIR", str(out), "a run whose store of MLflow is there", step)
    chosen = _free_port() if port is None else _checked(port)
    if database is not None and (wrong := wrong_with(database, own=artifacts is not None)):
        allowed = "a run whose store of MLflow is whole"
        raise InputError("DIR", str(out), allowed, f"{database} {wrong}.")
    if artifacts is not None:
        put_right(store, artifacts, config.name)
    with _server(store, chosen) as (process, log):
        base = f"http://{HOST}:{chosen}"
        _wait(process, base, log)
        console.print(f"MLflow on {out}: {base}{_page(base, config.name)}", soft_wrap=True)
        console.print("Stop it with Ctrl-C.")
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()
            raise ClsearchError(f"MLflow's server has ended by itself.{_said(log)}")


@contextlib.contextmanager
def _server(store: str, port: int) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """MLflow's server in a process group of its own, which ends with the block."""
    arguments = ["--host", HOST, "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", store]
    arguments += ["--allowed-hosts", f"{HOST}:{port},localhost:{port}"]
    environment = {**SETTINGS, **os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as place:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *arguments],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=place, env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the whole group
        )  # fmt: skip
        try:
            yield process, log
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a group of processes, the hard way where it has to be, or who waits has no patience."""
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _wait(process: subprocess.Popen[bytes], base: str, log: IO[bytes]) -> None:
    """Until the server answers. Raises `ClsearchError` when it does not."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(URLError, OSError), _DIRECT.open(f"{base}/health", timeout=5):
            return
        time.sleep(0.1)
    raise ClsearchError(f"MLflow's server did not start.{_said(log)}")


def _said(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()[-10:]
    return "\n".join([" It said:", *lines]) if lines else ""


def _page(base: str, name: str) -> str:
    """The page to begin with: the selections of the experiment, in a view of their own."""
    address = f"{base}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(name)}"
    try:
        with _DIRECT.open(address, timeout=10) as answer:
            number = json.load(answer)["experiment"]["experiment_id"]
    except (URLError, OSError):
        return ""
    return "/" + view_link("", number, SELECTIONS_KEY).to


def _checked(port: int) -> int:
    """Raises `InputError` for a port that is taken."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            step = f"{error.strerror}. Without --port a free one is taken."
            raise InputError("--port", port, "a port that is free", step) from error
    return port


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        found: int = listener.getsockname()[1]
        return found
