"""The hold of an output folder: who has it is known, and it ends with its process."""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clsearch.errors import InputError
from clsearch.files import LOCK, holder, owned

HOLD = """
import sys, time
from pathlib import Path
from clsearch.files import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_that_is_held_says_by_whom(other: subprocess.Popen[str], tmp_path: Path) -> None:
    who = f"process {other.pid} on {platform.node()} since {time.strftime('%Y-')}"
    assert str(holder(tmp_path)).startswith(who)
    with pytest.raises(InputError) as raised, owned(tmp_path):
        pass
    assert raised.value.field == "output folder"
    assert f"It is held by {who}" in str(raised.value)
    assert other.poll() is None
    assert (tmp_path / LOCK).exists()


def test_a_hold_ends_with_its_process(other: subprocess.Popen[str], tmp_path: Path) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert str(other.pid) in (tmp_path / LOCK).read_text()  # left behind, and nobody's
    assert holder(tmp_path) is None
    with owned(tmp_path):
        assert str(holder(tmp_path)).startswith(f"process {os.getpid()} on ")
    assert holder(tmp_path) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("said", [b"", b"no end", b"\x1b[31mred\n", b"\xff\x00\n", b"x" * 5000])
def test_what_a_lock_says_is_not_trusted(tmp_path: Path, said: bytes) -> None:
    with (tmp_path / LOCK).open("wb") as stream:
        stream.write(said)
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert holder(tmp_path) == "another process"
        with pytest.raises(InputError, match="It is held by another process"), owned(tmp_path):
            pass


def test_a_lock_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / LOCK).symlink_to(target)
    assert holder(tmp_path) is None
    with pytest.raises(InputError, match="no other run is writing"), owned(tmp_path):
        pass
    assert target.read_text() == "mine"


def test_one_at_a_time_whoever_takes_the_lock_away(tmp_path: Path) -> None:
    """Each removes the file as it lets go: who waited for the removed one must not hold it."""
    inside, most, done = [0], [0], [0]

    def contend() -> None:
        while done[0] < 60:
            try:
                with owned(tmp_path):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0.001)
                    inside[0] -= 1
                    done[0] += 1
            except InputError:
                continue

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], done[0] >= 60) == (1, True)
