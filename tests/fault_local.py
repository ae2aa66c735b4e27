"""Faults of the machine that a search runs on: its processes, memory, disks and clock."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from command import Driver, arguments
from fault_matrix import PATIENCE, Damage, Finished, Ground, fault, faults_config, finished

from clsearch.files import LOCK, cores
from clsearch.store import Store

MIB, HOUR = 1 << 20, 3600
SELECTIONS, CHOSEN = "selections.json", ("task", "trial_key", "threshold", "commit")


def idle_workers(driver: Driver) -> list[psutil.Process]:
    """The workers of a driver that are between two trials."""
    found = []
    for process in driver.descendants():
        title = "".join(arguments(process)[:1])
        if title.startswith("ray::ImplicitFunc") and not title.endswith(".train"):
            found.append(process)
    return found


def ended_well(driver: Driver) -> None:
    """The search went on to its end as if nothing had happened, and left no process behind."""
    assert driver.wait(PATIENCE) == 0, driver.stderr
    assert driver.stderr == ""
    assert driver.survivors(60) == []


def all_complete(out: Path) -> None:
    """A worker that is taken down mid-trial must not journal what its last moments raise."""
    assert set(pq.read_table(out / "trials.parquet")["status"].to_pylist()) == {"COMPLETE"}


@fault("SIGKILL of a worker in the middle of a trial")
def worker_in_a_trial(ground: Ground) -> Damage:
    """One that trains; then one between two trials, if one is seen: that moment is short."""
    driver, killed, victims = ground.start(), 0, list[int]()
    driver.until(
        lambda: ground.finished() and (victims.extend(ground.at_work()) or victims), pause=0.005
    )
    before = ground.finished()
    os.kill(victims[0], signal.SIGKILL)
    killed += 1
    while driver.process.poll() is None:
        found = idle_workers(driver)
        if found:
            with contextlib.suppress(psutil.NoSuchProcess):
                found[0].kill()
                killed += 1
            break
        time.sleep(0.02)
    ended_well(driver)
    all_complete(ground.out)
    damage = ground.damage(killed, before)
    assert damage.retrained >= 1, "the trial had ended before its worker was killed"
    return damage


@fault(
    "SIGKILL of a worker between checkpoint and record, and between record and report", long=True
)
def worker_around_the_record(ground: Ground) -> Damage:
    driver = ground.start(env=ground.environment("die-around-the-record"))
    driver.until(lambda: len(ground.injected()) == 2)
    before = ground.finished()
    ended_well(driver)
    all_complete(ground.out)
    damage = ground.damage(2, before)
    assert damage.retrained >= 1, "the trial without a record was not trained again"
    return damage


@fault("SIGKILL of a worker that consolidates, before and after its checkpoint is there", long=True)
def worker_around_the_commit(ground: Ground) -> Damage:
    """Of the one chain's first task: the next to be given the job dies too, and it has another
    round."""
    driver = ground.start(env=ground.environment("die-around-the-commit"))
    driver.until(lambda: len(ground.injected()) == 2)
    before = ground.finished()
    ended_well(driver)
    all_complete(ground.out)
    assert len(before) >= ground.trials // 2, "the task's trials had not ended"
    return ground.damage(2, before)


def go_on(search: Ground) -> Driver:
    """Resumes a search, or begins it where it had not come to its config."""
    resumed = (search.out / "config.yaml").exists()
    return search.start(*(["resume", search.out] if resumed else []))


@fault("SIGKILL of the driver at random moments", short=2, full=20)
def driver_at_random_moments(ground: Ground) -> Damage:
    """Search after search: killed, resumed and killed until it is done."""
    seed = random.randrange(1 << 30)
    print(f"moments of the driver's deaths from seed {seed}", file=sys.stderr, flush=True)
    moments, killed, found = random.Random(seed), 0, list[Damage]()
    drivers: list[Driver] = []
    while killed < ground.times:
        search = ground.another(f"search-{len(found)}")
        before: dict[str, Finished] = {}
        done = strikes = 0
        while killed < ground.times:
            driver = go_on(search)
            end = time.monotonic() + moments.uniform(0, ground.seconds)
            while driver.process.poll() is None and time.monotonic() < end:
                driver.descendants()
                time.sleep(0.05)
            driver.descendants()
            if driver.process.poll() is not None:
                assert driver.process.returncode == 0, driver.stderr
                break
            driver.process.kill()
            driver.wait()
            left = driver.survivors(60, agents=False)
            assert left == [], left
            killed, strikes = killed + 1, strikes + 1
            after = search.finished()
            assert {key: after.get(key) for key in before} == before
            before, done = after, done + len(after)
        else:
            ended_well(go_on(search))
        all_complete(search.out)
        assert not list((search.out / "checkpoints").rglob(".new-*"))
        for driver in search.drivers:
            assert not list(Path("/tmp").glob(f"clsearch-ray-{driver.process.pid}-*"))
        one = search.damage(strikes, before)
        found.append(Damage(strikes, done, one.lost, one.retrained, one.equal))
        drivers += search.drivers
    assert [driver.survivors(90) for driver in drivers] == [[]] * len(drivers)
    return Damage.total(found)


@fault("death of Ray's own processes", long=True)
def death_of_ray(ground: Ground) -> Damage:
    """Ray then ends this process from within, without a word to Python."""
    driver = ground.start()
    driver.until(ground.finished)
    (raylet,) = [p for p in driver.descendants() if p.name() == "raylet"]
    raylet.kill()
    assert driver.wait(PATIENCE) == 1
    said = "clsearch: the run was killed, or Ray's own processes died. Go on with: "
    assert driver.stderr.splitlines()[-1] == f"{said}clsearch resume {ground.out}"
    before = ground.finished()
    ground.resume()
    all_complete(ground.out)
    return ground.damage(1, before)


def interrupted(ground: Ground, driver: Driver, number: signal.Signals) -> dict[str, Finished]:
    """Sends a signal to a driver at work, which has to end quickly and cleanly; what is finished
    then. A terminal sends SIGINT to all processes of the command that have no group of their own,
    and `timeout` SIGTERM, after one to the driver alone."""
    driver.descendants()
    began, own = time.monotonic(), os.getpgid(driver.process.pid)
    if number == signal.SIGTERM:
        driver.process.send_signal(number)
    for process in driver.family if number != signal.SIGHUP else ():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == own:
                process.send_signal(number)
    driver.process.send_signal(number)
    driver.process.send_signal(signal.SIGCONT)
    assert driver.wait(PATIENCE) == 130
    crowd = max(1.0, os.getloadavg()[0] / cores())  # who else wants this machine's processors
    assert time.monotonic() - began < 20 * crowd
    assert driver.survivors(60) == []
    message = driver.stderr.strip().splitlines()
    assert message == [f"clsearch: interrupted. Go on with: clsearch resume {ground.out}"]
    command = shlex.split(message[0].partition("Go on with: ")[2])
    assert command == ["clsearch", "resume", str(ground.out)]
    before = ground.finished()
    assert len(before) < ground.trials
    return before


@fault("SIGINT, SIGTERM and SIGHUP, one after the other", long=True)
def signals(ground: Ground) -> Damage:
    numbers, done = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), 0
    before: dict[str, Finished] = {}
    for number in numbers:
        begun = ground.begun().total()
        driver = ground.start(*(["resume", ground.out] if before else []))
        driver.until(lambda: ground.begun().total() > begun and ground.finished())  # noqa: B023
        driver.process.send_signal(signal.SIGSTOP)  # so that the search does not end meanwhile
        after = interrupted(ground, driver, number)
        assert {key: after.get(key) for key in before} == before
        before, done = after, done + len(after)
    status = ground.call("status", ground.out).stdout
    assert f"Not finished. Go on with: clsearch resume {ground.out}" in status
    said = ground.resume()
    assert f"{ground.trials - len(before)} trials trained" in said
    all_complete(ground.out)
    damage = ground.damage(len(numbers), before)
    return Damage(len(numbers), done, damage.lost, damage.retrained, damage.equal)


@fault("a second driver on the output folder", long=True)
def a_second_driver(ground: Ground) -> Damage:
    """It is refused, by `run` and by `resume`, with who holds the folder; also by what a driver
    left behind that was killed is nobody kept out."""
    ground.out.mkdir()
    (ground.out / LOCK).write_text("process 1 on another-host since 2001-01-01 00:00:00 UTC\n")
    driver = ground.start()
    driver.until(ground.finished)
    driver.process.send_signal(signal.SIGSTOP)
    before = ground.finished()
    holder = f"process {driver.process.pid} on {os.uname().nodename} since"
    for verb in (("run", ground.config, "--out", ground.out), ("resume", ground.out)):
        second = ground.call(*verb)
        assert second.returncode == 2, second.stderr
        assert "no other run is writing" in second.stderr
        assert f"It is held by {holder}" in second.stderr
    assert f"A run is at work on it: {holder}" in ground.call("status", ground.out).stdout
    driver.process.send_signal(signal.SIGCONT)
    ended_well(driver)
    return ground.damage(2, before)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of its own at a folder; skips where there is no permission to mount one."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root, and the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fills the disk of a folder to the last byte; the file that does it."""
    filler = folder / ".filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while stream.write(b"0" * 4096):
            pass
    return filler


