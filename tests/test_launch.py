"""A search launched as a job of a cluster, and followed from another shell with its token alone."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import re
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import Driver, Ended, clsearch, environment, journal, refused, write_config
from rich.console import Console
from servers import free_port, keeper

from clsearch.config import load_config
from clsearch.errors import InputError
from clsearch.launch import _say_how_to_go_on, is_job
from clsearch.search import reach
from clsearch.search.ray_jobs import JobServer, LaunchedJob
from clsearch.system import check_without_data

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
gcs, dashboard, agent = map(int, sys.argv[1:])
head = {"num_cpus": 2, "gcs_server_port": gcs, "dashboard_agent_listen_port": agent}
shown = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": dashboard}
cluster = Cluster(initialize_head=True, head_node_args=head | shown)
print("up", flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell that commands are given in has the cluster's token."""
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, str]]:
    """A head with a dashboard on loopback: the address of the dashboard, and its own."""
    pytest.importorskip("aiohttp_cors", reason="the dashboard needs ray[default]")
    ports = [free_port() for _ in range(3)]
    with tempfile.TemporaryDirectory(prefix="clsearch-test-", dir="/tmp") as folder:
        Path(folder, "ray").mkdir()
        with keeper(CLUSTER, *ports, RAY_TMPDIR=folder, **TOKEN):
            yield f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}"


def search(folder: Path) -> Path:
    """The config of a search that can be stopped on the way."""
    return write_config(
        folder / "c.yaml",
        training={"epochs": 60, "batch_size": 32},
        methods=[{"name": "finetune", "grid": {"lr": [0.001, 0.002, 0.003]}}],
        resources={"pack": 1},
    )


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_launched_search_is_stopped_and_resumed_from_another_shell(
    cluster: tuple[str, str], tmp_path: Path
) -> None:
    """It ends with the selections of a local run; the token is in nothing that was said or kept."""
    dashboard, gcs = cluster
    here, elsewhere, out = tmp_path / "here", tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    shell: dict[str, Any] = {"env": environment(**TOKEN), "cwd": elsewhere}
    config, said = search(here), []

    def told(*arguments: object) -> str:
        done = clsearch(*arguments, **shell)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        said.append(done.stdout)
        return str(done.stdout)

    launched = clsearch("launch", config, "--address", dashboard, "--out", out,
                        env=environment(**TOKEN), cwd=here)  # fmt: skip
    assert (launched.returncode, launched.stderr) == (0, "")
    job = launched.stdout.splitlines()[0]
    assert is_job(job, dashboard)
    config.unlink()
    end = time.monotonic() + 240
    while not journal(out):
        assert time.monotonic() < end, told("logs", job, "--address", dashboard)
        time.sleep(0.1)
    follows = Driver(tmp_path / "follows", "logs", job, "--address", dashboard, "--follow",
                     env=environment(**TOKEN))  # fmt: skip
    try:
        follows.until(lambda: "Task 1/2" in follows.stdout)
        follows.process.send_signal(signal.SIGINT)
        assert (follows.wait(20), follows.stderr) == (130, "")
    finally:
        follows.end()
    again = clsearch("launch", search(here), "--address", dashboard, "--out", out, **shell)
    refused(Ended(again.returncode, again.stdout, again.stderr), "--out", job, "at work")
    stopped = told("stop", job, "--address", dashboard)
    assert "was stopped" in stopped
    kept = journal(out)
    assert 0 < len(kept) < 6
    shown = told("status", job, "--address", gcs)
    assert "was stopped" in shown
    assert f"small in {out} on the cluster: clsearch run" in shown
    assert "Task 1/2" in shown
    assert "interrupted. Go on with" in shown, "Ray killed it before it could end"
    step = re.findall(r"^Go on with: .*clsearch (.*)$", shown, re.M)[-1].split()
    assert step == ["resume", job, "--address", gcs]
    second = told(*step).splitlines()[0]
    assert second != job
    assert "Nothing was trained" not in told("logs", second, "--address", dashboard, "--follow")
    assert "finished after" in told("status", second, "--address", dashboard)
    assert kept.items() <= journal(out).items(), "a finished trial was trained again"
    assert TOKEN["RAY_AUTH_TOKEN"] not in "".join(said)
    local = tmp_path / "local"
    assert clsearch("run", search(here), "--out", local, "--workers", "2").returncode == 0
    assert (out / "selections.json").read_bytes() == (local / "selections.json").read_bytes()


