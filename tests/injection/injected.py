"""Imported in the driver and in every worker under test: it notes which trials are begun, and
breaks what `CLSEARCH_INJECT` names (`fault,fault=argument`), in the worker that comes first.

`CLSEARCH_INJECTION` is a folder: `begun` gets a line for every trial that a worker begins (its key,
the process, its host), and a file appears for everything that was broken.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from clsearch import store, trial

FOLDER = Path(os.environ["CLSEARCH_INJECTION"])
FAULTS = dict(part.partition("=")[::2] for part in os.environ.get("CLSEARCH_INJECT", "").split(","))
MIB = 1 << 20


def first(what: str) -> bool:
    """Whether this is the first to break this, of all processes; its number goes into the file."""
    try:
        with (FOLDER / f"{what}.injected").open("x") as stream:
            stream.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def around_publishing(publish: Callable[..., None]) -> Callable[..., None]:
    """Dies when the bundle of a trial, or of a commit, is written but has not its name; another
    one, as soon as it has it: then the record is there, and nobody was told."""
    struck = {"die-around-the-record": "/trials/", "die-around-the-commit": "/commits/"}

    def published(self: Any, place: str, target: str) -> None:
        ours = any(fault in FAULTS and part in target for fault, part in struck.items())
        if ours and first("unnamed"):
            die()
        publish(self, place, target)
        if ours and first("unreported"):
            die()

    return published


def begun(members: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Notes trials as they begin, and breaks what there is to break then."""

    def begin(bench: Any, job: Any, *rest: Any) -> Iterator[Any]:
        lines = "".join(f"{key} {os.getpid()} {socket.gethostname()}\n" for key in job.keys)
        handle = os.open(FOLDER / "begun", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(handle, lines.encode())  # in one piece, whoever else writes
        os.close(handle)
        for fault in FAULTS.keys() & BREAK.keys():
            BREAK[fault]()
        return members(bench, job, *rest)

    return begin


def out_of_memory() -> None:
    """The address space of the process is bounded, once, and taken up until no more is given."""
    if first("memory"):
        before = resource.getrlimit(resource.RLIMIT_AS)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 64 * MIB, before[1]))
        try:
            held = []
            while True:
                held.append(bytearray(MIB))
        finally:
            held.clear()
            resource.setrlimit(resource.RLIMIT_AS, before)


def out_of_bounds() -> None:
    """Moves into a cgroup that bounds its memory, once, and takes more: the kernel kills it."""
    if first("cgroup"):
        Path(FAULTS["out-of-bounds"], "cgroup.procs").write_text(str(os.getpid()))
        held = bytes(range(256)) * (1024 * MIB // 256)
        raise AssertionError(f"{len(held)} bytes were given")


_LOST: list[str] = []


def gpu_lost() -> None:
    """The GPU is lost to this process, once; in it CUDA refuses all that comes after."""
    if first("gpu"):
        _LOST.append("for ever")
    if _LOST:
        raise torch.AcceleratorError("CUDA error: device lost")


def poisoned(record: Callable[..., Any]) -> Callable[..., Any]:
    """A member of a pack whose `l1` is the argument raises at its end, if it comes to that."""

    def of(bench: Any, job: Any, trained: Any) -> Any:
        poison = FAULTS.get("poison")
        ours = trained.params is not None and poison is not None
        if ours and job.hypers[trained.member]["l1"] == float(poison):
            (FOLDER / f"{job.keys[trained.member]}.injected").touch()
            raise RuntimeError("this member is poisoned")
        return record(bench, job, trained)

    return of


BREAK: dict[str, Callable[[], None]] = {
    "out-of-memory": out_of_memory,
    "out-of-bounds": out_of_bounds,
    "gpu-lost": gpu_lost,
}
trial._members = begun(trial._members)
trial._record = poisoned(trial._record)
store.Store._publish = around_publishing(store.Store._publish)  # type: ignore[method-assign]
