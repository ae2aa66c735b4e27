"""Ray's token: made for every local run, asked for by every cluster; nothing listens outside."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
from command import arguments, clsearch, environment, listening, write_config
from servers import free_port, keeper, overheard

from clsearch.errors import InputError
from clsearch.files import ENTRY
from clsearch.search import local


def test_a_new_token_is_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = local.new_token(str(tmp_path)), local.new_token(str(tmp_path / "other"))
    files = [Path(str(made[local.TOKEN_PATH])) for made in (first, second)]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
    tokens = {file.read_text() for file in files}
    assert len(tokens) == 2
    assert all(len(bytes.fromhex(token)) == 32 for token in tokens)


def test_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(local.TOKEN, "mine")
    monkeypatch.delenv(local.MODE, raising=False)
    with local.environment({local.MODE: "x", local.TOKEN: None}):
        assert os.environ[local.MODE] == "x"
        assert local.TOKEN not in os.environ
    assert local.MODE not in os.environ
    assert os.environ[local.TOKEN] == "mine"


def test_folders_of_killed_runs_are_deleted_and_of_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's are in /tmp, those for MLflow where temporary files are."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = f"-{platform.node()}"
    kinds = (local.FOLDER, ""), (ENTRY, here), (ENTRY, f"{here}-2"), ("clsearch-other-", here)
    swept = (local.FOLDER, "", "/tmp"), (ENTRY, here, None)
    made = {
        Path(tempfile.mkdtemp(prefix=f"{prefix}{number}{host}-", dir=place)): (
            number != gone.pid or (prefix, host, place) not in swept
        )
        for place in ("/tmp", None)
        for prefix, host in kinds
        for number in (gone.pid, os.getpid(), "x", 10**30)
    }
    try:
        for folder in made:
            (folder / "model.pt2").touch()
        local.sweep()
        assert {folder: folder.exists() for folder in made} == made
    finally:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without a token."""
    for name in (local.MODE, local.TOKEN, local.TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    return tmp_path


def test_a_token_file_that_others_may_read_is_closed(home: Path) -> None:
    file = home / ".ray" / "auth_token"
    file.write_text("ab" * 32)
    file.chmod(0o644)
    assert local.cluster_token("auto") == {local.MODE: "token"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [None, " \n"])
def test_a_cluster_without_a_known_token_is_refused(home: Path, content: str | None) -> None:
    if content is not None:
        (home / ".ray" / "auth_token").write_text(content)
    with pytest.raises(InputError, match=r"RAY_AUTH_TOKEN.*RAY_AUTH_MODE=disabled"):
        local.cluster_token("192.0.2.1:6379")


def test_who_says_so_joins_without(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(local.MODE, "disabled")
    assert local.cluster_token("192.0.2.1:6379") == {local.MODE: "disabled"}


STRANGER = """
import sys
from ray._raylet import GcsClient
try:
    GcsClient(address=sys.argv[1])
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.slow
def test_a_local_ray_is_reached_from_this_host_and_with_its_token_alone() -> None:
    """One after another in one process: each has a token of its own."""
    import ray

    from clsearch.config import ResourcesConfig
    from clsearch.search.ray_backend import RaySearcher

    before = set(Path("/tmp").glob(f"{local.FOLDER}{os.getpid()}-*"))
    for _ in range(2):
        searcher = RaySearcher(ResourcesConfig(workers=1, device="cpu"))
        try:
            assert searcher.try_out().startswith("a task ran")
            # Ray lets everybody write to its own folder: nobody else gets as far.
            assert stat.S_IMODE(Path(searcher._folder).stat().st_mode) == 0o700
            sockets = [p for p in Path(searcher._folder).rglob("*") if p.is_socket()]
            assert sockets
            assert max(len(str(p)) for p in sockets) < 104  # the system takes no longer ones
            me = psutil.Process()
            addresses = listening([me, *me.children(recursive=True)])
            assert len(addresses) >= 5, "Ray's own processes are not seen"
            running = " ".join(" ".join(arguments(p)) for p in me.children(recursive=True))
            assert "raylet" in running
            assert "dashboard.py" not in running
            assert "monitor.py" not in running  # of logs, and the autoscaler's
            assert [ip for ip, _ in addresses if not _loopback(ip)] == []
            stranger = subprocess.run(
                [sys.executable, "-c", STRANGER, ray.get_runtime_context().gcs_address],
                env=environment(RAY_AUTH_MODE="disabled"), capture_output=True, text=True,
                check=True,
            )  # fmt: skip
            assert stranger.stdout == "AuthenticationError\n"
        finally:
            searcher.close()
        # Neither its own folder is left nor one of the other that Ray makes anew.
        assert set(Path("/tmp").glob(f"{local.FOLDER}{os.getpid()}-*")) == before


OPEN = """
import sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 0, "gcs_server_port": int(sys.argv[1]), "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
print("up", flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["run", "launch"])
def test_a_cluster_that_asks_for_no_token_is_refused_and_never_told_ours(
    tmp_path: Path, verb: str
) -> None:
    port, token = free_port(), "ab" * 32
    config = write_config(tmp_path / "c.yaml")
    with keeper(OPEN, port, RAY_AUTH_MODE="disabled"), overheard(port) as (tapped, said):
        ended = clsearch(
            verb, config, "--out", tmp_path / "out", "--address", f"127.0.0.1:{tapped}",
            env=environment(RAY_AUTH_TOKEN=token),
        )  # fmt: skip
    assert ended.returncode == 2
    for word in ("--address", "RAY_AUTH_MODE=disabled"):
        assert word in ended.stderr
    assert token not in ended.stderr
    assert said
    assert token.encode() not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_cluster_that_asks_for_a_token_is_told_it_where_this_can_be_heard(tmp_path: Path) -> None:
    """The other test would not notice otherwise. This cluster has no dashboard."""
    port, token = free_port(), {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32}
    config = write_config(tmp_path / "c.yaml")
    with keeper(OPEN, port, **token), overheard(port) as (tapped, said):
        ended = clsearch(
            "launch", config, "--out", "/x", "--address", f"127.0.0.1:{tapped}",
            env=environment(**token),
        )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.count("\n") < 6, "Ray's own words are on the terminal"
    assert token["RAY_AUTH_TOKEN"].encode() in said


def _loopback(ip: str) -> bool:
    address = ip_address(ip)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
