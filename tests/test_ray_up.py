"""`ray up cluster.yaml` as it stands, over real ssh onto hosts of their own, and a search on them.

The hosts are namespaces (`tests/hosts.py`). What stands in for something else: the user `ubuntu` is
root by another name; the folder that all hosts see is one on this machine, not NFS; and what
`pip install` would download is shown to a virtual environment that is on the hosts beforehand: the
packages of the tests' own. Nothing in `cluster.yaml` is replaced.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import ROOT, clsearch, journal, write_config
from hosts import HOME, PATH, SHARED, Host, give_venv, hosts, serve_ssh
from test_cluster_yaml import documented

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

PATIENCE = 600.0
"""Seconds that anything may take on a machine with much else to do."""

KEYBOARD = {"PATH": f"{HOME}/clsearch-venv/bin:{PATH}", "RAY_raylet_start_wait_time_s": "240"}
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
    with hosts(4, tmp_path / "shared", "sshd", "ssh", "rsync", "ss") as made:
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


def typed(desk: Host, command: str) -> str:
    """What a person types at the desk, in the checkout; returns what they see."""
    return desk.run(f"cd checkout && {command}", PATIENCE, **KEYBOARD)


def until(what: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.5)


def rays(host: Host) -> list[str]:
    """Ray's processes on a host, but for the reader of its logs: that stays until the next
    `ray up`."""
    own = (line for line in host.processes() if "ray::" in line or "/ray/" in line)
    return [line for line in own if "log_monitor" not in line]


def listening(host: Host) -> dict[str, str]:
    """What waits for connections on a host: port to address."""
    ends = [line.split()[3] for line in host.run("ss -Hltn").splitlines()]
    return {port: address for address, _, port in (end.rpartition(":") for end in ends)}


def test_ray_up_a_search_and_ray_down(machines: list[Host], tmp_path: Path) -> None:
    desk, head, *workers = machines
    config = write_config(
        tmp_path / "shared" / "config.yaml",
        name="three-hosts",
        training={"epochs": 10, "batch_size": 32},
        resources={"pack": 1},
    )
    typed(desk, "ray get-auth-token --generate && chmod 600 ~/.ray/auth_token")
    typed(desk, "ray up -y cluster.yaml")
    cores = 3 * (os.cpu_count() or 1)
    until(lambda: all(any("raylet" in line for line in rays(host)) for host in workers))
    until(lambda: f"/{cores}.0 CPU" in typed(desk, "ray exec cluster.yaml 'ray status'"))
    for host in (head, *workers):
        assert (host.root / HOME[1:] / "clsearch-data" / "mine.parquet").read_bytes() == b"data"
        assert host.run("stat -c %a ~/.ray/auth_token ~/.ray") == "600\n700\n"
    ports = listening(head)
    assert "6379" in ports
    assert ports.get("8265", "127.0.0.1") == "127.0.0.1", "the dashboard is seen from outside"
    stranger = f"clsearch-venv/bin/python -c '{STRANGER.format(address=head.address)}'"
    assert workers[0].run(stranger, RAY_AUTH_MODE="disabled").endswith("AuthenticationError\n")

    search = documented()[0]
    places = {"~/clsearch/experiments/quickstart.yaml": f"{SHARED}/config.yaml",
              " SHARED/quickstart": f" {SHARED}/out"}  # fmt: skip
    for example, place in places.items():
        assert example in search
        search = search.replace(example, place)
    said = typed(desk, search)
    assert "8 trials trained" in said
    out, local = tmp_path / "shared" / "out", tmp_path / "local"
    assert len(journal(out)) == 8
    done = clsearch("run", config, "--out", local, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert (out / "selections.json").read_bytes() == (local / "selections.json").read_bytes()

    typed(desk, "ray down -y cluster.yaml")
    assert rays(head) == []
    until(lambda: not any(map(rays, workers)))  # these look for their head for a minute
