"""`ray up cluster.yaml` as it stands, over real ssh onto hosts of their own, and a search on them.

The hosts are namespaces (`tests/hosts.py`). What stands in for something else: the user `ubuntu` is
root by another name; the folder that all hosts see is one on this machine, not NFS; and the packages
that `pip install` would download are those of the tests' own environment, shown to a virtual
environment that is on the hosts beforehand. Nothing in `cluster.yaml` is replaced.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import ROOT, clsearch, write_config
from hosts import HOME, PATH, SHARED, Host, give_venv, hosts, serve_ssh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PATIENCE = 600.0
"""Seconds that anything may take on a machine with much else to do."""

KEYBOARD = {"PATH": f"{HOME}/clsearch-venv/bin:{PATH}"}
STRANGER = """
from ray._raylet import GcsClient
try:
    GcsClient(address="{address}:6379")
except Exception as error:
    print(type(error).__name__)
"""


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Host]]:
    """A desk with a checkout of this repository, and three hosts that open to a key of its."""
    with hosts(4, tmp_path / "shared", "/usr/sbin/sshd", "ssh", "rsync") as made:
        desk, *others = made
        home = desk.root / HOME[1:]
        desk.run("ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/clsearch && mkdir ~/clsearch-data")
        (home / "clsearch-data" / "mine.parquet").write_bytes(b"data")
        unused = shutil.ignore_patterns(".*", "runs", "build", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, home / "checkout", ignore=unused)
        shutil.copy(ROOT / ".gitignore", home / "checkout")
        for host in made:
            give_venv(host, "clsearch-venv")
        for host in others:
            serve_ssh(host, (home / ".ssh" / "clsearch.pub").read_text())
        yield made


def typed(desk: Host, command: str, seconds: float = PATIENCE) -> str:
    """What a person types at the desk, in the checkout."""
    return desk.run(f"cd checkout && {command}", seconds, **KEYBOARD)


def until(what: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def rays(host: Host) -> list[str]:
    """Ray's processes on a host."""
    return [line for line in host.processes() if "ray::" in line or "/ray/" in line]


def listening(host: Host, port: int) -> set[str]:
    """The addresses at which something on a host waits for connections to a port."""
    output = host.run(f"ss -Hltn sport = :{port}")
    return {line.split()[3].rpartition(":")[0] for line in output.splitlines()}


def test_ray_up_a_search_and_ray_down(machines: list[Host], tmp_path: Path) -> None:
    desk, head, *workers = machines
    config = write_config(
        tmp_path / "shared" / "config.yaml",
        name="three-hosts",
        training={"epochs": 20, "batch_size": 32},
        resources={"pack": 1},
    )
    typed(desk, "ray get-auth-token --generate && chmod 600 ~/.ray/auth_token")
    t = time.time()
    said = typed(desk, "ray up -y cluster.yaml")
    print("UP", time.time() - t, flush=True)
    until(lambda: all(any("raylet" in p for p in rays(host)) for host in workers), PATIENCE)
    print("WORKERS", time.time() - t)
    cores = 3 * (os.cpu_count() or 1)
    until(lambda: f"/{cores}.0 CPU" in typed(desk, "ray exec cluster.yaml 'ray status'"), PATIENCE)
    print("STATUS", time.time() - t)
    for host in (head, *workers):
        assert (host.root / HOME[1:] / "clsearch-data" / "mine.parquet").read_bytes() == b"data"
        assert host.run("stat -c %a ~/.ray/auth_token") == "600\n"
    search = f"clsearch run {SHARED}/config.yaml --out {SHARED}/out --address auto"
    said = typed(desk, f"ray exec cluster.yaml '{search}'")
    print("SEARCH", time.time() - t)
    print(said)
    print(listening(head, 8265))
    print(
        head.run(
            f"RAY_AUTH_MODE=disabled clsearch-venv/bin/python -c '{STRANGER}'".format(
                address=head.address
            )
        )
    )
    print(typed(desk, "ray down -y cluster.yaml"))
    print("DOWN", time.time() - t)
    print(rays(head))
    until(lambda: not any(map(rays, workers)), PATIENCE)
    print("GONE", time.time() - t)
    assert 0
