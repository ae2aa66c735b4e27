"""What stops a command, whenever it comes, and how its process ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import Driver, environment, write_config

from clsearch.signals import AT_ONCE


def test_a_second_interrupt_while_the_first_is_told_ends_with_its_code() -> None:
    program = """
import clsearch.__main__ as program
def act():
    raise KeyboardInterrupt
program.act = act
program.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


AT_THE_END = """
import atexit, os, sys
from clsearch.signals import Leaving

class Crashing:
    def __del__(self):
        os.abort()

leaving = Leaving()
leaving.code = 7
atexit.register(print, "what has to be done at the end")
sys.modules["crashing"] = Crashing()  # goes when the interpreter does
print("the last word", end="; ")
"""


def test_what_crashes_as_the_interpreter_ends_changes_no_exit_code() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == "the last word; what has to be done at the end\n"
    without = AT_THE_END.replace("leaving = Leaving()", "leaving = atexit")
    crashed = subprocess.run([sys.executable, "-c", without], capture_output=True, check=False)
    assert crashed.returncode == -signal.SIGABRT


IN_A_DESTRUCTOR = """
import os, signal, sys, time
from clsearch.signals import stop_on_signals

class Dying:
    def __del__(self):
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(1)

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started by
signal.signal(signal.SIGHUP, signal.SIG_DFL)
stop_on_signals()
try:
    Dying()
    time.sleep(30)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_that_python_would_drop_still_stops_the_command(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_DESTRUCTOR, name],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "")


WHILE_RAY_CHANGES = """
import os, signal, sys, time
from clsearch.search._ray import own_signals, utils
from clsearch.signals import AT_ONCE, STOPS, stop_on_signals

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started by
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[3]))
stop_on_signals()
numbers = sorted(STOPS)
mine = [signal.getsignal(number) for number in numbers]
try:
    with own_signals(starting=sys.argv[1] == "starts"):
        utils.set_sigterm_handler(lambda number, frame: sys.exit(number))  # as Ray does
        for name in sys.argv[2].split():
            if name == "later":
                time.sleep(AT_ONCE + 0.2)
            else:
                os.kill(os.getpid(), getattr(signal, name))
        time.sleep(0.5)
        print("Ray goes on")
except KeyboardInterrupt:
    print("interrupted")
assert [signal.getsignal(number) for number in numbers] == mine
"""


@pytest.mark.parametrize("what", ["starts", "stops"])
@pytest.mark.parametrize(
    ("signals", "hangup", "said"),
    [
        ("SIGTERM", "SIG_DFL", ["Ray goes on", "interrupted"]),
        ("SIGHUP", "SIG_DFL", ["Ray goes on", "interrupted"]),
        ("SIGINT SIGTERM SIGTERM", "SIG_DFL", ["Ray goes on", "interrupted"]),
        ("SIGTERM later SIGHUP", "SIG_DFL", ["interrupted"]),
        ("SIGHUP", "SIG_IGN", ["Ray goes on"]),  # as under `nohup`
    ],
)
def test_a_signal_while_ray_starts_or_stops_waits_until_it_has(
    what: str, signals: str, hangup: str, said: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WHILE_RAY_CHANGES, what, signals, hangup],
        capture_output=True, text=True, timeout=60, check=False, env=environment(),
    )  # fmt: skip
    assert (done.stdout.splitlines(), done.stderr) == (said, "")


HANGING = """
import ctypes, sys, threading, time
from clsearch import signals

def hang():
    lock = ctypes.create_string_buffer(64)  # a mutex of C's; it is waited for without Python
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)

signals.UNHEARD, signals.ENDING = map(float, sys.argv[2:])
signals.stop_on_signals()

def way_on():
    if sys.argv[1] == "mute":
        hang()
    return "Go on."

with signals.stopper.saying(way_on):
    threading.Timer(0.5, print, ["ready"], {"flush": True}).start()
    try:
        time.sleep(60) if sys.argv[1] == "heard" else hang()
    except KeyboardInterrupt:
        print("heard", flush=True)
    hang()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the size of a mutex is Linux's")
