"""Real faults on real searches: whatever is killed, cut off or broken, the selections stay."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from command import Driver, clsearch, environment, journal, write_config

pytestmark = pytest.mark.slow

TRIALS = 16


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, two chains, four trials each, one trial a pack: something is always at work."""
    return write_config(
        tmp_path_factory.mktemp("config") / "faults.yaml",
        name="faults",
        training={"epochs": 25, "batch_size": 32},
        methods=[
            {"name": "finetune", "grid": {"lr": [0.001, 0.002, 0.003, 0.004]}},
            {"name": "clnp", "grid": {"lr": [0.001, 0.003], "l1": [1e-5, 1e-4]}},
        ],
        resources={"workers": 2, "pack": 1},
    )


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = clsearch("run", config, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(journal(out)) == TRIALS
    return out


@pytest.fixture
def driver(config: Path, tmp_path: Path) -> Iterator[Driver]:
    """A search at work on `tmp_path / "out"`."""
    started = Driver(tmp_path / "said", "run", config, "--out", tmp_path / "out")
    yield started
    started.end()


@pytest.fixture(scope="module")
def killed() -> Iterator[list[Driver]]:
    """Drivers that left Ray's agents behind: these look for their parent once a minute, and at the
    end of all tests nothing of them is left."""
    drivers: list[Driver] = []
    yield drivers
    assert [driver.survivors(90) for driver in drivers] == [[]] * len(drivers)


def selections(out: Path) -> bytes:
    return (out / "selections.json").read_bytes()


def resumed(out: Path, undisturbed: Path) -> str:
    """Resumes a search and finds the undisturbed one's selections; returns what it printed."""
    before = journal(out)
    done = clsearch("resume", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    after = journal(out)
    assert {key: after[key] for key in before} == before, "a finished trial was trained again"
    assert len(after) == TRIALS
    # A worker that is taken down mid-trial must not journal what its last moments raise.
    assert set(pq.read_table(out / "trials.parquet")["status"].to_pylist()) == {"COMPLETE"}
    assert selections(out) == selections(undisturbed)
    assert f"{TRIALS - len(before)} trials trained" in done.stdout or len(before) == TRIALS
    return done.stdout


@pytest.mark.timeout(600)
def test_a_driver_killed_again_and_again(
    config: Path, undisturbed: Path, killed: list[Driver], tmp_path: Path
) -> None:
    out, seed = tmp_path / "out", random.randrange(1 << 30)
    print(f"moments from seed {seed}")
    moments = random.Random(seed)
    for verb in (["run", config, "--out", out], ["resume", out], ["resume", out]):
        before = journal(out)
        driver = Driver(tmp_path / "said", *verb)
        killed.append(driver)
        try:
            driver.until(lambda: len(journal(out)) > len(before))  # noqa: B023
            time.sleep(moments.uniform(0, 1.5))
            if driver.process.poll() is not None:
                break
            driver.descendants()
            driver.process.send_signal(signal.SIGKILL)
            driver.wait()
            # Ray's two idle agents look for their parent once a minute; nothing else goes on.
            assert driver.survivors(but="Agent") == []
        except BaseException:
            driver.end()
            raise
        after = journal(out)
        assert {key: after[key] for key in before} == before
        assert len(after) > len(before)
    resumed(out, undisturbed)
    assert not list((out / "checkpoints").rglob(".new-*"))
    for driver in killed:
        assert not list(Path("/tmp").glob(f"clsearch-ray-{driver.process.pid}-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_search_ends_cleanly_and_says_how_to_go_on(
    driver: Driver, undisturbed: Path, config: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    driver.until(lambda: journal(out))
    driver.process.send_signal(signal.SIGSTOP)  # so that the search does not end meanwhile
    for verb in (("run", config, "--out", out), ("resume", out)):
        second = clsearch(*verb)
        assert second.returncode == 2
        assert "no other run is writing" in second.stderr
    assert "A run is at work on it." in clsearch("status", out).stdout
    driver.descendants()
    began = time.monotonic()
    if number == signal.SIGINT:  # a terminal sends it to every process of the command
        for process in driver.family:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
    driver.process.send_signal(number)
    driver.process.send_signal(signal.SIGCONT)
    assert driver.wait(30) == 130
    assert time.monotonic() - began < 20
    assert driver.survivors() == []
    message = driver.stderr.strip().splitlines()
    assert message == [f"clsearch: interrupted. Go on with: clsearch resume {out}"]
    assert len(journal(out)) < TRIALS
    status = clsearch("status", out).stdout
    assert f"Not finished. Go on with: clsearch resume {out}" in status
    command = shlex.split(message[0].partition("Go on with: ")[2])
    assert command == ["clsearch", "resume", str(out)]
    resumed(out, undisturbed)


def test_a_worker_killed_in_the_middle_of_a_trial(
    driver: Driver, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def workers(idle: bool) -> list[psutil.Process]:
        """Those that train, or those between two trials."""
        found = []
        for process in driver.descendants():
            try:
                title = (process.cmdline() or [""])[0]
            except psutil.NoSuchProcess:
                continue
            if title.startswith("ray::ImplicitFunc") and idle != title.endswith(".train"):
                found.append(process)
        return found

    training: list[psutil.Process] = []
    driver.until(lambda: journal(out) and (training.extend(workers(idle=False)) or training))
    with contextlib.suppress(psutil.NoSuchProcess):
        training[0].kill()
    while driver.process.poll() is None:  # a moment between two trials is short: if one is seen
        found = workers(idle=True)
        if found:
            with contextlib.suppress(psutil.NoSuchProcess):
                found[0].kill()
            break
        time.sleep(0.02)
    assert driver.wait() == 0, driver.stderr
    assert driver.stderr == ""
    assert selections(out) == selections(undisturbed)
    assert set(pq.read_table(out / "trials.parquet")["status"].to_pylist()) == {"COMPLETE"}
    assert driver.survivors() == []


def test_the_death_of_ray_itself_says_how_to_go_on(
    config: Path, undisturbed: Path, killed: list[Driver], tmp_path: Path
) -> None:
    """Ray then ends this process from within, without a word to Python."""
    out = tmp_path / "out"
    driver = Driver(tmp_path / "said", "run", config, "--out", out)
    killed.append(driver)
    try:
        driver.until(lambda: journal(out))
        (raylet,) = [p for p in driver.descendants() if p.name() == "raylet"]
        raylet.kill()
        assert driver.wait(60) == 1
    except BaseException:
        driver.end()
        raise
    said = f"clsearch: the run was killed, or Ray's own processes died. Go on with: clsearch resume {out}"  # noqa: E501
    assert driver.stderr.splitlines()[-1] == said
    resumed(out, undisturbed)


def test_damaged_checkpoints_are_named_once_and_made_again(
    undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    chosen = json.loads(selections(out))
    keys = [s["trial_key"] for s in chosen if s["task"] == 1]
    trials = out / "checkpoints" / "trials"
    for name, key in zip(("model.safetensors", "record.json"), keys, strict=True):
        raw = bytearray((trials / key / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (trials / key / name).write_bytes(raw)
    commit = out / "checkpoints" / "commits" / chosen[0]["commit"] / "state.safetensors"
    commit.write_bytes(commit.read_bytes()[:-1])
    refused = clsearch("select", out, "--margin", "1")
    assert refused.returncode == 1
    assert refused.stderr.count("SHA-256") == 1
    assert refused.stderr.endswith(f"`clsearch resume {out}` makes it again.\n")
    assert "Traceback" not in refused.stderr
    done = clsearch("resume", out)
    assert (done.returncode, done.stderr) == (0, "")
    named = [line for line in done.stdout.splitlines() if "SHA-256" in line]
    assert len(named) == 2
    assert all(any(key in line for line in named) for key in keys)
    assert "2 trials trained, 14 taken from the journal" in done.stdout
    assert selections(out) == selections(undisturbed)


def test_a_full_disk(undisturbed: Path, config: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        out = disk / "out"
        done = clsearch("run", config, "--out", out)
        assert done.returncode == 1, done.stdout
        assert done.stderr.startswith("clsearch: ")
        assert "No space left on device" in done.stderr
        assert done.stderr.endswith(f"Go on with: clsearch resume {out}\n")
        assert len(done.stderr.splitlines()) == 2
        grow = ["mount", "-o", "remount,size=64m", str(disk)]
        subprocess.run(grow, check=True, capture_output=True)
        resumed(out, undisturbed)
        assert not (out / "outbox").exists()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


FAULTY = '''
import os, signal
from pathlib import Path
from typing import ClassVar

from clsearch.methods.base import Method, MethodOptions


class Options(MethodOptions):
    fault: str
    marker: str = ""


class Faulty(Method):
    """Fine-tuning whose trials break at their end, in the worker."""

    name: ClassVar[str] = "faulty"
    Options: ClassVar[type[MethodOptions]] = Options

    def drift(self, params, state):
        if self.options.fault == "raise":
            raise RuntimeError("the sensor is unplugged")
        if self.options.fault == "always" or not Path(self.options.marker).exists():
            Path(self.options.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.0
'''


def test_trials_that_fail_leave_the_others_alone(tmp_path: Path) -> None:
    """A method that breaks comes in as a plug-in: one more file in the package's search path."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "faulty.py").write_text(FAULTY)
    start = f"import clsearch.methods\nclsearch.methods.__path__.append({str(plugins)!r})\n"
    (tmp_path / "sitecustomize.py").write_text(start)

    def faulty(label: str, fault: str) -> dict[str, object]:
        options = {"fault": fault, "marker": str(tmp_path / label)}
        return {"name": "faulty", "label": label, "options": options, "grid": {"lr": [0.003]}}

    config = write_config(
        tmp_path / "c.yaml",
        scenario={"name": "permuted", "source": "digits", "tasks": 1},
        methods=[
            {"name": "finetune", "grid": {"lr": [0.003, 1e30]}},
            faulty("raises", "raise"),
            faulty("dies-once", "once"),
            faulty("dies", "always"),
        ],
    )
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    out, env = tmp_path / "out", environment(PYTHONPATH=os.pathsep.join(paths))
    done = clsearch("run", config, "--out", out, env=env)
    assert done.returncode == 1
    assert done.stderr.startswith("clsearch: 2 of 4 chains failed; the first: ")
    assert len(done.stderr.splitlines()) == 1
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    by_label = {(r["method"], r["hp_lr"]): r for r in rows}
    assert by_label["finetune", 0.003]["status"] == "COMPLETE"
    diverged = by_label["finetune", 1e30]
    assert diverged["status"] == "FAILED"
    assert diverged["reason"]
    raised = by_label["raises", 0.003]
    assert (raised["status"], raised["reason"]) == (
        "FAILED", "RuntimeError: the sensor is unplugged",
    )  # fmt: skip
    died = by_label["dies", 0.003]
    assert (died["status"], died["reason"]) == ("FAILED", "its worker died again and again")
    once = by_label["dies-once", 0.003]
    assert once["status"] == "COMPLETE"
    assert once["validation_accuracy"] == by_label["finetune", 0.003]["validation_accuracy"]
    outcomes = {s["method"]: s["outcome"] for s in json.loads(selections(out))}
    assert outcomes == {
        "finetune": "selected", "raises": "failed", "dies-once": "selected", "dies": "failed",
    }  # fmt: skip
    assert (out / "report" / "index.md").is_file()


def test_this_python_sees_psutils_processes() -> None:
    """The checks for survivors find a process that survives."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        gone, alive = psutil.wait_procs([psutil.Process(process.pid)], timeout=0.1)
        assert (len(gone), len(alive)) == (0, 1)
    finally:
        process.kill()
        process.wait()
