"""A long search with workers killed at random: what of it grows from task to task.

    python -m benchmarks.soak [--tasks N --trials N --minutes M --seed S --out DIR
                             --kill-every S --kills N]
    python -m benchmarks.soak --report DIR/samples.csv [--png FILE]

Runs `clsearch run` on scikit-learn's digits with permuted pixels: many tasks, many short trials in
packs, MLflow in its database. Every few seconds the driver, its processes and its folders are
looked at, and a line is added to `samples.csv`; now and then a worker, drawn at random, is killed
with SIGKILL. At the end: what is added to each quantity a task after a warm-up, and its curve.
`--report` prints them again from the file, and what became of the trials in the folder it lies in.
Exit code 1 if something grows, a trial was lost, or a process is left.

The methods are such as remember no more after many tasks than after one. `lwf` with stored answers,
`ewc` with anchors of every task, `joint` and networks that grow do, and so do heads of their own.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil
import yaml

from benchmarks._growth import COLUMNS, curves, draw, growths, read_samples, table
from benchmarks._machine import machine
from clsearch.delivery_process import BEGIN
from clsearch.records import DIVERGENCE

METHODS = ("finetune", "ewc")
TOO_FEW = "too few tasks have ended to tell growth"
MIB = 1 << 20
LOOK_EVERY = 3.0
"""Seconds between two looks."""
PATIENCE = 30.0
"""Seconds the search's processes have to end after it."""


