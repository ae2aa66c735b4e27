"""Faults of the services that a search uses: MLflow's server and database, and an object store."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from command import Driver, arguments
from fault_local import ended_well, fill, small_disk
from fault_matrix import PATIENCE, Damage, Finished, Ground, fault, finished
from object_store import CREDENTIALS, ObjectStore, object_store
from pyarrow import fs
from servers import answering, free_port, serving

from clsearch.delivery_process import BEGIN
from clsearch.driver import CLOSE
from clsearch.store import Store

TAKEN = "MLflow has not taken"
"""What a search says in the end of entries that wait."""

AUDIT = {
    "runs": "select k.value, r.status from runs r {keyed} where 1",
    "params": "select k.value, p.key, p.value from params p join runs r using (run_uuid) {keyed}",
    "metrics": """select k.value, m.key, m.step, iif(m.key = 'duration', 0, m.value)
        from metrics m join runs r using (run_uuid) {keyed}""",
    "inputs": """select k.value, count(*) from inputs i
        join runs r on r.run_uuid = i.destination_id {keyed} group by k.value""",
    "tags": """select k.value, t.key, t.value from tags t join runs r using (run_uuid) {keyed}
        where t.key in ('clsearch.selected', 'clsearch.chosen', 'clsearch.outcome',
        'clsearch.why', 'clsearch.model_version', 'clsearch.status')""",
    "models": """select t.tag_value, m.status from logged_models m
        join logged_model_tags t using (model_id) where t.tag_key = 'clsearch.key'""",
    "versions": """select t.value, v.name, v.version from model_versions v
        join model_version_tags t using (name, version) where t.key = 'clsearch.key'""",
    "aliases": "select name, alias, version from registered_model_aliases",
}
"""What a database of MLflow holds of a search, without random names and times."""
KEYED = """join tags k on k.run_uuid = r.run_uuid and k.key = 'clsearch.key'
    and r.lifecycle_stage = 'active'"""


def audit(database: Path) -> dict[str, list[tuple[object, ...]]]:
    """What stands in MLflow; what stands there twice is there twice."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
        return {
            name: sorted(opened.execute(query.format(keyed=KEYED))) for name, query in AUDIT.items()
        }


def artifacts(database: Path, root: Path) -> set[tuple[str, str]]:
    """The files of every run: its key, and the path in it."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
        runs = dict(opened.execute(f"select r.run_uuid, k.value from runs r {KEYED}"))
    files = (file.relative_to(root).parts for file in root.rglob("*") if file.is_file())
    return {
        (runs[part], "/".join(parts[i + 1 :]))
        for parts in files
        for i, part in enumerate(parts)
        if part in runs
    }


def once(ground: Ground, database: Path, root: Path) -> None:
    """Everything stands in MLflow as after the undisturbed run, and nothing twice."""
    assert not (ground.out / "outbox").exists()
    sound = ground.undisturbed / "mlflow.db", ground.undisturbed / "artifacts"
    assert len(audit(sound[0])["runs"]) > 1 + ground.trials
    assert audit(database) == audit(sound[0])
    assert artifacts(database, root) == artifacts(*sound)


class Mlflow:
    """A real server of MLflow with a folder of its own, at one address however often it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        folder.mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        self.process = serving(self.folder, self.port)
        answering(self.port, PATIENCE)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait(30)

    def runs(self) -> int:
        """How many runs it has so far."""
        return len(audit(self.folder / "server.db")["runs"])

    def once(self, ground: Ground) -> None:
        once(ground, self.folder / "server.db", self.folder / "server-artifacts")


@contextlib.contextmanager
def mlflow(folder: Path) -> Iterator[Mlflow]:
    started = Mlflow(folder)
    try:
        yield started
    finally:
        started.kill()


def begun(ground: Ground, *options: object, env: Mapping[str, str] | None = None) -> Driver:
    """A search with more options."""
    return ground.start("run", ground.config, "--out", ground.out, *options, env=env)


def taken(ground: Ground) -> None:
    """MLflow takes what waits when the search goes on."""
    said = ground.resume()
    assert TAKEN not in said, said


def delivering(ground: Ground, server: Mlflow) -> tuple[Driver, Mapping[str, Finished]]:
    """A search that has delivered two trials to a server; what is finished then."""
    driver = begun(ground, "--tracking-uri", server.uri)
    driver.until(lambda: server.runs() >= 4, PATIENCE)
    return driver, ground.finished()