@pytest.mark.parametrize(
    ("when", "limits", "signals", "said"),
    [
        ("unheard", ("1", "60"), 1, "ready\n"),
        ("unheard", ("60", "60"), 2, "ready\n"),
        ("heard", ("60", "5"), 1, "ready\nheard\n"),
        ("mute", ("1", "60"), 1, "ready\n"),
    ],
)
def test_what_hangs_in_code_of_others_ends_all_the_same(
    when: str, limits: tuple[str, str], signals: int, said: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, when, *limits],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            began = time.monotonic()
            for number in range(signals):
                if number:
                    time.sleep(AT_ONCE + 2)
                process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    told = "" if when == "mute" else "clsearch: interrupted. Go on.\n"
    assert (process.returncode, first + out, err) == (130, said, told)
    assert time.monotonic() - began < 20


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its processes end with it there")
def test_a_search_gives_up_a_head_that_hangs(tmp_path: Path) -> None:
    env = environment(RAY_gcs_rpc_server_reconnect_timeout_s="15")
    config, out = write_config(tmp_path / "c.yaml", training={"epochs": 500}), tmp_path / "out"
    driver = Driver(tmp_path, "run", config, "--out", out, env=env)
    driver.until(lambda: "Task 1/2" in driver.stdout)
    (server,) = [p for p in driver.descendants() if p.name() == "gcs_server"]
    server.suspend()
    assert driver.wait(120) == 1
    first, last = driver.stderr.splitlines()
    assert first.startswith("clsearch: Ray's head has not answered for 30 s: ")
    assert last == f"Go on with: clsearch resume {out}"
    assert driver.survivors(60, agents=False) == []


AT_A_MOMENT_OF_RAYS = """
import os, signal, sys
from clsearch.config import ResourcesConfig
from clsearch.search import ray_backend
from clsearch.signals import stop_on_signals
from ray._private import node, worker

def then_signal(place, name, before):
    method = getattr(place, name)

    def signalled(*arguments, **options):
        if before:
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))
        done = method(*arguments, **options)
        if not before:
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))
        print(name)
        return done

    setattr(place, name, signalled)

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started by
stop_on_signals()
place = {"connect": worker, "kill_all_processes": node.Node}[sys.argv[1]]
then_signal(place, sys.argv[1], before=place is node.Node)
try:
    searcher = ray_backend.RaySearcher(ResourcesConfig(workers=1))
    print("started")
    searcher.close()
    print("stopped")
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize(
    ("moment", "said"),
    [
        ("connect", ["connect", "interrupted"]),
        ("kill_all_processes", ["started", "kill_all_processes", "interrupted"]),
    ],
)
def test_ray_has_no_handler_of_its_own_when_it_has_connected_or_ends(
    moment: str, said: list[str], name: str
) -> None:
    """It installs one of SIGTERM as it connects, and takes it away, for the default one, before it
    ends its processes."""
    done = subprocess.run(
        [sys.executable, "-c", AT_A_MOMENT_OF_RAYS, moment, name],
        capture_output=True, text=True, timeout=120, check=False, env=environment(),
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, said, "")


@pytest.mark.slow
def test_a_search_is_stopped_while_ray_starts(tmp_path: Path) -> None:
    driver = Driver(tmp_path, "run", write_config(tmp_path / "c.yaml"), "--out", tmp_path / "out")
    driver.until(lambda: any(p.name() == "gcs_server" for p in driver.descendants()))
    driver.process.send_signal(signal.SIGTERM)
    assert driver.wait() == 130
    assert driver.stderr == "clsearch: interrupted. Nothing was written.\n"
    assert driver.survivors(60, agents=False) == []
    assert not (tmp_path / "out" / "config.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_search_is_stopped_after_ray_has_ended(tmp_path: Path, name: str) -> None:
    """While the report is made, or MLflow is told of the end."""
    out = tmp_path / "out"
    driver = Driver(tmp_path, "run", write_config(tmp_path / "c.yaml"), "--out", out)
    driver.until(lambda: any(out.glob("report*")))
    driver.process.send_signal(getattr(signal, name))
    assert driver.wait() == 130
    assert f"Go on with: clsearch resume {out}" in driver.stderr.replace("\n", " ")
    assert len(driver.stderr.splitlines()) == 1


def test_a_run_that_ends_without_a_word_has_the_way_on_printed(tmp_path: Path) -> None:
    code = """
import os, sys
from clsearch.driver import watched
with watched("clsearch resume somewhere"):
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), 9)
"""
    for how, code_wanted, wanted in (("killed", -9, "clsearch resume somewhere"), ("ended", 0, "")):
        done = subprocess.run(
            [sys.executable, "-c", code, how],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code_wanted
        assert done.stderr.strip().endswith(wanted)
        assert bool(done.stderr) == bool(wanted)
