"""The fault matrix: a registry of faults, and the ground on which each is injected for real.

A fault is a function that is given a `Ground`, breaks a real search there and returns its `Damage`,
or raises `AssertionError`. `python -m tests.faults` runs them all and prints the table,
tests/test_faults.py runs them as tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from command import Driver, clsearch, environment, is_agent, lives, write_config
from pyarrow import fs

from clsearch.store import MANIFEST, Store

INJECTION = Path(__file__).with_name("injection")
PATIENCE = 1800.0
"""Seconds a search may take on a machine with much else to do."""


@dataclass(frozen=True)
class Damage:
    """What a fault did, counted once the search has recovered.

    `before` is how many trials were finished when it came; `lost` of them are gone or give another
    result, and `retrained` trials were begun more than once. `equal`: the selections are those of
    the undisturbed run.
    """

    injected: int
    before: int
    lost: int
    retrained: int
    equal: bool

    @property
    def none(self) -> bool:
        """Whether the fault struck, and neither a trial was lost nor a selection changed."""
        return self.injected > 0 and self.lost == 0 and self.equal

    @classmethod
    def total(cls, found: Sequence[Damage]) -> Damage:
        """The damage of several searches together."""
        sums = (sum(getattr(one, name) for one in found) for name in COUNTS)
        return cls(*sums, equal=all(one.equal for one in found))


COUNTS = ("injected", "before", "lost", "retrained")


@dataclass(frozen=True)
class Fault:
    """A fault of the matrix. It is injected `full` times there and `short` times by its test, which
    is one of the slow ones, or of the `long` ones."""

    name: str
    inject: Callable[[Ground], Damage]
    short: int
    full: int
    long: bool


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, short: int = 1, full: int = 1, long: bool = False
) -> Callable[[Callable[[Ground], Damage]], Callable[[Ground], Damage]]:
    """Puts a fault into the matrix. Its function finds in `Ground.times` how often to inject it."""

    def register(inject: Callable[[Ground], Damage]) -> Callable[[Ground], Damage]:
        assert name not in FAULTS, f"two faults are called {name!r}"
        FAULTS[name] = Fault(name, inject, short, full, long)
        return inject

    return register


@dataclass(frozen=True)
class Finished:
    """A finished trial: the content of its manifest, and its result without times and host."""

    manifest: bytes
    result: str


def finished(store: Store) -> dict[str, Finished]:
    """The finished trials of a journal, by key."""
    selector = fs.FileSelector(f"{store.base}/trials", recursive=True, allow_not_found=True)
    found = {}
    for info in store.fs.get_file_info(selector):
        if info.base_name == MANIFEST and "/.new-" not in info.path:
            folder = info.path.removesuffix(f"/{MANIFEST}")
            manifest, record = (_content(store, f"{folder}/{n}") for n in (MANIFEST, "record.json"))
            files = json.loads(manifest)["files"]
            del files["record.json"]
            data = json.loads(record)
            if data["lost"]:  # to the machine: it has to be trained again
                continue
            for name in ("duration", "started", "host", "pack_size"):
                del data[name]
            result = json.dumps([data, files], sort_keys=True)
            found[folder.rpartition("/")[2]] = Finished(manifest, result)
    return found


def _content(store: Store, path: str) -> bytes:
    with store.fs.open_input_stream(path) as stream:
        data: bytes = stream.readall()
        return data


class Ground:
    """Where a fault is injected: a config, the folder of its undisturbed run, and a temporary
    folder, in which `out` is the folder of the search to be broken."""

    def __init__(self, reference: Reference, folder: Path, times: int = 1) -> None:
        self.reference, self.folder, self.times = reference, folder, times
        self.out = folder / "out"
        self.drivers: list[Driver] = []
        self._others: list[Ground] = []
        (folder / "injection").mkdir(parents=True)

    @property
    def config(self) -> Path:
        return self.reference.config

    @property
    def undisturbed(self) -> Path:
        return self.reference.out

    @property
    def trials(self) -> int:
        """How many trials the search has."""
        return len(self.reference.trials)

    @property
    def seconds(self) -> float:
        """How long the undisturbed search took."""
        return self.reference.seconds

    def another(self, name: str) -> Ground:
        """A ground for one more search of the same fault."""
        self._others.append(Ground(self.reference, self.folder / name, self.times))
        return self._others[-1]

    def environment(self, inject: str = "", **more: str) -> dict[str, str]:
        """The environment of a process under test (the driver's; on a cluster, that of its nodes).

        `inject` names faults of tests/injection/injected.py, with commas between them, `=` and an
        argument after one that has it. Every trial that a worker begins is noted.
        """
        variables = environment(**more)
        paths = [str(INJECTION), *filter(None, [variables.get("PYTHONPATH")])]
        return {
            **variables,
            "PYTHONPATH": os.pathsep.join(paths),
            "CLSEARCH_INJECTION": str(self.folder / "injection"),
            "CLSEARCH_INJECT": inject,
        }

    def start(self, *arguments: object, env: Mapping[str, str] | None = None) -> Driver:
        """`clsearch run CONFIG --out OUT`, or with other arguments, in a process of its own."""
        given = arguments or ("run", self.config, "--out", self.out)
        said = self.folder / f"said-{len(self.drivers)}"
        driver = Driver(said, *given, env=env or self.environment())
        self.drivers.append(driver)
        return driver

    def call(
        self, *arguments: object, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`clsearch` with these arguments, to its end."""
        return clsearch(*arguments, env=env or self.environment(), timeout=PATIENCE)

    def resume(self, *options: object, env: Mapping[str, str] | None = None) -> str:
        """Resumes the search to its end, which is a good one without complaints; what it said."""
        done = self.call("resume", self.out, *options, env=env)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    def copy(self) -> None:
        """Makes `out` a copy of the undisturbed run: a search that is done."""
        shutil.copytree(self.undisturbed, self.out)
        lines = (f"{key} 0 -\n" for key in self.finished())
        (self.folder / "injection" / "begun").write_text("".join(lines))

    def store(self) -> Store:
        """The journal in the output folder."""
        return Store(str((self.out / "checkpoints").absolute()))

    def finished(self) -> dict[str, Finished]:
        """The finished trials of the search now."""
        return finished(self.store())

    def begun(self) -> Counter[str]:
        """How often each trial was begun so far, by key."""
        return Counter(key for key, *_ in self._begun())

    def at_work(self, host: str = "") -> list[int]:
        """The processes that train a trial which is not finished, those that began last first: all,
        or those of a host. A trial is where it was begun last."""
        done = self.finished()
        latest: dict[str, tuple[str, str]] = {}
        for key, pid, at in reversed(self._begun()):
            latest.setdefault(key, (pid, at))
        left = [place for key, place in latest.items() if key not in done]
        return [int(pid) for pid, at in left if host in ("", at)]

    def begun_in(self, process: str) -> int:
        """How many trials a process has begun."""
        return [pid for _, pid, _ in self._begun()].count(process)

    def _begun(self) -> list[list[str]]:
        file = self.folder / "injection" / "begun"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.split() for line in lines]

    def injected(self) -> dict[str, str]:
        """What of tests/injection has struck, and in which process."""
        files = (self.folder / "injection").glob("*.injected")
        return {file.stem: file.read_text() for file in files}

    def damage(
        self,
        injected: int,
        before: Mapping[str, Finished],
        broken: Collection[str] = (),
        after: Mapping[str, Finished] | None = None,
    ) -> Damage:
        """What is left of a search that has recovered.

        `before` are the trials that were finished when the fault came, `broken` the keys of those
        whose files it damaged: they alone may be trained again. `after` is the journal now, where
        it is not in the output folder. Raises `AssertionError` for a search that is not complete.
        """
        after, sound = self.finished() if after is None else after, self.reference.trials
        missing = sorted(sound.keys() - after.keys())
        assert not missing, f"these trials are not in the journal: {missing}"
        own = {key: value for key, value in before.items() if key not in broken}
        again = [key for key in own if key in after and after[key].manifest != own[key].manifest]
        assert not again, f"finished trials were trained again: {again}"
        lost = [
            key
            for key, value in before.items()
            if key not in after or after[key].result != sound.get(key, value).result
        ]
        files = ("selections.json", "accuracy_matrix.json")
        equal = all(
            (self.out / name).read_bytes() == (self.undisturbed / name).read_bytes()
            for name in files
        )
        return Damage(injected, len(before), len(lost), self.retrained(), equal)

    def retrained(self) -> int:
        """How many times a trial was begun that had been begun before."""
        return sum(count - 1 for count in self.begun().values())

    def left(self) -> list[str]:
        """Processes of its searches that are still there, after a minute at most. Ray's two agents
        may be longer."""
        folders = {str(one.folder / "injection") for one in (self, *self._others)}
        found = [process for process in psutil.process_iter() if _notes(process) in folders]
        _, alive = psutil.wait_procs([p for p in found if not is_agent(p)], timeout=60)
        return [str(p) for p in alive if lives(p)]

    def end(self) -> None:
        """Ends what is left of all drivers, whatever happened."""
        for driver in self.drivers:
            driver.end()
        for other in self._others:
            other.end()


