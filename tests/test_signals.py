"""What stops a command, whenever it comes, and how its process ends."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import Driver, environment, write_config


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


WHILE_RAY_STARTS = """
import os, signal, sys, time
from clsearch.search._ray import AT_ONCE, own_signals, utils
from clsearch.signals import stop_on_signals

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started by
signal.signal(signal.SIGHUP, signal.SIG_IGN)
stop_on_signals()
mine = signal.getsignal(signal.SIGTERM)
try:
    with own_signals(crashes=True):
        utils.set_sigterm_handler(lambda number, frame: sys.exit(number))  # as Ray does
        for name in sys.argv[1].split():
            os.kill(os.getpid(), getattr(signal, name))
        if len(sys.argv) > 2:
            time.sleep(AT_ONCE)
            os.kill(os.getpid(), signal.SIGTERM)
        print("Ray has started")
except KeyboardInterrupt:
    print("interrupted")
assert signal.getsignal(signal.SIGTERM) == mine
assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
"""


@pytest.mark.parametrize(
    ("signals", "later", "said"),
    [
        ("SIGTERM", [], ["Ray has started", "interrupted"]),
        ("SIGINT SIGTERM SIGTERM", [], ["Ray has started", "interrupted"]),
        ("SIGTERM", ["another"], ["interrupted"]),
        ("SIGHUP", [], ["Ray has started"]),  # as under `nohup`
    ],
)
def test_a_signal_while_ray_starts_waits_until_it_has(
    signals: str, later: list[str], said: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WHILE_RAY_STARTS, signals, *later],
        capture_output=True, text=True, timeout=60, check=False, env=environment(),
    )  # fmt: skip
    assert (done.stdout.splitlines(), done.stderr) == (said, "")


ITS_HANDLER = """
import ctypes, signal, threading, time
from clsearch.config import ResourcesConfig
from clsearch.search.ray_backend import RaySearcher

class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("rest", ctypes.c_char * 200)]

def handler(number):
    action = Action()
    assert ctypes.CDLL(None).sigaction(number, None, ctypes.byref(action)) == 0
    return action.handler

def watch():
    while not over.wait(0.0005):
        others.extend({handler(signal.SIGTERM)} - {own})

signal.signal(signal.SIGTERM, print)
over, own, others = threading.Event(), handler(signal.SIGTERM), []
watching = threading.Thread(target=watch)
watching.start()
for _ in range(2):
    searcher = RaySearcher(ResourcesConfig(workers=1))
    crashes = handler(signal.SIGSEGV)
    searcher.close()
over.set()
watching.join()
print(len(others), signal.getsignal(signal.SIGTERM) == print, bool(crashes))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux's C library")
def test_ray_never_takes_the_handler_of_sigterm_as_it_starts_and_ends() -> None:
    """Its own would end the search without a word. One of crashes it has all the same.

    It is there for the 40 microseconds that it takes to be replaced, which a look may meet."""
    done = subprocess.run(
        [sys.executable, "-c", ITS_HANDLER],
        capture_output=True, text=True, timeout=120, check=False, env=environment(),
    )  # fmt: skip
    looks, kept, crashes = done.stdout.split()
    assert int(looks) <= 2
    assert (kept, crashes, done.stderr) == ("True", "True", "")


def speaks(threads: Path) -> bool:
    """Whether one of these threads is that which speaks with Ray's server."""
    for name in threads.glob("*/comm"):
        with contextlib.suppress(OSError):  # it has ended
            if name.read_text().startswith("gcs_cl"):
                return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.0, 0.1, 0.2, 0.4])
def test_a_search_is_stopped_while_ray_starts(tmp_path: Path, after: float) -> None:
    """Seconds after its thread that speaks with Ray's server has begun."""
    driver = Driver(tmp_path, "run", write_config(tmp_path / "c.yaml"), "--out", tmp_path / "out")
    threads = Path(f"/proc/{driver.process.pid}/task")
    driver.until(lambda: speaks(threads))
    time.sleep(after)
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