def ended_full(ground: Ground, driver: Driver) -> None:
    """The search ended for a full disk, and says in two lines how to go on."""
    assert driver.wait(PATIENCE) == 1, driver.stdout
    assert driver.stderr.startswith("clsearch: ")
    assert "No space left on device" in driver.stderr
    assert driver.stderr.endswith(f"Go on with: clsearch resume {ground.out}\n")
    assert len(driver.stderr.splitlines()) == 2


@fault("disk full on the driver", long=True)
def disk_full_on_the_driver(ground: Ground) -> Damage:
    """All that the search leaves is on a disk that is too small for it."""
    disk = ground.folder / "disk"
    with small_disk(disk, "1500k"):
        ground.out = disk / "out"
        ended_full(ground, ground.start())
        before = ground.finished()
        grow = ["mount", "-o", "remount,size=64m", str(disk)]
        subprocess.run(grow, check=True, capture_output=True)
        ground.resume()
        all_complete(ground.out)
        assert not (ground.out / "outbox").exists()
        return ground.damage(1, before)


@fault("disk full on a worker", long=True)
def disk_full_on_a_worker(ground: Ground) -> Damage:
    """The disk of the journal, which workers write to, is full as soon as a trial is in it."""
    disk = ground.folder / "disk"
    with small_disk(disk, "64m"):
        store = Store((disk / "store").as_uri())
        driver = ground.start("run", ground.config, "--out", ground.out, "--storage", store.root)
        driver.until(lambda: finished(store), pause=0.005)
        filler = fill(disk)
        ended_full(ground, driver)
        assert "cannot write trials/" in driver.stderr
        before = finished(store)
        filler.unlink()
        ground.resume()
        all_complete(ground.out)
        return ground.damage(1, before, after=finished(store))