@pytest.mark.slow
def test_what_a_cluster_refuses(
    cluster: tuple[str, str], call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard, gcs = cluster
    refused(call("status", "clsearch-x-000000", "--address", gcs), "JOB", "clsearch-x-000000")
    refused(call("stop", "somewhere", "--address", dashboard), "JOB", "somewhere")
    port = dashboard.rpartition(":")[2]
    refused(call("logs", "x", "--address", f"127.0.0.1:{port}"), f"http://127.0.0.1:{port}")
    refused(call("logs", "x", "--address", f"http://{gcs}"), "No job server of Ray answers")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "cd" * 32)
    config, out = write_config(tmp_path / "c.yaml"), tmp_path / "out"
    ended = call("launch", config, "--address", dashboard, "--out", out)
    refused(ended, "--address", "refuses the token")
    assert "cd" * 32 not in ended.err
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    refused(call("launch", config, "--address", dashboard, "--out", out), "RAY_AUTH_TOKEN")
    assert not out.exists()


DEAD = {
    "a refused port": "http://127.0.0.1:{port}",
    "one of a cluster": "127.0.0.1:{port}",
    "words": "http://HOST:PORT",
    "half an address": "http://[::1",
    "a port out of range": "http://127.0.0.1:99999",
}


@pytest.mark.parametrize("what", DEAD)
def test_a_dead_address_is_refused_at_once(call: Any, what: str) -> None:
    address = DEAD[what].format(port=free_port())
    assert reach.TIMEOUT < 10
    began = time.monotonic()
    refused(call("status", "clsearch-x-000000", "--address", address), "--address", address)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_server_that_never_answers_is_left_within_seconds(
    call: Any, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(reach, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        refused(call("status", "clsearch-x-000000", "--address", address), "--address", address)


@contextlib.contextmanager
def told(
    answer: Callable[[str, bool], tuple[int, bytes]],
) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """A server on loopback: its address; of each request its path, and whether the token came with
    it. It sends on to what a 302 has as its body."""

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = self.headers.get("Authorization") is not None
            asked.append((self.path, token))
            status, body = answer(self.path, token)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", body.decode())
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    asked: list[tuple[str, bool]] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


ASKS = 401, b"Unauthorized: no authentication token"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b'{"ray_version": "2.60.0"}', ["RAY_AUTH_MODE=disabled"]),
        (200, b"[" * 10_000, ["No job server of Ray"]),
        (401, b"Who are you?", ["No job server of Ray"]),
        (500, b"", ["No job server of Ray"]),
    ],
)
def test_who_does_not_ask_as_ray_does_never_gets_the_token(
    call: Any, tmp_path: Path, status: int, body: bytes, words: list[str]
) -> None:
    config = write_config(tmp_path / "c.yaml")
    with told(lambda path, token: (status, body)) as (address, asked):
        ended = call("launch", config, "--address", address, "--out", "/shared/x")
    refused(ended, "--address", *words)
    assert [token for _, token in asked] == [False]


def test_who_sends_elsewhere_never_gets_the_token(call: Any) -> None:
    """To a cluster that asks as Ray does: it would then be told to the one that sent."""
    with told(lambda path, token: ASKS) as (there, asked):  # noqa: SIM117
        with told(lambda path, token: (302, f"{there}{path}".encode())) as (address, first):
            refused(call("status", "clsearch-x-000000", "--address", address), "--address")
    assert first
    assert not any(token for _, token in [*first, *asked])


@pytest.mark.parametrize("exempt", ["", "127.0.0.1", "127.0.0.0/8"])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_no_proxy_is_asked_in_place_of_the_server_or_gets_its_token(
    call: Any, monkeypatch: pytest.MonkeyPatch, variable: str, exempt: str
) -> None:
    """One may ask for the token where the server does not, and the other way round."""
    monkeypatch.setenv("NO_PROXY", exempt)
    with told(lambda path, token: ASKS) as (proxy, seen):
        monkeypatch.setenv(variable, proxy)
        for asks in (True, False):
            answer = ASKS if asks else (200, b'{"ray_version": "2.60.0"}')
            with told(lambda path, token, answer=answer: answer) as (address, asked):  # type: ignore[misc]
                refused(call("status", "clsearch-x-000000", "--address", address), "--address")
            assert asked[0] == ("/api/version", False)
            assert any(token for _, token in asked) == asks
    assert seen == []


