"""The command line as its users meet it: real processes, their output, what they leave behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

CLSEARCH = str(Path(sys.executable).with_name("clsearch"))
ROOT = Path(__file__).parents[1]


def environment(**more: str) -> dict[str, str]:
    """This environment without anything that changes what the command does, and with its programs
    on the path."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "TUNE_"))}
    kept.pop("CLSEARCH_DATA", None)
    path = os.pathsep.join([str(Path(CLSEARCH).parent), os.environ.get("PATH", "")])
    return {**kept, "PATH": path, "PYTHONUNBUFFERED": "1", **more}


def clsearch(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `clsearch` to its end, in a process of its own."""
    return subprocess.run(
        [CLSEARCH, *map(str, arguments)],
        **{"capture_output": True, "text": True, "timeout": 280, "env": environment()} | options,
        check=False,
    )


class Driver:
    """`clsearch` at work in a process of its own; its output goes into files."""

    def __init__(self, folder: Path, *arguments: object, env: Mapping[str, str] | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / "stdout", folder / "stderr"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [CLSEARCH, *map(str, arguments)],
                stdout=out, stderr=err, env=dict(env or environment()),
            )  # fmt: skip
        self.family: set[psutil.Process] = set()

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def descendants(self) -> list[psutil.Process]:
        """Its processes now; all ever seen stay in `family`."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self.family.update(found)
        return found

    def until(
        self, what: Callable[[], object], seconds: float = 300.0, pause: float = 0.05
    ) -> None:
        """Waits until something is true of a driver that is still at work."""
        end = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, f"it ended first\n{self.stdout}\n{self.stderr}"
            assert time.monotonic() < end, f"waited in vain\n{self.stdout}\n{self.stderr}"
            self.descendants()
            time.sleep(pause)
        self.descendants()

    def wait(self, seconds: float = 240.0) -> int:
        return self.process.wait(seconds)

    def survivors(self, seconds: float = 20.0, agents: bool = True) -> list[str]:
        """Those of its processes that are still there after so many seconds, at most.

        Not `agents`: without Ray's two, which may end a minute after all others.
        """
        watched = [p for p in self.family if agents or not is_agent(p)]
        _, alive = psutil.wait_procs(watched, timeout=seconds)
        return [str(p) for p in alive if lives(p)]

    def end(self) -> None:
        """Ends what is left of it, whatever happened."""
        self.descendants()
        for process in [*self.family, self.process]:
            try:
                process.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        self.process.wait(30)


def is_agent(process: psutil.Process) -> bool:
    """Whether it is one of Ray's two agents: by its title, or by its script as long as it starts,
    which the raylet has within an argument."""
    given = arguments(process)
    return given[:1] in (["ray::DashboardAgent"], ["ray::RuntimeEnvAgent"]) or any(
        one.endswith(("dashboard/agent.py", "runtime_env/agent/main.py")) for one in given
    )


def arguments(process: psutil.Process) -> list[str]:
    """Its command line; that of a process that is over is empty."""
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def listening(processes: Iterable[psutil.Process]) -> set[tuple[str, int]]:
    """The addresses and ports at which they take connections."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((connection.laddr.ip, connection.laddr.port))
    return found


def lives(process: psutil.Process) -> bool:
    """Whether it has not ended: a zombie has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def write_config(path: Path, **sections: Any) -> Path:
    """A small search over scikit-learn's digits, with some sections replaced."""
    config = {
        "name": "small",
        "scenario": {"name": "permuted", "source": "digits", "tasks": 2},
        "model": {"name": "mlp", "hidden": [32]},
        "training": {"epochs": 3, "batch_size": 64},
        "methods": [
            {"name": "finetune", "grid": {"lr": [0.001, 0.003]}},
            {"name": "clnp", "grid": {"lr": [0.003], "l1": [1e-5, 1e-4]}},
        ],
        "resources": {"workers": 2},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config | sections), encoding="utf-8")
    return path


def journal(out: Path) -> dict[str, int]:
    """The finished trials of a run: key to when its record was written, in nanoseconds."""
    found = out / "checkpoints" / "trials"
    return {p.parent.name: p.stat().st_mtime_ns for p in found.glob("[!.]*/manifest.json")}


class Ended:
    """How a command ended that was called in this process."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def refused(ended: Ended, *words: str) -> None:
    """Exit code 2 and one message on stderr that holds these words; no traceback."""
    assert ended.code == 2, ended.err
    assert ended.out == ""
    assert ended.err.startswith("clsearch: ")
    assert ended.err.count("clsearch: ") == 1
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err