@fault("MLflow server killed, back when the search is over", long=True)
def mlflow_killed(ground: Ground) -> Damage:
    with mlflow(ground.folder / "mlflow") as server:
        driver, before = delivering(ground, server)
        server.kill()
        ended_well(driver)
        assert TAKEN in driver.stdout
        server.start()
        taken(ground)
        server.once(ground)
    return ground.damage(1, before)


@fault("MLflow server hung when the search is interrupted", long=True)
def mlflow_hung_at_ctrl_c(ground: Ground) -> Damage:
    """The kernel takes its connections, nobody answers; later it answers them after all."""
    with mlflow(ground.folder / "mlflow") as server:
        driver, before = delivering(ground, server)
        server.send(signal.SIGSTOP)
        time.sleep(2)  # so that a request is under way
        began = time.monotonic()
        driver.process.send_signal(signal.SIGTERM)
        assert driver.wait(60) == 130, driver.stderr
        assert time.monotonic() - began < 45
        server.send(signal.SIGCONT)
        taken(ground)
        server.once(ground)
    return ground.damage(1, before)


@fault("MLflow server hung to the end of the search", long=True)
def mlflow_hung(ground: Ground) -> Damage:
    with mlflow(ground.folder / "mlflow") as server:
        driver, before = delivering(ground, server)
        server.send(signal.SIGSTOP)
        outbox = ground.out / "outbox"
        driver.until(lambda: any(outbox.glob("*-finish-*.json")), PATIENCE)
        began = time.monotonic()
        ended_well(driver)
        assert time.monotonic() - began < CLOSE + 45
        assert TAKEN in driver.stdout
        server.send(signal.SIGCONT)
        taken(ground)
        server.once(ground)
    return ground.damage(1, before)


@fault("SIGKILL of the process that delivers to MLflow", short=2, full=10, long=True)
def deliverer_killed(ground: Ground) -> Damage:
    """At random moments of its life. What has been delivered meanwhile is delivered once more, to
    a new database."""
    seed = random.randrange(1 << 30)
    print(f"moments of its deaths from seed {seed}", file=sys.stderr, flush=True)
    moments, killed, before = random.Random(seed), 0, dict[str, Finished]()
    driver = ground.start()
    until = time.monotonic() + PATIENCE
    while killed < ground.times:
        assert time.monotonic() < until
        if driver.process.poll() is not None:
            ended_well(driver)
            if not list((ground.out / "outbox").glob("*.json")):
                once(ground, ground.out / "mlflow.db", ground.out / "artifacts")
                (ground.out / "mlflow.db").unlink()
                shutil.rmtree(ground.out / "artifacts")
            driver = ground.start("resume", ground.out)
        for process in filter(_delivers, driver.descendants()):
            time.sleep(moments.uniform(0, 4))
            if _delivers(process):
                process.kill()
                killed, before = killed + 1, before or ground.finished()
        time.sleep(0.05)
    ended_well(driver)
    taken(ground)
    once(ground, ground.out / "mlflow.db", ground.out / "artifacts")
    return ground.damage(killed, before)


def _delivers(process: psutil.Process) -> bool:
    return BEGIN in arguments(process)


@fault("MLflow server's disk full", long=True)
def mlflow_full(ground: Ground) -> Damage:
    disk = ground.folder / "mlflow"
    with small_disk(disk, "64m"), mlflow(disk) as server:
        driver, before = delivering(ground, server)
        filler = fill(disk)
        ended_well(driver)
        assert TAKEN in driver.stdout
        filler.unlink()
        taken(ground)
        server.once(ground)
    return ground.damage(1, before)


@fault("disk full for MLflow's database and what waits for it", long=True)
def audit_full(ground: Ground) -> Damage:
    """The output folder's disk. The journal is elsewhere, by `--storage file:///…`."""
    store = Store((ground.folder / "journal").as_uri())
    with small_disk(ground.out, "64m"):
        driver = begun(ground, "--storage", store.root)
        driver.until(lambda: len(finished(store)) >= 2, PATIENCE)
        filler, before = fill(ground.out), finished(store)
        assert driver.wait(PATIENCE) == 1, driver.stdout
        assert "No space left on device" in driver.stderr
        said = f"Go on with: clsearch resume {ground.out}"
        assert driver.stderr.splitlines()[-1] == said
        assert "Traceback" not in driver.stderr
        filler.unlink()
        taken(ground)
        assert not (ground.out / "checkpoints" / "trials").exists()
        once(ground, ground.out / "mlflow.db", ground.out / "artifacts")
        return ground.damage(1, before, after=finished(store))