def _notes(process: psutil.Process) -> str:
    """The folder that a process notes its trials in, where it is told one."""
    try:
        return str(process.environ().get("CLSEARCH_INJECTION", ""))
    except psutil.Error:
        return ""


@dataclass(frozen=True)
class Reference:
    """A search that nothing happened to: its config, its folder, its finished trials, and the
    seconds it took."""

    config: Path
    out: Path
    trials: Mapping[str, Finished]
    seconds: float

    @classmethod
    def run(cls, folder: Path) -> Reference:
        """Runs it in a folder, or takes what an earlier run left there."""
        config, out, took = faults_config(folder), folder / "undisturbed", folder / "seconds"
        if not took.exists():
            began = time.monotonic()
            done = clsearch("run", config, "--out", out, timeout=PATIENCE)
            assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
            took.write_text(str(time.monotonic() - began))
        trials = finished(Store(str(out / "checkpoints")))
        return cls(config, out, trials, float(took.read_text()))


def faults_config(folder: Path, **sections: Any) -> Path:
    """Two tasks of four trials, one trial a pack: something is always at work."""
    given: dict[str, Any] = {
        "name": "faults",
        "training": {"epochs": 5, "batch_size": 32},
        "methods": [{"name": "clnp", "grid": {"lr": [0.001, 0.003], "l1": [1e-5, 1e-4]}}],
        "resources": {"workers": 2, "pack": 1},
    }
    return write_config(folder / "faults.yaml", **(given | sections))


@contextmanager
def ground(reference: Reference, folder: Path, times: int) -> Iterator[Ground]:
    """The ground of one fault. Raises `AssertionError` where a process of its searches does not end
    by itself, and ends what is left of the drivers, whatever happened."""
    made = Ground(reference, folder, times)
    try:
        yield made
        assert made.left() == []
    finally:
        made.end()