VERSION = b'{"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "x"}'
JOBS = json.dumps(
    [
        {
            "type": "SUBMISSION", "submission_id": "clsearch-x-000000", "status": "RUNNING",
            "entrypoint": "x", "metadata": {"name": "x", "out": "/x", "command": "x"},
            "runtime_env": {"env_vars": 7},
        }
    ]
).encode()  # fmt: skip
ODD = {
    "no version": {"/api/version": (200, b"{}")},
    "a list as version": {"/api/version": (200, b"[1]")},
    "nothing for jobs": {"/api/jobs/": (200, b"null")},
    "a number for jobs": {"/api/jobs/": (200, b"7")},
    "a list of numbers": {"/api/jobs/": (200, b"[1]")},
    "variables of a job that are none": {"/api/jobs/": (200, JOBS)},
}


@pytest.mark.parametrize("what", ODD)
def test_odd_answers_of_a_server_that_asked_for_the_token(call: Any, what: str) -> None:
    answers = {"/api/version": (200, VERSION), **ODD[what]}
    with told(lambda path, token: answers.get(path, (404, b"")) if token else ASKS) as (at, asked):
        ended = call("status", "clsearch-x-000000", "--address", at)
    assert ended.code in (1, 2)
    assert ended.err.startswith("clsearch: ")
    assert len(ended.err.splitlines()) == 1
    assert any(token for _, token in asked)


@pytest.mark.parametrize("sent", ["/api/version", "/api/jobs/"])
def test_who_asks_and_then_sends_elsewhere_is_not_followed(call: Any, sent: str) -> None:
    with told(lambda path, token: (200, VERSION)) as (there, seen):

        def answer(path: str, token: bool) -> tuple[int, bytes]:
            if token and path == sent:
                return 302, f"{there}{path}".encode()
            return (200, VERSION) if token else ASKS

        with told(answer) as (address, asked):
            ended = call("status", "clsearch-x-000000", "--address", address)
    assert ended.code in (1, 2)
    assert (sent, True) in asked
    assert seen == []


def test_a_followed_log_takes_no_token_elsewhere(call: Any) -> None:
    jobs = json.loads(JOBS)
    jobs[0]["runtime_env"] = {}
    with told(lambda path, token: (404, b"")) as (there, seen):

        def answer(path: str, token: bool) -> tuple[int, bytes]:
            if path.endswith("/logs/tail"):
                return 302, f"{there}{path}".encode()
            found = {"/api/version": VERSION, "/api/jobs/": json.dumps(jobs).encode()}
            return (200, found.get(path, b"{}")) if token else ASKS

        with told(answer) as (address, asked):
            ended = call("logs", "clsearch-x-000000", "--follow", "--address", address)
    assert ended.code == 1
    assert asked[-1] == ("/api/jobs/clsearch-x-000000/logs/tail", True)
    assert not any(token for _, token in seen)


def test_a_job_server_is_told_the_token_when_it_has_asked_whoever_looked_before() -> None:
    other = told(lambda path, token: (200, VERSION))
    with other as (address, asked), pytest.raises(InputError, match="asks for a token"):
        JobServer(address)
    assert asked == [("/api/version", False)]


