"""A real S3 API server on loopback, in a process of its own, which can be made to fail."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

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

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests-secret",
    "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


@dataclass(frozen=True)
class ObjectStore:
    """The server at a port, with a bucket `runs`."""

    port: int

    def address(self, prefix: str, bucket: str = "runs") -> str:
        return f"s3://{bucket}/{prefix}?scheme=http&endpoint_override=127.0.0.1%3A{self.port}"

    def fail(self, mode: str, every: int = 1) -> None:
        """`ok`, `error` (status 500) or `slow` (2 s late), at every so-manieth request."""
        self.ask(f"-fault/{mode}/{every}")

    def ask(self, path: str, method: str = "GET") -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", method=method)
        urllib.request.urlopen(request, timeout=30).close()


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    pytest.importorskip("moto", reason="an S3 server: pip install 'clsearch[dev]'")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        store = ObjectStore(int(process.stdout.readline()))
        for _ in range(50):
            with contextlib.suppress(urllib.error.URLError):
                store.ask("runs", "PUT")  # makes the bucket
                break
            time.sleep(0.1)
        yield store
    finally:
        process.communicate("", timeout=30)