def config_of(tasks: int, trials: int) -> dict[str, Any]:
    """A search of at least so many trials over so many tasks, each as short as can be."""
    each = -(-trials // (tasks * len(METHODS)))
    return {
        "name": "soak",
        "scenario": {"name": "permuted", "source": "digits", "tasks": tasks},
        "model": {"name": "mlp", "hidden": [16]},
        "training": {"epochs": 1, "batch_size": 256},
        "selection": {"thresholds": 5},
        "methods": [{"name": name} for name in METHODS],
        "search": {"grid": {"lr": {"logspace": [1e-3, 1e-1, each]}}},
        "resources": {"workers": 2, "pack": 32},
    }


@dataclass(frozen=True)
class Kills:
    """When workers are killed: at moments drawn with `seed`, `every` so many seconds in the mean,
    `most` of them."""

    seed: int
    every: float
    most: int


class Watched:
    """The search at work: its processes, its folders, and the means to kill a worker."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, kills: Kills):
        self.process, self.out, self.every, self.most = process, out, kills.every, kills.most
        self.driver = psutil.Process(process.pid)
        self.random, self.began, self.kills = random.Random(kills.seed), time.monotonic(), 0
        self.due: float | None = None
        self.family: set[psutil.Process] = set()

    def look(self) -> dict[str, float]:
        """One sample. Raises `psutil.NoSuchProcess` when the driver has ended."""
        with self.driver.oneshot():
            own = {
                "driver_threads": self.driver.num_threads(),
                "driver_descriptors": self.driver.num_fds(),
                "driver_memory": _memory(self.driver),
                "driver_cpu": sum(self.driver.cpu_times()[:2]),
            }
        children = self.driver.children(recursive=True)
        self.family.update(children)
        sums: defaultdict[str, float] = defaultdict(float, processes=1)
        workers = []
        sums["threads"], sums["descriptors"] = own["driver_threads"], own["driver_descriptors"]
        for child in children:
            try:
                with child.oneshot():
                    memory = _memory(child)
                    sums["threads"] += child.num_threads()
                    sums["descriptors"] += child.num_fds()
                    sums["processes"] += 1
                    if _is_worker(child):
                        workers.append(memory)
                    elif _delivers(child):
                        sums["delivery_memory"] += memory
                    elif not _is_spare(child):
                        sums["ray_memory"] += memory
                    if child.name() == "raylet":
                        sums["store"] += _shared(child)
            except (psutil.Error, OSError):
                continue  # it has just ended
        done = len(list(self.out.glob("checkpoints/commits/[!.]*"))) / len(METHODS)
        return {
            **dict.fromkeys(COLUMNS, 0.0),
            **{"seconds": time.monotonic() - self.began, "tasks": done, "kills": self.kills},
            **{"trials": _count(self.out / "checkpoints" / "trials")},
            **{"outbox": sum(1 for _ in self.out.glob("outbox/*.json"))},
            **{"folders": sum(map(_size, Path("/tmp").glob(f"clsearch-ray-{self.driver.pid}-*")))},
            "workers_memory": sum(workers) / max(1, len(workers)),
            **own,
            **sums,
        }

    def perhaps_kill(self) -> None:
        """Kills a worker drawn at random when its moment, drawn too, has come."""
        workers = [p for p in self.driver.children(recursive=True) if _is_worker(p)]
        now = time.monotonic()
        if self.due is None and workers:
            self.due = now + self.random.expovariate(1 / self.every)
        if self.due is not None and now > self.due and workers and self.kills < self.most:
            try:
                self.random.choice(workers).kill()
            except psutil.NoSuchProcess:
                return
            self.kills += 1
            self.due = now + self.random.expovariate(1 / self.every)

    def survivors(self) -> list[str]:
        """Processes that are still there after the search."""
        _, alive = psutil.wait_procs(list(self.family), timeout=PATIENCE)
        return [f"{p.pid} {p.name()}" for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def _is_worker(process: psutil.Process) -> bool:
    """Whether it is a process that trains."""
    return _called(process, "ray::ImplicitFunc")


def _is_spare(process: psutil.Process) -> bool:
    """Whether it is one that Ray has ready, and that comes and goes."""
    return _called(process, "ray::IDLE")


def _delivers(process: psutil.Process) -> bool:
    """Whether it is the one with MLflow's client."""
    return BEGIN in _command(process)


def _called(process: psutil.Process, name: str) -> bool:
    return "".join(_command(process)[:1]).startswith(name)


def _command(process: psutil.Process) -> list[str]:
    """Its command line; empty where it has ended."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _memory(process: psutil.Process) -> float:
    """MiB of its own: not the pages of libraries, which others share as long as they live."""
    return _status(process, "RssAnon")


def _shared(process: psutil.Process) -> float:
    """MiB of shared memory that a process has touched: Ray's store, in the raylet."""
    return _status(process, "RssShmem")


def _status(process: psutil.Process, name: str) -> float:
    """A size that Linux tells of a process, in MiB. Raises `psutil.NoSuchProcess`."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise psutil.NoSuchProcess(process.pid)


def _count(folder: Path) -> int:
    """Finished bundles in a folder of the journal."""
    if not folder.is_dir():
        return 0
    return sum(not entry.name.startswith(".") for entry in os.scandir(folder))


def _size(folder: Path) -> float:
    """MiB of the files in a folder that changes meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total / MIB


def soak(config: dict[str, Any], out: Path, minutes: float, kills: Kills) -> list[str]:
    """Runs the search in `out / "search"` and writes the samples; returns what is wrong."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "clsearch", "run", str(out / "config.yaml")]
    command += ["--out", str(out / "search")]
    tasks, told = config["scenario"]["tasks"], 0
    with (
        (out / "stdout").open("wb") as stdout,
        (out / "stderr").open("wb") as stderr,
        (out / "samples.csv").open("w", encoding="utf-8", newline="") as stream,
        subprocess.Popen(command, stdout=stdout, stderr=stderr) as process,
    ):
        watched = Watched(process, out / "search", kills)
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        stopped = False
        try:
            while process.poll() is None:
                seen = watched.look()
                writer.writerow({k: f"{v:.3f}".rstrip("0").rstrip(".") for k, v in seen.items()})
                stream.flush()
                if int(seen["tasks"]) > told:
                    told = int(seen["tasks"])
                    print(_line(told, tasks, seen), flush=True)
                if seen["seconds"] > 60 * minutes and not stopped:
                    stopped = True
                    process.send_signal(signal.SIGTERM)
                end = time.monotonic() + LOOK_EVERY
                while time.monotonic() < end and process.poll() is None:
                    if told < tasks and not stopped:
                        watched.perhaps_kill()
                    time.sleep(0.2)
        except psutil.NoSuchProcess:
            process.wait()
        except BaseException:
            process.terminate()
            raise
    wrong = [f"it was stopped after {minutes:g} minutes"] if stopped else []
    wrong += [f"the search ended with {process.returncode}"] if process.returncode else []
    wrong += [f"left behind: {one}" for one in watched.survivors()]
    wrong += _lost(out / "search", config)
    print(f"{watched.kills} workers killed at moments drawn with seed {kills.seed}")
    return wrong


def _line(task: int, tasks: int, seen: dict[str, float]) -> str:
    return (
        f"task {task}/{tasks} {seen['seconds']:.0f} s: {seen['trials']:.0f} trials, "
        f"{seen['kills']:.0f} kills, {seen['processes']:.0f} processes, "
        f"{seen['threads']:.0f} threads, {seen['descriptors']:.0f} descriptors, "
        f"driver {seen['driver_memory']:.1f} MiB, {seen['outbox']:.0f} entries wait"
    )


def _lost(out: Path, config: dict[str, Any]) -> list[str]:
    """Trials that are missing, and those that neither completed nor diverged. Some diverge after
    very many tasks, of their own hyperparameters, whatever happens to workers."""
    import pyarrow.parquet as pq

    axis = config["search"]["grid"]["lr"]["logspace"][2]
    asked = config["scenario"]["tasks"] * len(METHODS) * axis
    if not (out / "trials.parquet").exists():
        return ["no trial is recorded"]
    read = pq.read_table(out / "trials.parquet", columns=["trial_key", "status", "reason"])
    reasons = [(reason or "").partition(":")[0] for reason in read["reason"].to_pylist()]
    both = zip(read["status"].to_pylist(), reasons, strict=True)
    ends = Counter(" ".join(end).strip() for end in both)
    print(f"{read.num_rows} trials of {asked}: {dict(ends)}")
    fine = ("COMPLETE", f"FAILED {DIVERGENCE}")
    wrong = [f"{n} trials are {end}" for end, n in ends.items() if end not in fine]
    if len(set(read["trial_key"].to_pylist())) != asked:
        wrong.append(f"{asked} trials were asked for")
    return wrong


def report(csv_file: Path, png: Path | None) -> list[str]:
    """Prints growth and curves of the samples in a file; returns what grows."""
    samples = read_samples(csv_file)
    found = growths(samples)
    if not found[0].tasks:
        return [TOO_FEW]
    last = samples[-1]
    print(
        f"{last['trials']:.0f} trials, {last['tasks']:.0f} tasks, {last['kills']:.0f} workers "
        f"killed, {last['seconds'] / 60:.0f} minutes, {len(samples)} looks; "
        f"fitted from task {found[0].warm + 1} to task {found[0].tasks[-1]}"
    )
    print(*table(found), "", *curves(found), sep="\n")
    if png is not None:
        draw(samples, found, png)
    if found[0].slope is None:
        return [TOO_FEW]
    return [f"{g.quantity.name}: {g.slope:+.3f} a task" for g in found if g.grows]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=55)
    parser.add_argument("--trials", type=int, default=20_000, help="in all, at least")
    parser.add_argument("--minutes", type=float, default=90.0, help="after which it is stopped")
    parser.add_argument("--kill-every", type=float, default=60.0, help="seconds, in the mean")
    parser.add_argument("--kills", type=int, default=1_000_000, help="workers killed, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--out", type=Path, help="output folder; default a temporary one")
    parser.add_argument("--report", type=Path, help="a file of samples, to be reported on again")
    parser.add_argument("--png", type=Path, help="file for the curves as a picture")
    given = parser.parse_args(arguments)
    if given.report:
        _judge(_lost_beside(given.report) + report(given.report, given.png))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its search ends with it
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        out = (given.out or Path(temporary)).absolute()
        config = config_of(given.tasks, given.trials)
        wrong = soak(config, out, given.minutes, Kills(given.seed, given.kill_every, given.kills))
        wrong += report(out / "samples.csv", given.png)
        (out / "wrong.json").write_text(json.dumps(wrong, indent=1))
    _judge(wrong)


def _lost_beside(csv_file: Path) -> list[str]:
    """The same of the search whose samples a file holds, where it is there still."""
    config, search = csv_file.parent / "config.yaml", csv_file.parent / "search"
    return _lost(search, yaml.safe_load(config.read_text())) if search.is_dir() else []


def _judge(wrong: Sequence[str]) -> NoReturn:
    for one in wrong:
        print(f"WRONG: {one}")
    print("nothing grows, nothing is lost" if not wrong else f"{len(wrong)} findings")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
