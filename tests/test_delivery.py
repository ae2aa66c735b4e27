"""The way to MLflow: what it refuses, folders that cannot be written, servers away or hung, and the
process that delivers."""

from __future__ import annotations

import gc
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from command import arguments
from servers import answering, free_port, server
from tracked import (
    CONFIG,
    INFO,
    TASKS,
    client,
    committed,
    everything,
    finished,
    play,
    runs,
    trial,
)

from clsearch.delivery_process import BEGIN
from clsearch.errors import InputError, StoreError
from clsearch.protocols import SearchInfo
from clsearch.tracking import MLflowTracker


def wait_for_delivery(out: Path) -> None:
    end = time.monotonic() + 60
    while list((out / "outbox").glob("*.json")):
        assert time.monotonic() < end, "nothing was delivered"
        time.sleep(0.05)


def delivering() -> list[psutil.Process]:
    """Processes of this one that deliver."""
    return [process for process in psutil.Process().children() if BEGIN in arguments(process)]


def delivers(number: int) -> bool:
    try:
        return BEGIN in arguments(psutil.Process(number))
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def thawed() -> None:
    """Whatever a test before, whose search was never over, told the garbage collector."""
    gc.unfreeze()


# Entries that MLflow refuses, and folders that cannot be written


@pytest.mark.parametrize("apart", [False, True])
def test_refused_entry_is_set_aside_with_its_reason(out: Path, apart: bool) -> None:
    tracker = MLflowTracker(out, apart=apart)
    tracker.start(INFO)
    tracker.trial(trial(1, hyperparameters={"a name that is far too long" * 20: 1.0}))
    tracker.trial(trial(2))
    assert tracker.close(60) == 0
    (kept,) = tracker.rejected
    content = json.loads(kept.read_text())
    assert "exceeds the maximum length" in content["reason"]
    assert json.loads(content["entry"])["body"]["trial_key"] == f"{1:032x}"
    assert "ewc · seed 0 · task 1 · lr=0.001 strength=20" in runs(client(out))


def test_damaged_entry_does_not_block_the_queue(out: Path) -> None:
    folder = out / "outbox"
    folder.mkdir()
    (folder / "00000001-trial-abc.json").write_text('{"kind": "trial", "bo')
    (folder / ".00000002-trial-abd.json.tmp").write_text("half")
    (folder / "00000002-trial-abd.files").mkdir()
    tracker = MLflowTracker(out)
    tracker.start(INFO)
    tracker.trial(trial(1))
    assert tracker.close(60) == 0
    assert "is not valid JSON" in tracker.rejected[0].read_text()
    assert len(runs(client(out))) == 3
    assert [f.name for f in folder.iterdir()] == ["rejected"]


def test_full_disk_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    tracker = MLflowTracker(tmp_path, "http://127.0.0.1:9")
    tracker.start(INFO)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        tracker.trial(trial(1))
    monkeypatch.undo()
    assert len(list((tmp_path / "outbox").iterdir())) == 1
    tracker.trial(trial(1))
    assert tracker.close(0) == 2
    with pytest.raises(StoreError, match="nowhere"):
        tracker.finish([tmp_path / "nowhere.svg"], {}, "FINISHED")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no folder for temporary files"))
    with pytest.raises(StoreError, match="no folder"):
        tracker.trial(trial(2))


@pytest.mark.usefixtures("thawed")
def test_an_interrupted_end_ends_all_the_same(out: Path, model: Path) -> None:
    tracker = MLflowTracker(out, apart=True)
    tracker.start(INFO)
    tracker.committed(committed(2, model))
    for number in range(200):
        tracker.trial(trial(number))
    end, main = time.monotonic() + 60, threading.get_ident()
    while len(list((out / "outbox").glob("*.json"))) > 200:  # it is at work
        assert time.monotonic() < end
        time.sleep(0.01)
    threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        tracker.close(60)
    assert gc.get_freeze_count() == 0
    while delivering():
        assert time.monotonic() < end, "it delivers what it had begun, and no more"
        time.sleep(0.1)
    time.sleep(1)
    left = len(list((out / "outbox").glob("*.json")))
    assert left > 100
    time.sleep(1)
    assert len(list((out / "outbox").glob("*.json"))) == left
    assert not delivering()