@pytest.mark.timeout(60)
def test_an_answer_that_drips_is_left_within_seconds(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of it comes within the limit for one."""
    monkeypatch.setattr("clsearch.search.ray_jobs.ANSWER", 1.0)

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = self.headers.get("Authorization") is not None
            self.send_response(200 if token else 401)
            self.end_headers()
            self.wfile.write(b"" if token else ASKS[1])
            if token and self.path == "/api/version":
                self.wfile.write(VERSION)
            elif token:
                with contextlib.suppress(OSError):
                    while not over.wait(0.1):
                        self.wfile.write(b" ")

        def log_message(self, *_: object) -> None:
            pass

    over = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address, began = f"http://127.0.0.1:{server.server_port}", time.monotonic()
        ended = call("status", "clsearch-x-000000", "--address", address)
        assert time.monotonic() - began < 8
        over.set()
        server.shutdown()
    assert ended.code == 1
    assert "no answer within 1 s" in ended.err


def test_a_server_that_asks_and_then_is_silent_is_left_within_seconds(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clsearch.search.ray_jobs.TIMEOUT", 0.5)
    over = threading.Event()

    def answer(path: str, token: bool) -> tuple[int, bytes]:
        if token:
            over.wait(20)
        return ASKS

    with told(answer) as (address, _):
        began = time.monotonic()
        refused(call("status", "clsearch-x-000000", "--address", address), "no answer within 1 s")
        assert time.monotonic() - began < 5
        over.set()


def said(code: int | None, status: str) -> str:
    """How to go on with a search that ended so."""
    console = Console(file=io.StringIO(), width=500)
    job = LaunchedJob("clsearch-x-000000", status, "x", "/shared/x", "", "", 0.0, 1.0, code)
    server = SimpleNamespace(address="h:1")
    _say_how_to_go_on(job, server, console)  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_refused_search_is_not_just_resumed() -> None:
    """Its config would be refused again."""
    resume = "clsearch resume clsearch-x-000000 --address h:1"
    assert "launch the config again, with --out /shared/x" in said(2, "FAILED")
    for code, status in ((1, "FAILED"), (None, "STOPPED")):
        assert "launch" not in said(code, status)
        assert resume in said(code, status)
    assert said(0, "SUCCEEDED") == said(None, "RUNNING") == ""


def test_a_server_that_answers_without_end_is_left_within_seconds(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "TIMEOUT", 1.0)

    def drip() -> None:
        with contextlib.suppress(OSError):
            line, _ = server.accept()
            line.sendall(b"HTTP/1.1 401 No\r\n\r\n")
            while True:
                line.sendall(b"x")
                time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, daemon=True).start()
        address, began = f"http://127.0.0.1:{server.getsockname()[1]}", time.monotonic()
        refused(call("status", "clsearch-x-000000", "--address", address), "no answer within 1 s")
        assert time.monotonic() - began < 5


WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "an unknown key": ({"trainning": {}}, ("trainning",)),
    "an unknown hyperparameter": (
        {"methods": [{"name": "finetune", "grid": {"strength": [1]}}]},
        ("methods[0].grid.strength", "lr"),
    ),
    "an unknown option": ({"model": {"name": "mlp", "hiden": [3]}}, ("model.hiden",)),
    "a password": (
        {"tracking": {"uri": "http://me:hunter22@mlflow:5000"}},
        ("tracking.uri", "MLFLOW_TRACKING_PASSWORD"),
    ),
    "a database beside the config": (
        {"tracking": {"uri": "sqlite:///mlflow.db"}},
        ("tracking.uri", "mlflow.db", "absolute"),
    ),
    "data beside the config": (
        {"scenario": {"name": "permuted", "source": "digits", "root": "data"}},
        ("scenario.root", "absolute"),
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_bad_config_is_refused_before_a_cluster_is_asked(
    call: Any, tmp_path: Path, what: str
) -> None:
    sections, words = WRONG[what]
    config = write_config(tmp_path / "c.yaml", **sections)
    refused(call("launch", config, "--address", "auto", "--out", "/shared/x"), *words)


def test_an_output_folder_of_this_machine_is_refused(call: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml")
    for out in ("runs/x", "/shared/a/../x"):  # what is `..` there, is not known here
        refused(call("launch", config, "--address", "auto", "--out", out), "--out", "absolute")


def test_a_config_is_checked_without_its_data() -> None:
    made = {"scenario": {"name": "split", "source": "mnist", "root": "/nowhere"}}
    for model in ("mlp", "clnp_narrow", "alexnet", "vgg16"):
        config = {**made, "model": {"name": model}, "methods": [{"name": "clnp"}]}
        check_without_data(load_config(config))


def test_a_job_and_a_folder_are_told_apart_by_the_name_alone(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "clsearch-small-0a1b2c"
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    for verb in ("status", "resume"):
        refused(call(verb, name), "--address is missing", f"./{name}")
        refused(call(verb, f"./{name}"), "DIR", "config.yaml")
    assert is_job(name, "auto")
    for folder in (f"./{name}", f"runs/{name}", "clsearch-small", "small-0a1b2c", f"{name}/"):
        assert not is_job(folder, "auto")
    with pytest.raises(InputError, match="address"):
        is_job(name, None)
    refused(call("resume", name, "--address", "auto", "--workers", "2"), "--workers")