def fake_clock() -> str:
    """The library that gives processes another clock; skips where it cannot.

    Both clocks go back, and one that counts from the start of the machine must not go below 0.
    """
    if time.monotonic() < 1.2 * HOUR:
        pytest.skip("the machine has not been up for an hour and a bit")
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.skip("another clock takes libfaketime: apt-get install libfaketime")
    return str(found[0])


@fault("clock moved back an hour", long=True)
def clock_back(ground: Ground) -> Damage:
    """The search goes on under a clock that is an hour before that of the journal's files."""
    clock = {"LD_PRELOAD": fake_clock(), "FAKETIME": f"-{HOUR}"}
    driver = ground.start()
    driver.until(ground.finished)
    before = interrupted(ground, driver, signal.SIGTERM)
    ground.resume(env=ground.environment(**clock))
    began = pq.read_table(ground.out / "trials.parquet").column("started").to_pylist()
    assert sum(start > time.time() - HOUR * 0.9 for start in began) == len(before)
    return ground.damage(1, before)


@fault("out of memory in a trial", long=True)
def out_of_memory(ground: Ground) -> Damage:
    """The trial is lost to the machine, and the search goes on; resumed, it is trained again."""
    driver = ground.start(env=ground.environment("out-of-memory"))
    driver.until(ground.injected)
    before = ground.finished()
    assert driver.wait(PATIENCE) == 0, driver.stderr
    rows = pq.read_table(ground.out / "trials.parquet").to_pylist()
    (lost,) = [row for row in rows if row["status"] == "FAILED"]
    assert "MemoryError" in lost["reason"]
    said = ground.resume()
    assert f"Trial {lost['trial_key']} was lost (MemoryError" in " ".join(said.split())
    return ground.damage(1, before)


