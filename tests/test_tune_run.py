"""Which job a worker is given next, and what becomes of those that are lost."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clsearch.config import ResourcesConfig
from clsearch.files import sha256_of
from clsearch.protocols import ConsolidateJob, Ended, Job, Shown
from clsearch.records import Chain, TrialRecord
from clsearch.search import local, tune_run
from clsearch.search._ray import tune
from clsearch.search.ray_backend import RaySearcher
from clsearch.search.tune_run import ROUNDS, TuneRun, Work


@pytest.fixture
def run() -> TuneRun:
    """A run whose thread is not Tune's."""
    made = TuneRun(None, workers=9)
    made.thread = threading.Thread(target=lambda: None)
    made.thread.start()
    return made


@contextlib.contextmanager
def at_work(trains: Callable[[dict[str, Any]], None], workers: int) -> Iterator[TuneRun]:
    """A run on a local Ray."""
    searcher = RaySearcher(ResourcesConfig(workers=workers))
    try:
        bundles = tune.PlacementGroupFactory([{"CPU": 1}])
        run = TuneRun(tune.with_resources(trains, bundles), workers)
        try:
            yield run
        finally:
            run.end()
    finally:
        searcher.close()


def ours() -> list[Path]:
    """What lies in Ray's and Tune's folders of this process."""
    folders = Path("/tmp").glob(f"{local.FOLDER}{os.getpid()}-*")
    return [path for folder in folders for path in folder.rglob("*")]


def pack(task: int, *keys: str) -> Work:
    job = Job(Chain("ewc", 0), 0, task, None, (task,), True, keys, tuple({} for _ in keys))
    return Work(job, {task: "data"})


def consolidation(task: int, key: str) -> Work:
    place: Any = (Chain("ewc", 0), 0, task, None, (task,), True, (key,), ({},))
    return Work(ConsolidateJob(*place, "commit", None, (), Shown()), {task: "data"}, "rest")


def test_what_a_chain_waits_for_goes_before_packs_of_its_task_alone(run: TuneRun) -> None:
    works = [
        pack(2, "a"),
        pack(1, "b"),
        consolidation(2, "c"),
        pack(2, "d", "e"),
        pack(1, "f", "g"),
    ]
    run.submit(works)
    given = [run.next(str(i)) for i in range(len(works))]
    assert [work and work.job.keys for work in given] == [
        ("f", "g"), ("b",), ("c",), ("d", "e"), ("a",),
    ]  # fmt: skip


def test_a_lost_job_has_further_rounds_of_its_own(run: TuneRun) -> None:
    """A trial that was lost twice and trained does not take rounds from its consolidation."""
    run.submit([pack(1, "a")])
    for i in range(ROUNDS):
        assert run.next(f"pack {i}") is not None
        run.begin(f"pack {i}")
        run.done(f"pack {i}", lost="" if i == ROUNDS - 1 else "died")
    assert isinstance(run.wait(), Ended)
    work = consolidation(1, "a")
    run.submit([work])
    for i in range(ROUNDS):
        assert run.next(f"commit {i}") is work
        run.begin(f"commit {i}")
        assert (work.data, work.rest) == ({1: "data"}, "rest")
        run.done(f"commit {i}", lost="died")
    event = run.wait()
    assert isinstance(event, Ended)
    assert event.lost == "died"
    assert vars(work) == {}  # Tune may keep the work for long


def test_rounds_with_dead_workers_that_were_kept_do_not_count_and_others_do(run: TuneRun) -> None:
    """Seven have trained and are kept, all of them dead by now; then no other starts either."""
    for i in range(7):
        run.submit([pack(1, str(i))])
        run.next(str(i))
    for i in range(7):
        run.begin(str(i))
    for i in range(7):
        run.done(str(i))
        assert isinstance(run.wait(), Ended)
    jobs = [pack(1, "a"), pack(1, "b")]
    handed = 0
    run.submit(jobs)
    while not run.idle:
        handed += 1
        run.next(f"again {handed}")
        run.done(f"again {handed}", lost="died")
    assert handed == 7 + 2 * ROUNDS
    lost = [run.wait() for _ in jobs]
    assert [event.lost for event in lost if isinstance(event, Ended)] == ["died", "died"]


