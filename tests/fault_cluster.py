"""Faults of a cluster: a head and two workers on hosts of their own (tests/hosts.py)."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

from command import ROOT
from fault_matrix import INJECTION, PATIENCE, Damage, Ground, fault
from hosts import PATH, SHARED, Host, hosts

CUT = 30.0
"""Seconds that a host is cut off."""

GIVES_UP = 150.0
"""Seconds after which a search has ended whose cluster lost its head: Ray looks for it for 60, and
what is ended then may take half a minute on a machine with much else to do."""

PORT = 6379


class Cluster:
    """Ray on a head that trains nothing and on two hosts with one processor each.

    The hosts see the folder of the ground at SHARED, and the search writes to `out` in it.
    """

    def __init__(self, ground: Ground, made: list[Host]) -> None:
        self.ground, self.head, self.workers = ground, made[0], made[1:]
        self.variables = {
            "PATH": f"{sys.prefix}/bin:{PATH}",
            "PYTHONPATH": f"{SHARED}/injected:{ROOT}",
            "PYTHONUNBUFFERED": "1",
            "CLSEARCH_INJECTION": f"{SHARED}/injection",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "240",
        }
        shutil.copytree(INJECTION, ground.folder / "injected")
        shutil.copy(ground.config, ground.folder / "config.yaml")
        self.start()

    def start(self) -> None:
        """Starts Ray on all hosts; what was left of an earlier one is ended."""
        head = f"ray start --head --port={PORT} --num-cpus=0 --include-dashboard=false"
        worker = f"ray start --address={self.head.address}:{PORT} --num-cpus=1"
        for host, command in [(self.head, head), *((host, worker) for host in self.workers)]:
            host.kill()
            host.run(command, 300, **self.variables)

    @contextlib.contextmanager
    def search(self, host: Host) -> Iterator[Search]:
        """A search whose driver is on a host."""
        with (self.ground.folder / "said").open("w") as said:
            arguments = f"{SHARED}/config.yaml --out {SHARED}/out"
            process = host.popen(self._clsearch("run", arguments), said, **self.variables)
        try:
            yield Search(self.ground, process)
        finally:
            process.kill()
            process.wait()

    def resume(self) -> None:
        self.head.run(self._clsearch("resume", f"{SHARED}/out"), PATIENCE, **self.variables)

    def _clsearch(self, verb: str, arguments: str) -> str:
        return f"clsearch {verb} {arguments} --address {self.head.address}:{PORT}"


class Search:
    """A search under way on a cluster."""

    def __init__(self, ground: Ground, process: subprocess.Popen[bytes]) -> None:
        self.ground, self.process = ground, process

    @property
    def said(self) -> str:
        return (self.ground.folder / "said").read_text()

    def until_at_work(self, host: Host) -> None:
        """Waits until some trials are finished and others are being trained on a host."""
        end = time.monotonic() + PATIENCE
        while not (len(self.ground.finished()) >= 2 and self.ground.at_work(host.name)):
            assert self.process.poll() is None, f"it ended first\n{self.said}"
            assert time.monotonic() < end, f"waited in vain\n{self.said}"
            time.sleep(0.05)

    def says(self, last: str) -> None:
        """Its last words; who speaks them does so when it has ended."""
        end = time.monotonic() + 30
        while not self.said.endswith(last):
            assert time.monotonic() < end, self.said
            time.sleep(0.2)

    def ends_well(self) -> None:
        assert self.process.wait(PATIENCE) == 0, self.said


@contextlib.contextmanager
def cluster(ground: Ground) -> Iterator[Cluster]:
    with hosts(3, ground.folder) as made:
        yield Cluster(ground, made)


@fault("SIGKILL of a node of the cluster", long=True)
def node(ground: Ground) -> Damage:
    with cluster(ground) as made, made.search(made.head) as search:
        search.until_at_work(made.workers[0])
        before = ground.finished()
        made.workers[0].kill()
        search.ends_well()
        damage = ground.damage(1, before)
        assert damage.retrained, "it struck a host that trained nothing"
        return damage


@fault(f"Network cut between driver and worker for {CUT:.0f} s", long=True)
def network_cut(ground: Ground) -> Damage:
    """The worker still sees the shared folder: it is not cut off from its disk as well."""
    with cluster(ground) as made, made.search(made.head) as search:
        search.until_at_work(made.workers[0])
        before = ground.finished()
        made.workers[0].cut()
        time.sleep(CUT)
        made.workers[0].mend()
        search.ends_well()
        return ground.damage(1, before)


@fault("The head of the cluster gone and back", long=True)
def head_gone(ground: Ground) -> Damage:
    """With a driver on another host: one on the head goes with it."""
    with cluster(ground) as made:
        with made.search(made.workers[0]) as search:
            search.until_at_work(made.workers[0])
            made.head.kill()
            before = ground.finished()
            assert search.process.wait(GIVES_UP) == 1, search.said
            search.says(f"clsearch resume {SHARED}/out --address {made.head.address}:{PORT}\n")
        made.start()
        made.resume()
        return ground.damage(1, before)