@pytest.mark.parametrize("name", ["what?", "50%41"])
def test_a_folder_that_is_no_path_within_an_address_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"out: .* Allowed: a folder without \? and %"):
        MLflowTracker(tmp_path / name / "out")
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_is_named(out: Path) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri.*'\./mlruns' is not allowed"):
        MLflowTracker(out, "./mlruns")
    for wrong in ("sqlite://", "sqlite:///", "sqlite:///file:/a/m.db?uri=true", "sqlite:///a%41"):
        with pytest.raises(InputError, match=r"tracking\.uri.*sqlite:///PATH"):
            MLflowTracker(out, wrong)
    with pytest.raises(InputError, match=r"tracking\.uri.*UTF-8"):
        MLflowTracker(out, f"sqlite:///{out}/\udcff.db")
    tracker = MLflowTracker(out)
    with pytest.raises(RuntimeError, match="start"):
        tracker.trial(trial(1))
    tracker.start(INFO)
    with pytest.raises(InputError, match="status"):
        tracker.finish([], {}, "DONE")
    tracker.close(60)


@pytest.mark.parametrize(
    ("uri", "step"),
    [
        ("http://me:secret@host:5000", "MLFLOW_TRACKING_PASSWORD"),
        ("postgresql://me:secret@host/db", "PGPASSWORD"),
        ("postgresql+psycopg2://me:se/cret@host/db", "PGPASSWORD"),
        ("postgresql://host/db?password=secret", "PGPASSWORD"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret", "a server"),
        ("postgres://me:secret@host/db", "postgresql"),
        ("http://host:5000?sig=secret", "MLFLOW_TRACKING_TOKEN"),
        ("https://host/mlflow/#secret", "MLFLOW_TRACKING_TOKEN"),
        ("https://host/mlflow;token=secret", "MLFLOW_TRACKING_TOKEN"),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(
    tmp_path: Path, uri: str, step: str
) -> None:
    with pytest.raises(InputError) as refused:
        MLflowTracker(tmp_path, uri)
    assert step in str(refused.value)
    assert not re.search(r"se/?cret|cret@", str(refused.value))


@pytest.mark.usefixtures("thawed")
def test_garbage_of_exports_is_found_soon_and_only_while_a_search_goes_on(
    out: Path, model: Path
) -> None:
    """However much there was before the first export: here a million objects, of which a quarter
    would have to come anew before the collector looks at all."""
    held = [[] for _ in range(1_000_000)]  # type: ignore[var-annotated]
    gc.collect()
    tracker = MLflowTracker(out)
    tracker.start(INFO)
    full = 0

    def count(phase: str, info: dict[str, int]) -> None:
        nonlocal full
        full += phase == "stop" and info["generation"] == 2

    tracker.committed(committed(2, model))
    before = gc.get_freeze_count()
    assert before > len(held)
    gc.callbacks.append(count)
    try:
        for _ in range(150_000):
            cycle: list[Any] = []
            cycle.append(cycle)
        assert full
        tracker.committed(committed(2, model, 2))
        assert gc.get_freeze_count() <= before  # none is let be a second time
    finally:
        gc.callbacks.remove(count)
        waiting = tracker.close(60)
    assert (waiting, gc.get_freeze_count()) == (0, 0)


def test_what_others_told_the_garbage_collector_stays(out: Path, model: Path) -> None:
    gc.freeze()
    try:
        tracker = MLflowTracker(out)
        tracker.start(INFO)
        tracker.committed(committed(2, model))
        assert tracker.close(60) == 0, tracker.problem
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


# Servers


@pytest.mark.slow
# The mlflow client refers to deprecated parts of its own dependencies while it loads a model.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dead_server_gets_everything_once_when_it_comes_up(
    tmp_path: Path, model: Path, figure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    port = free_port()
    uri, out = f"http://127.0.0.1:{port}", tmp_path / "out"
    tracker = MLflowTracker(out, uri, apart=True)
    began = time.monotonic()
    play(tracker, model, figure)
    assert time.monotonic() - began < 5
    assert tracker.close(15) == 8
    assert "Connection refused" in tracker.problem
    shutil.copytree(out / "outbox", tmp_path / "kept")
    with server(tmp_path, port):
        answering(port)
        finished(MLflowTracker(out, uri, apart=True), model, figure)
        look = client(out, uri)
        before = everything(look)
        assert len(before) == 8
        assert not (out / "outbox").exists()
        # Killed before it could note what it had delivered, then resumed.
        shutil.copytree(tmp_path / "kept", out / "outbox")
        shutil.rmtree(out / "checkpoints" / "delivered")
        finished(MLflowTracker(out, uri), model, figure)
        assert everything(look) == before
        # And a resume that has nothing new does not even ask the server.
        silent = MLflowTracker(out, uri)
        finished(silent, model, figure)
        assert silent._courier._thread is None
        monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        pixels = torch.rand(5, 1, 4, 4)
        loaded = mlflow.pytorch.load_model("models:/demo.ewc.seed-0@task-1")
        exported = torch.export.load(model / "model.pt2").module()
        assert torch.equal(loaded(pixels), exported(pixels))


def test_hung_server_blocks_nothing(tmp_path: Path, model: Path, figure: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        tracker = MLflowTracker(tmp_path, address, apart=True)
        began = time.monotonic()
        play(tracker, model, figure)
        assert time.monotonic() - began < 5
        began = time.monotonic()
        assert tracker.close(1) == 8
        assert time.monotonic() - began < 5
    assert len(list((tmp_path / "outbox").glob("*.json"))) == 8


def test_a_process_that_delivers_and_dies_is_followed_by_another(
    out: Path, model: Path, figure: Path
) -> None:
    tracker = MLflowTracker(out, apart=True)
    tracker.start(INFO)
    tracker.trial(trial(1))
    wait_for_delivery(out)
    first = tracker._delivery._process  # type: ignore[union-attr]
    assert first is not None
    first.kill()
    finished(tracker, model, figure)
    assert len(runs(client(out))) == 7
    assert tracker.problem == ""
    assert not psutil.pid_exists(first.pid)


def test_the_process_that_delivers_ends_with_the_search_however_that_ends(tmp_path: Path) -> None:
    """Even while it waits for a server that never answers."""
    program = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from clsearch.tracking import MLflowTracker
tracker = MLflowTracker(Path(sys.argv[1]), sys.argv[2], apart=True)
tracker.start(SimpleNamespace(name="demo", digest="d" * 32, config={}, tasks=[], joint=()))
sys.stdin.readline()
print(tracker._delivery._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-c", program, tmp_path, address]
        search = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        listener.settimeout(30)
        connection, _ = listener.accept()  # it asks the server, and waits
        said, _ = search.communicate("go on\n", timeout=30)
        assert search.returncode == -signal.SIGKILL
        end = time.monotonic() + 5
        while delivers(int(said)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not delivers(int(said))
        connection.close()


def test_a_process_that_cannot_be_started_refuses_nothing(
    out: Path, model: Path, figure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment that is made anew under a search: its interpreter is not there for a while."""
    with monkeypatch.context() as away:
        away.setattr(sys, "executable", str(out / "python"))
        tracker = MLflowTracker(out, apart=True)
        play(tracker, model, figure)
        end = time.monotonic() + 30
        while not tracker.problem and time.monotonic() < end:
            time.sleep(0.01)
        assert "that delivers to MLflow cannot be started" in tracker.problem
    assert tracker.close(60) == 0, tracker.problem
    assert tracker.rejected == []
    assert len(runs(client(out))) == 7


def test_what_is_printed_in_the_process_that_delivers_is_no_answer(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('[\"\", false]', flush=True)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    tracker = MLflowTracker(out, apart=True)
    tracker.start(INFO)
    tracker.trial(trial(1, hyperparameters={"a name that is far too long" * 20: 1.0}))
    tracker.trial(trial(2))
    assert tracker.close(60) == 0, tracker.problem
    (kept,) = tracker.rejected
    assert "exceeds the maximum length" in json.loads(kept.read_text())["reason"]
    assert capfd.readouterr().out == ""


def test_signals_to_the_whole_group_leave_the_process_that_delivers_alone(tmp_path: Path) -> None:
    """Ctrl-C in a terminal is for the search, from the first moment on."""
    program = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from clsearch.tracking import MLflowTracker
signal.signal(signal.SIGINT, lambda *_: None)
tracker = MLflowTracker(Path(sys.argv[1]), apart=True)
tracker.start(SimpleNamespace(name="demo", digest="d" * 32, config={}, tasks=[], joint=()))
while tracker._delivery._process is None:
    time.sleep(0.001)
first = tracker._delivery._process
for _ in range(20):
    os.killpg(0, signal.SIGINT)
    time.sleep(0.05)
assert tracker.close(60) == 0, tracker.problem
assert first.returncode == 0, first.returncode
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "out"],
        capture_output=True, timeout=120, check=False, start_new_session=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.slow
def test_driver_starts_at_once_and_the_terminal_stays_clean(tmp_path: Path) -> None:
    """In a fresh process: no import of mlflow or torch, no line on the terminal, a new database."""
    program = """
import sys, time
from pathlib import Path
began = time.monotonic()
from clsearch.tracking import MLflowTracker
tracker = MLflowTracker(Path(sys.argv[1]), sys.argv[2] if sys.argv[2:] else None, apart=True)
assert not {"mlflow", "torch"} & set(sys.modules)
from types import SimpleNamespace
tracker.start(SimpleNamespace(name="demo", digest="d" * 32, config={}, tasks=[], joint=()))
assert time.monotonic() - began < 5
left = tracker.close(60)
assert "mlflow" not in sys.modules  # its client is in a process of its own
sys.exit(left)
"""
    command = [sys.executable, "-c", program]
    local = subprocess.run(
        [*command, tmp_path / "a"], capture_output=True, timeout=120, check=False
    )
    assert (local.returncode, local.stdout, local.stderr) == (0, b"", b"")
    assert len(runs(client(tmp_path / "a"))) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    dead = [*command, tmp_path / "b", f"http://127.0.0.1:{free_port()}"]
    away = subprocess.run(dead, capture_output=True, timeout=120, check=False)
    assert (away.returncode, away.stdout, away.stderr) == (1, b"", b"")


def test_system_metrics_are_sampled_into_the_run_of_the_search(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On request, by one thread that ends with the search; a resumed search goes on with them."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    look, others = client(out), {*delivering()}
    counts = []
    for number in (1, 2):
        tracker = MLflowTracker(out, system_metrics=True, apart=number == 2)
        tracker.start(INFO)
        tracker.trial(trial(number))
        wait_for_delivery(out)
        time.sleep(0.5)
        tracker.finish([], {}, "FINISHED")
        assert tracker.close(60) == 0, tracker.problem
        assert "SystemMetricsMonitor" not in {thread.name for thread in threading.enumerate()}
        assert {*delivering()} <= others
        run = runs(look)["search dddddddd"].info.run_id
        history = look.get_metric_history(run, "system/cpu_utilization_percentage")
        assert len({m.step for m in history}) == len(history)
        counts.append(len(history))
    assert 1 <= counts[0] < counts[1]
    assert not [m for m in runs(look)["ewc · seed 0 · task 1"].data.metrics if "system" in m]


def test_what_waits_of_another_search_gets_no_system_metrics(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    killed = MLflowTracker(out)
    killed._courier.wake = lambda: None  # type: ignore[method-assign]  # nothing is delivered
    killed.start(SearchInfo("killed", "e" * 32, CONFIG, TASKS))
    tracker = MLflowTracker(out, system_metrics=True)
    tracker.start(INFO)
    time.sleep(1)
    assert tracker.close(60) == 0, tracker.problem
    look = client(out)
    sampled = {}
    for name in ("killed", "demo"):
        (run,) = look.search_runs([look.get_experiment_by_name(name).experiment_id])
        sampled[name] = "system/cpu_utilization_percentage" in run.data.metrics
    assert sampled == {"killed": False, "demo": True}