@pytest.mark.slow
def test_tune_keeps_no_trial_that_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the object nor one of its folders."""
    from ray.tune.experiment import Trial

    monkeypatch.setattr(tune_run, "ROUNDS", 1)  # each takes the starts of two workers

    def trains(setting: dict[str, Any]) -> None:
        if setting["work"].job.keys[0] == "bad":
            raise RuntimeError("this one fails")
        tune.report({"loss": 0.5})

    with at_work(trains, 2) as run:

        def folders_after(*keys: str) -> int:
            run.submit([pack(1, key) for key in keys])
            events = [run.wait() for _ in keys]
            lost = [e.job.keys[0] for e in events if isinstance(e, Ended) and e.lost]
            assert lost == [key for key in keys if key == "bad"]
            return sum(path.is_dir() for path in ours())

        first = folders_after("a", "b")
        assert folders_after("bad", *map(str, range(30))) < first + 10
        gc.collect()
        assert sum(isinstance(one, Trial) for one in gc.get_objects()) < 5


@pytest.mark.slow
def test_no_secret_of_the_environment_is_in_a_file_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of this host has it: from Ray's processes, which have it from this one."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    secrets = {name: uuid.uuid4().hex for name in names}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    sums = {name: sha256_of(value.encode()) for name, value in secrets.items()}

    def trains(setting: dict[str, Any]) -> None:
        assert {name: sha256_of(os.environ[name].encode()) for name in sums} == sums
        tune.report({"loss": 0.5})

    with at_work(trains, 1) as run:
        run.submit([pack(1, "a")])
        event = run.wait()
        assert isinstance(event, Ended)
        assert event.lost == ""
        files = [path for path in ours() if path.is_file()]
        assert any(path.name == "runtime_env_agent.log" for path in files)
        content = b"".join(path.read_bytes() for path in files)
        assert [name for name, value in secrets.items() if value.encode() in content] == []


@pytest.mark.slow
def test_workers_are_kept_while_there_is_nothing_to_do_and_a_job_outlives_dead_ones(
    tmp_path: Path,
) -> None:
    """More of them than a job has rounds."""
    workers = ROUNDS + 1

    def trains(setting: dict[str, Any]) -> None:
        (tmp_path / str(os.getpid())).touch()
        while len(list(tmp_path.iterdir())) < workers:  # all have started
            time.sleep(0.1)
        time.sleep(0.5)
        key = setting["work"].job.keys[0]
        record = TrialRecord(key, "ewc", 0, 1, {}, "COMPLETE", host=str(os.getpid()))
        tune.report({"record": json.dumps(record.to_json())})

    with at_work(trains, workers) as run:

        def trained_by(*keys: str) -> set[int]:
            """The processes that trained these, each in a job of its own."""
            run.submit([pack(1, key) for key in keys])
            events = [run.wait() for _ in range(2 * len(keys))]
            assert [e.lost for e in events if isinstance(e, Ended)] == [""] * len(keys)
            time.sleep(1)  # turns of Tune's loop with nothing to do
            return {int(e.host) for e in events if isinstance(e, TrialRecord)}

        first = trained_by("a", "b", "c", "d")
        assert len(first) == workers
        assert trained_by("e", "f", "g", "h") == first
        for number in first:
            os.kill(number, signal.SIGKILL)
        assert not trained_by("i") & first


@pytest.mark.slow
def test_a_worker_that_is_starting_is_not_ended_because_another_is_free(tmp_path: Path) -> None:
    def trains(setting: dict[str, Any]) -> None:
        (tmp_path / str(os.getpid())).touch()
        key = setting["work"].job.keys[0]
        while key in "ab" and len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.1)
        time.sleep(2 if key == "d" else 0)  # the other's place is found in tenths of a second
        record = TrialRecord(key, "ewc", 0, 1, {}, "COMPLETE", host=str(os.getpid()))
        tune.report({"record": json.dumps(record.to_json())})

    with at_work(trains, 2) as run:

        def hosts(*keys: str) -> set[int]:
            run.submit([pack(1, key) for key in keys])
            events = [run.wait() for _ in range(2 * len(keys))]
            return {int(e.host) for e in events if isinstance(e, TrialRecord)}

        first = hosts("a", "b")
        os.kill(first.pop(), signal.SIGKILL)
        hosts("h", "i")  # that one is dead is found when a job is handed to it
        second = hosts("d", "e")
        assert len(second) == 2
        assert second > first
        assert hosts("f", "g") <= second
        assert len(list(tmp_path.iterdir())) == 3
