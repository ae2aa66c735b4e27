"""Real servers of object stores on loopback, in processes of their own: one of S3's API, which can
be made to fail, and one of Google's."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

SERVER = """
import sys, threading, time
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
real = DomainDispatcherApplication(create_backend_app)
state = {"mode": "ok", "every": 1, "seen": 0}

def application(environ, start):
    path = environ["PATH_INFO"]
    if path.startswith("/-fault/"):
        _, _, mode, every = path.split("/")
        state.update(mode=mode, every=int(every), seen=0)
        start("200 OK", [])
        return [b""]
    state["seen"] += 1
    if state["mode"] != "ok" and state["seen"] % state["every"] == 0:
        if state["mode"] == "error":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        time.sleep(2.0)
    return real(environ, start)

server = make_server("127.0.0.1", 0, application, threaded=True)
print(server.server_port, flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
"""

GOOGLE = """
import sys
from gcp_storage_emulator.server import create_server
server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="runs")
server.start()
print(server._api._httpd.server_port, flush=True)
sys.stdin.read()
"""

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests-secret",
    "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


@dataclass(frozen=True)
class ObjectStore:
    """The server at a port, with a bucket `runs`."""

    port: int
    process: subprocess.Popen[str]

    def address(self, prefix: str, bucket: str = "runs") -> str:
        return f"s3://{bucket}/{prefix}?scheme=http&endpoint_override=127.0.0.1%3A{self.port}"

    def fail(self, mode: str, every: int = 1) -> None:
        """`ok`, `error` (status 500) or `slow` (2 s late), at every so-manieth request."""
        self.ask(f"-fault/{mode}/{every}")

    def ask(self, path: str, method: str = "GET") -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", method=method)
        urllib.request.urlopen(request, timeout=30).close()


def _started(program: str) -> subprocess.Popen[str]:
    """A server that prints its port, and ends when its input does."""
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


@contextlib.contextmanager
def google_store() -> Iterator[str]:
    """The address of a folder in a bucket of a server of Google's API."""
    pytest.importorskip("gcp_storage_emulator", reason="Google's API: pip install 'clsearch[dev]'")
    process = _started(GOOGLE)
    try:
        assert process.stdout
        port = int(process.stdout.readline())
        yield f"gs://runs/a?scheme=http&endpoint_override=127.0.0.1%3A{port}"
    finally:
        process.kill()
        process.communicate()


def google_account(file: Path) -> None:
    """Writes the credentials of a service account that nobody has."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account", "project_id": "tests", "private_key_id": "tests",
        "private_key": pem.decode(), "client_email": "tests@tests.iam.gserviceaccount.com",
        "client_id": "1", "token_uri": "http://127.0.0.1:9/token",
    }  # fmt: skip
    file.write_text(json.dumps(account))


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    pytest.importorskip("moto", reason="an S3 server: pip install 'clsearch[dev]'")
    process = _started(SERVER)
    try:
        assert process.stdout
        store = ObjectStore(int(process.stdout.readline()), process)
        for _ in range(50):
            with contextlib.suppress(urllib.error.URLError):
                store.ask("runs", "PUT")  # makes the bucket
                break
            time.sleep(0.1)
        yield store
    finally:
        process.communicate("", timeout=30)