@contextlib.contextmanager
def bounded_memory(name: str) -> Iterator[Path]:
    """A cgroup that bounds memory; skips where none can be made."""
    root = Path("/sys/fs/cgroup")
    old = (root / "memory").is_dir()
    group = root / ("memory" if old else "") / name
    try:
        group.mkdir()
        limit = "memory.limit_in_bytes" if old else "memory.max"
        (group / limit).write_text(str(32 * MIB))
    except OSError as error:
        pytest.skip(f"bounding memory takes root and cgroups: {error}")
    try:
        yield group
    finally:
        end = time.monotonic() + 20
        while (group / "cgroup.procs").read_text().strip() and time.monotonic() < end:
            time.sleep(0.1)
        group.rmdir()


@fault("a worker killed by the kernel for its memory", long=True)
def killed_for_memory(ground: Ground) -> Damage:
    with bounded_memory(f"clsearch-test-{os.getpid()}") as group:
        driver = ground.start(env=ground.environment(f"out-of-bounds={group}"))
        driver.until(ground.injected)
        before = ground.finished()
        ended_well(driver)
        all_complete(ground.out)
    damage = ground.damage(1, before)
    assert damage.retrained >= 1
    return damage


@fault("a GPU lost under a worker (simulated)", long=True)
def gpu_lost(ground: Ground) -> Damage:
    """Every trial in that process would fail from there on: it is left, not blamed on trials."""
    driver = ground.start(env=ground.environment("gpu-lost"))
    driver.until(ground.injected)
    before = ground.finished()
    ended_well(driver)
    all_complete(ground.out)
    assert ground.begun_in(ground.injected()["gpu"]) == 1
    damage = ground.damage(1, before)
    assert damage.retrained >= 1
    return damage


@fault("a poisoned member in each pack (NaN, and an exception)", long=True)
def poisoned_members(ground: Ground) -> Damage:
    """A pack of nine at each task: its four sound members are trials of the undisturbed run."""
    grid = {"lr": [0.001, 0.003, 1e30], "l1": [1e-5, 1e-4, 0.5]}
    config = faults_config(
        ground.folder / "poisoned",
        methods=[{"name": "clnp", "grid": grid}],
        resources={"workers": 1, "pack": 9},
    )
    poison = ground.environment("poison=0.5")
    ended_well(ground.start("run", config, "--out", ground.out, env=poison))
    rows = pq.read_table(ground.out / "trials.parquet").to_pylist()
    diverged = [row for row in rows if row["hp_lr"] == 1e30]
    raised = [row for row in rows if row["trial_key"] in ground.injected()]
    assert (len(diverged), len(raised)) == (6, 4)
    assert all("not finite" in row["reason"] and row["pack_size"] == 9 for row in diverged)
    assert all("this member is poisoned" in row["reason"] for row in raised)
    after, sound = ground.finished(), ground.reference.trials
    lost = [k for k in sound if k not in after or after[k].result != sound[k].result]
    ours, theirs = (
        [{name: s[name] for name in CHOSEN} for s in json.loads((out / SELECTIONS).read_bytes())]
        for out in (ground.out, ground.undisturbed)
    )
    return Damage(len(diverged) + len(raised), 0, len(lost), ground.retrained(), ours == theirs)
