"""Real servers for tests: MLflow's, and a PostgreSQL database to put behind it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from command import environment


def serving(folder: Path, port: int, store: str = "") -> subprocess.Popen[bytes]:
    """A real server of MLflow on loopback, in a process group of its own; its database is a file
    in the folder, or `store`."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += [
        "--port",
        str(port),
        "--backend-store-uri",
        store or f"sqlite:///{folder}/server.db",
    ]
    command += ["--artifacts-destination", str(folder / "server-artifacts")]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "server.log").open("ab") as log:
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )


@contextlib.contextmanager
def server(folder: Path, port: int, store: str = "") -> Iterator[str]:
    """The address of such a server, which ends with the block."""
    process = serving(folder, port, store)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def keeper(script: str, *ports: int, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A process that makes a cluster by a script and takes it down at the end of its input. The
    script prints `up` when it stands; nothing that it began outlives the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, ports)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(RAY_USAGE_STATS_ENABLED="0", **variables),
    )
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.stdin.close()
        try:
            process.wait(30)
        finally:
            for one in psutil.wait_procs(family, timeout=5)[1]:
                one.kill()
            process.kill()
            process.wait()


@contextlib.contextmanager
def overheard(port: int) -> Iterator[tuple[int, bytearray]]:
    """A port that leads to another one of this machine, and what clients say to it."""
    said = bytearray()

    def carry(source: socket.socket, to: socket.socket, kept: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(1 << 16):
                if kept is not None:
                    kept += part
                to.sendall(part)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                for way in ((client, server, said), (server, client, None)):
                    threading.Thread(target=carry, args=way, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], said


def answering(port: int, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as line:
            line.sendall(b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            if b"200" in line.recv(64):
                return
        time.sleep(0.3)
    pytest.fail("the server did not come up")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _program(name: str) -> str:
    """A program of PostgreSQL; skips where it is not installed."""
    known = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    found = shutil.which(name) or (str(known[0]) if known else None)
    if found is None:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")
    return found


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The address of an empty database of a PostgreSQL server of its own, on loopback.

    The server refuses to run as root: it is then another user's, who owns its files.
    """
    initdb, program = _program("initdb"), _program("postgres")
    user = "postgres" if os.geteuid() == 0 else None
    data, port = folder / "data", free_port()
    folder.mkdir(parents=True)
    if user is not None:
        shutil.chown(folder, user)
        for parent in folder.parents[:-1]:
            if pwd.getpwnam(user).pw_uid != parent.stat().st_uid:
                parent.chmod(parent.stat().st_mode | 0o011)
    with (folder.parent / "postgres.log").open("ab") as log:
        make = [initdb, "-D", str(data), "-U", "tester", "-A", "trust", "--no-sync"]
        subprocess.run(make, user=user, stdout=log, stderr=log, check=True, cwd=folder)
        arguments = ["-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-F"]
        process = subprocess.Popen(
            [program, *arguments], user=user, stdout=log, stderr=log, cwd=folder
        )
        try:
            _wait_for(port)
            yield f"postgresql+psycopg2://tester@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # fast: sessions are ended
            process.wait(30)


def _wait_for(port: int, seconds: float = 30) -> None:
    import psycopg2

    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.connect(host="127.0.0.1", port=port, user="tester", dbname="postgres").close()
            return
        assert time.monotonic() < end, "PostgreSQL did not come up"
        time.sleep(0.1)