@contextlib.contextmanager
def remote(ground: Ground) -> Iterator[tuple[ObjectStore, Store, dict[str, str]]]:
    """An S3 server, a store on it, and the environment of a search that uses it."""
    with pytest.MonkeyPatch.context() as patch, object_store() as server:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield server, Store(server.address("search")), ground.environment(**CREDENTIALS)


def no_secrets(ground: Ground, *said: str) -> None:
    """The key of the object store is in no message and no file of the output folder."""
    secret = CREDENTIALS["AWS_SECRET_ACCESS_KEY"]
    files = (file.read_bytes() for file in ground.out.rglob("*") if file.is_file())
    assert not any(secret in text for text in said)
    assert not any(secret.encode() in content for content in files)


@fault("object store answering 500, then slow", long=True)
def store_with_faults(ground: Ground) -> Damage:
    with remote(ground) as (server, store, env):
        server.fail("error", every=15)
        driver = begun(ground, "--storage", store.root, env=env)
        driver.until(lambda: len(finished(store)) >= 2, PATIENCE)
        before = finished(store)
        server.fail("slow", every=10)
        ended_well(driver)
        server.fail("ok")
        assert not (ground.out / "checkpoints" / "trials").exists()
        no_secrets(ground, driver.stdout)
        shown = ground.call("status", ground.out, env=env).stdout
        assert f"{ground.trials} finished trials" in shown
        return ground.damage(1, before, after=finished(store))


@fault("object store away for longer than it is waited for", long=True)
def store_away(ground: Ground) -> Damage:
    with remote(ground) as (server, store, env):
        driver = begun(ground, "--storage", store.root, env=env)
        driver.until(lambda: len(finished(store)) >= 2, PATIENCE)
        before = finished(store)
        server.fail("error")
        assert driver.wait(PATIENCE) == 1, driver.stdout
        said = driver.stderr.splitlines()
        assert said[-1] == f"Go on with: clsearch resume {ground.out}"
        assert said[0].startswith("clsearch: cannot ")
        assert "Traceback" not in driver.stderr
        assert driver.survivors() == []
        server.fail("ok")
        ground.resume(env=env)
        no_secrets(ground, driver.stdout, driver.stderr)
        once(ground, ground.out / "mlflow.db", ground.out / "artifacts")
        return ground.damage(1, before, after=finished(store))


@fault("objects cut short, changed and missing", long=True)
def store_damaged(ground: Ground) -> Damage:
    """Of a search that is done: two trials, a commit and its measurement. They are made again."""
    with remote(ground) as (_, store, env):
        kept = ground.undisturbed / "checkpoints"
        fs.copy_files(str(kept), f"{store.base}/", destination_filesystem=store.fs)
        before = finished(store)
        chosen = json.loads((ground.undisturbed / "selections.json").read_text())
        first = chosen[0]
        won = first["trial_key"]
        other = next(c["trial_key"] for c in first["candidates"] if c["trial_key"] != won)
        (measured, *_) = (path.name for path in (kept / "measurements").iterdir())

        def cut(path: str) -> None:
            _write(store, path, _read(store, path)[:-1])

        def flip(path: str) -> None:
            content = bytearray(_read(store, path))
            content[len(content) // 2] ^= 1
            _write(store, path, bytes(content))

        flip(f"trials/{won}/model.safetensors")
        cut(f"trials/{other}/record.json")
        cut(f"commits/{first['commit']}/state.safetensors")
        store.fs.delete_file(f"{store.base}/measurements/{measured}/test.json")
        driver = begun(ground, "--storage", store.root, env=env)
        ended_well(driver)
        assert f"2 trials trained, {ground.trials - 2} taken from the journal" in driver.stdout
        return ground.damage(4, before, (won, other), after=finished(store))


def _read(store: Store, path: str) -> bytes:
    with store.fs.open_input_stream(f"{store.base}/{path}") as stream:
        content: bytes = stream.readall()
        return content


def _write(store: Store, path: str, content: bytes) -> None:
    with store.fs.open_output_stream(f"{store.base}/{path}") as stream:
        stream.write(content)
