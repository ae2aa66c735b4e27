"""A search on a cluster of two nodes, one of which dies on the way."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Driver, clsearch, environment, journal, write_config
from servers import free_port, keeper

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 0, "gcs_server_port": int(sys.argv[1]), "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print("up", flush=True)
for line in sys.stdin:
    if line == "kill\\n":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("killed", flush=True)
    else:
        break
cluster.shutdown()
"""


@pytest.fixture
def cluster() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A head without processors and two nodes with one each; its address, and its keeper."""
    port = free_port()
    with keeper(CLUSTER, port, **TOKEN) as process:
        yield f"127.0.0.1:{port}", process


@pytest.mark.long
def test_a_node_that_dies_changes_nothing(
    cluster: tuple[str, subprocess.Popen[str]], tmp_path: Path
) -> None:
    address, process = cluster
    config = write_config(
        tmp_path / "c.yaml",
        name="cluster",
        training={"epochs": 25, "batch_size": 32},
        methods=[{"name": "finetune", "grid": {"lr": [0.001, 0.002, 0.003, 0.004]}}],
        resources={"pack": 1},
    )
    out = tmp_path / "remote"
    driver = Driver(tmp_path / "said", "run", config, "--out", out, "--address", address,
                    env=environment(**TOKEN))  # fmt: skip
    try:
        driver.until(lambda: journal(out))
        assert process.stdin
        assert process.stdout
        process.stdin.write("kill\n")
        process.stdin.flush()
        assert process.stdout.readline() == "killed\n"
        assert driver.process.poll() is None, "the node died too late"
        assert driver.wait() == 0, driver.stderr
    finally:
        driver.end()
    assert driver.stderr == ""
    assert len(journal(out)) == 8
    local = tmp_path / "local"
    done = clsearch("run", config, "--out", local, "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert (out / "selections.json").read_bytes() == (local / "selections.json").read_bytes()
    began = time.monotonic()
    again = clsearch("resume", out, "--address", address, env=environment(**TOKEN))
    assert (again.returncode, again.stderr) == (0, "")
    assert "Nothing was trained" in again.stdout
    assert time.monotonic() - began < 120


@pytest.mark.slow
def test_a_cluster_is_joined_with_its_token_or_knowingly_without(
    cluster: tuple[str, subprocess.Popen[str]], tmp_path: Path
) -> None:
    address, _ = cluster
    config = write_config(tmp_path / "c.yaml")
    nowhere = environment(RAY_AUTH_TOKEN_PATH=str(tmp_path / "none"))
    ended = clsearch("run", config, "--out", tmp_path / "a", "--address", address, env=nowhere)
    assert ended.returncode == 2
    assert "--address" in ended.stderr
    assert "RAY_AUTH_TOKEN" in ended.stderr
    assert TOKEN["RAY_AUTH_TOKEN"] not in ended.stderr
    assert not (tmp_path / "a").exists()
