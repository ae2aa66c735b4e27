"""Folders that were copied, moved, or made by somebody else: MLflow's files stay within them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import refused, write_config
from tracked import INFO, client, committed, finished, runs, trial

from clsearch.errors import DamagedError, InputError, StoreError
from clsearch.folder import check_plain
from clsearch.mlflow_places import model_place, put_right, run_place, wrong_with
from clsearch.tracking import MLflowTracker, store_of, writable_store_of


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, model: Path, figure: Path) -> Path:
    """A folder with a whole search in it."""
    out = tmp_path_factory.mktemp("first") / "out"
    finished(MLflowTracker(out), model, figure)
    return out


@pytest.fixture
def copy(first: Path, tmp_path: Path) -> Path:
    shutil.copytree(first, tmp_path / "copy")
    return tmp_path / "copy"


def change(out: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(out / "mlflow.db")) as opened, opened:
        for statement in statements:
            opened.execute(statement)


def look(out: Path) -> str:
    put_right(*filter(None, store_of(out, None)), "demo")
    return (out / "artifacts").as_uri()


def written(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def more(out: Path, model: Path, figure: Path, waits: bool = False) -> list[Path]:
    """A larger search in the folder: a selection that wins anew, and a new report; what MLflow
    refuses of it. `waits`: something stays undelivered."""
    tracker = MLflowTracker(out)
    tracker.start(replace(INFO, config={**INFO.config, "seeds": [0, 1]}))
    tracker.trial(trial(3, task=2))
    tracker.committed(committed(1, model, 2, [figure]))
    tracker.finish([figure], {}, "FINISHED")
    assert bool(tracker.close(60)) == waits
    return tracker.rejected


def test_a_copy_is_written_to_and_its_original_is_not(
    first: Path, copy: Path, model: Path, figure: Path
) -> None:
    before, own = written(first), written(copy / "artifacts")
    assert more(copy, model, figure) == []
    assert written(first) == before
    assert own < written(copy / "artifacts")
    found, root = runs(client(copy)), (copy / "artifacts").as_uri()
    assert {run.info.artifact_uri for run in found.values()} == {
        f"{root}/{run.info.run_id}/artifacts" for run in found.values()
    }
    # What was there before the copy is found in it too.
    first.rename(first.with_name("gone"))
    try:
        task = found["ewc · seed 0 · task 1"].info.run_id
        names = [file.path for file in client(copy).list_artifacts(task)]
        assert names == ["figures", "selection.json"]
        versions = client(copy).search_model_versions("name = 'demo.ewc.seed-0'")
        assert len(versions) == 3
        for version in versions:
            assert version.source.startswith(f"{root}/models/m-")
            assert (Path(version.source.removeprefix("file://")) / "MLmodel").is_file()
    finally:
        first.with_name("gone").rename(first)


@pytest.mark.parametrize(
    "statement",
    [
        "update experiments set artifact_location = '{away}' where name = 'demo'",
        "update runs set artifact_uri = '{away}'",
        "update runs set artifact_uri = artifact_uri || '/../../../../away'",
        "update logged_models set artifact_location = 's3://bucket/there'",
        "update model_versions set source = replace(source, 'copy', 'away'), storage_location = ''",
    ],
)
def test_addresses_that_lead_elsewhere_are_put_right(statement: str, copy: Path) -> None:
    look(copy)
    sound = dump(copy)
    change(copy, statement.format(away=copy.with_name("away").as_uri()))
    assert dump(copy) != sound
    look(copy)
    assert dump(copy) == sound


VALUES = ("x'ff'", "null", "7", "cast(x'ff' as text)")


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    "statements",
    [
        (
            "alter table runs rename to theirs",
            "create table runs as"
            " select {value} as run_uuid, experiment_id, artifact_uri from theirs",
        ),
        ("update model_versions set source = {value}, storage_location = {value}",),
    ],
)
def test_what_is_no_text_is_left_to_mlflow(
    statements: tuple[str, ...], value: str, copy: Path
) -> None:
    look(copy)
    change(copy, *(text.format(value=value) for text in statements))
    content = (copy / "mlflow.db").read_bytes()
    look(copy)
    assert (copy / "mlflow.db").read_bytes() == content


@pytest.mark.parametrize("value", VALUES[:-1])
def test_what_is_no_address_is_put_right(value: str, copy: Path) -> None:
    look(copy)
    sound = dump(copy)
    change(copy, f"update runs set artifact_uri = {value}")
    assert dump(copy) != sound
    look(copy)
    assert dump(copy) == sound


def test_a_database_that_cannot_be_opened_is_a_store_error(copy: Path) -> None:
    (copy / "mlflow.db").unlink()
    (copy / "mlflow.db").write_bytes(b"SQLite format 3\0" + bytes(100))
    (copy / "mlflow.db-wal").mkdir()
    with pytest.raises(StoreError, match="cannot be put right"):
        look(copy)


AWAY = (
    "update runs set artifact_uri = '{away}'",
    "update experiments set artifact_location = '{away}'",
)
"""All of a folder's files are to go elsewhere."""
RENAMED = (
    "update tags set run_uuid = '../../away'"
    " where run_uuid = (select run_uuid from runs where name like 'search%')",
    "update runs set run_uuid = '../../away' where name like 'search%'",
)
"""As the name of its folder."""


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        ((), "all"),
        (("alter table model_versions drop column storage_location",), "waits"),
        ((f"create trigger t after insert on tags begin {AWAY[0]}; end",), "all"),
        ((f"create trigger t after update on runs begin {AWAY[0]}; end",), "all"),
        (
            ("insert into runs (run_uuid, experiment_id, artifact_uri) values ('x', 1, x'ff')",),
            "all",
        ),
        (RENAMED, "refused"),
    ],
    ids=str,
)
def test_whatever_a_database_says_nothing_is_written_elsewhere(
    statements: tuple[str, ...], told: str, copy: Path, model: Path, figure: Path
) -> None:
    """It may have been made so that it cannot be put right."""
    away = copy.with_name("away")
    away.mkdir()
    change(copy, *(text.format(away=away.as_uri()) for text in (*AWAY, *statements)))
    own = written(copy / "artifacts")
    refused = more(copy, model, figure, waits=told == "waits")
    assert bool(refused) == (told == "refused")
    assert (own < written(copy / "artifacts")) == (told == "all")
    assert written(away) == set()
    assert sorted(path.name for path in copy.parent.iterdir()) == ["away", "copy"]


def test_mlflow_by_itself_would_write_there(copy: Path) -> None:
    away = copy.with_name("away")
    change(copy, *(text.format(away=away.as_uri()) for text in AWAY))
    look = client(copy)
    look.log_text(runs(look)["ewc · seed 0 · task 1"].info.run_id, "text", "there.txt")
    assert written(away) == {Path("there.txt")}


def test_an_id_that_mlflow_did_not_make_is_named_and_its_entry_set_aside(
    copy: Path, model: Path, figure: Path
) -> None:
    change(copy, *RENAMED)
    rejected = more(copy, model, figure)
    reasons = [json.loads(path.read_text())["reason"] for path in rejected]
    assert reasons
    assert all("../../away" in reason for reason in reasons), reasons


@pytest.mark.parametrize("place_of", [model_place, run_place])
def test_a_folder_has_the_name_of_an_id_of_mlflows_alone(place_of: Callable[..., str]) -> None:
    assert place_of("file:///a", "0" * 32).endswith(f"{'0' * 32}/artifacts")
    for name in ("../../away", "m-", "0" * 31, "0" * 33, "", None, b"0" * 32):
        with pytest.raises(DamagedError, match="an id that MLflow did not make"):
            place_of("file:///a", name)


def test_models_that_users_make_of_others_stay_as_they_are(
    copy: Path, model: Path, figure: Path
) -> None:
    look = client(copy)
    promoted = look.copy_model_version("models:/demo.ewc.seed-0/1", "production")
    run = runs(look)["ewc · seed 0 · task 1"].info
    place = f"{run.artifact_uri}/figures"
    look.create_registered_model("figures")
    look.create_model_version("figures", place, run.run_id)
    source = look.get_model_version("demo.ewc.seed-0", "1").source
    inner, bucket = f"{source}/data", f"s3://bucket/models/{source.split('/')[-2]}/artifacts"
    for name, made in (("inner", inner), ("bucket", bucket)):
        look.create_registered_model(name)
        look.create_model_version(name, made, run.run_id)
    assert more(copy, model, figure) == []
    assert look.get_model_version("production", "1").source == promoted.source
    assert look.get_model_version("figures", "1").source == place
    assert look.get_model_version("inner", "1").source == inner
    assert look.get_model_version("bucket", "1").source == bucket
    # What was made of one in here is in here.
    root = (copy / "artifacts").as_uri()
    assert look.get_model_version_download_uri("production", "1").startswith(f"{root}/models/m-")


def dump(out: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(out / "mlflow.db")) as opened:
        return list(opened.iterdump())


def test_a_database_that_is_right_is_not_written_to(copy: Path) -> None:
    look(copy)
    (copy / "mlflow.db").chmod(0o400)
    with contextlib.closing(sqlite3.connect(copy / "mlflow.db")) as busy:
        busy.execute("begin immediate")  # another process writes
        look(copy)


def test_one_that_cannot_be_put_right_is_a_store_error(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clsearch.mlflow_places.BUSY", 0.1)
    with contextlib.closing(sqlite3.connect(copy / "mlflow.db")) as busy:
        busy.execute("begin immediate")
        with pytest.raises(StoreError, match="cannot be put right: database is locked"):
            look(copy)
    content = (copy / "mlflow.db").read_bytes()
    for damage in (b"", b"no database", content[: len(content) // 3]):
        (copy / "mlflow.db").write_bytes(damage)
        told = pytest.raises(StoreError, match=r"mlflow\.db is damaged .* Move it away, and resume")
        with told if damage else contextlib.nullcontext():  # an empty file is an empty database
            look(copy)
        assert (copy / "mlflow.db").read_bytes() == damage
    (copy / "mlflow.db").unlink()
    look(copy)
    assert not (copy / "mlflow.db").exists()


@pytest.mark.parametrize("act", [look, lambda out: wrong_with(out / "mlflow.db", own=True)])
def test_an_interrupt_is_heard_while_a_busy_database_is_waited_for(
    act: Callable[[Path], str], copy: Path
) -> None:
    own = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    try:
        with contextlib.closing(sqlite3.connect(copy / "mlflow.db")) as busy:
            busy.execute("begin exclusive")
            interrupt.start()
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                act(copy)
            assert time.monotonic() - began < 10
    finally:
        interrupt.cancel()
        signal.signal(signal.SIGINT, own)


def test_a_search_leaves_a_database_of_something_else_alone(tmp_path: Path, call: Any) -> None:
    database = tmp_path / "mlflow.db"
    uri = f"sqlite:///{database}"
    for content in (b"", None):  # where there is nothing, MLflow makes its tables
        if content is not None:
            database.write_bytes(content)
        assert writable_store_of(tmp_path, uri) == (uri, None)
        database.unlink(missing_ok=True)
    change(tmp_path, "create table t (i integer primary key autoincrement)", "drop table t")
    assert writable_store_of(tmp_path, uri) == (uri, None)  # what SQLite made for itself stays
    config, out = write_config(tmp_path / "c.yaml"), tmp_path / "out"
    for other in (
        "view experiments as select 1 as artifact_location",
        "table experiments (name)",
        "table runs (name)",
    ):
        change(tmp_path, f"create {other}")
        before = database.read_bytes()
        for more in ((), ("--dry-run",)):
            ended = call("run", config, "--out", out, "--tracking-uri", uri, *more)
            refused(ended, "tracking.uri", uri, f"{database} has tables, and not those of MLflow")
            assert database.read_bytes() == before
            assert not (out / "config.yaml").exists()
        database.unlink()
    change(tmp_path, "create table experiments (artifact_location)")  # another search makes it
    assert writable_store_of(tmp_path, uri) == (uri, None)
    database.write_bytes(b"damage" * 100)
    with pytest.raises(InputError, match=r"tracking\.uri.*mlflow\.db is damaged"):
        MLflowTracker(tmp_path, uri)


def test_a_search_says_which_database_is_busy(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clsearch.mlflow_places.LOOK", 0.1)
    database, config = tmp_path / "mine.db", write_config(tmp_path / "c.yaml")
    with contextlib.closing(sqlite3.connect(database)) as busy:
        busy.execute("begin exclusive")
        for more in ((), ("--dry-run",)):
            uri = f"sqlite:///{database}"
            ended = call("run", config, "--out", tmp_path / "out", "--tracking-uri", uri, *more)
            assert (ended.code, ended.out) == (1, "")
            told = f"clsearch: {database} cannot be read: database is locked. "
            first, *rest = ended.err.splitlines()
            assert first == f"{told}Another program holds it: try again when that is over."
            assert all(line == "Nothing was written." for line in rest)


BOUNDED = """
import resource, sys
from clsearch.mlflow_places import put_right
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
put_right(sys.argv[1], "file:///x", "demo")
"""


def test_rows_without_end_are_not_read(tmp_path: Path) -> None:
    """They would be more than fits into its memory."""
    count = "with recursive n(i) as (select 1 union all select i + 1 from n)"
    named = "select i as experiment_id, 'x' as artifact_location, 'demo' as name from n"
    change(tmp_path, f"create view experiments as {count} {named}")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    subprocess.run([sys.executable, "-c", BOUNDED, uri], check=True, timeout=60)


def test_no_trigger_is_set_off(copy: Path) -> None:
    change(
        copy,
        "create table seen (x)",
        "create trigger t after update on runs begin insert into seen values (1); end",
        "update runs set artifact_uri = 'file:///away'",
        "delete from seen",
    )
    look(copy)
    with contextlib.closing(sqlite3.connect(copy / "mlflow.db")) as opened:
        assert opened.execute("select count(*) from seen").fetchone() == (0,)


def test_links_among_the_artifacts_are_refused(copy: Path) -> None:
    check_plain(copy, "out")
    models = copy / "artifacts" / "models"
    inner = next(models.iterdir()) / "artifacts"
    for link in (inner / "link", models / "link", copy / "artifacts" / "link"):
        link.symlink_to(copy.parent)
        with pytest.raises(InputError, match=f"{link} is one"):
            check_plain(copy, "out")
        link.unlink()
    models.rename(copy.with_name("models"))
    models.symlink_to(copy.with_name("models"))
    with pytest.raises(InputError, match="without links"):
        check_plain(copy, "out")


def test_a_journal_that_would_delete_another_file_is_refused(copy: Path) -> None:
    """SQLite deletes the journal that one names, when the database is opened next."""
    (copy / "mlflow.db-journal").write_bytes(bytes(1024))  # as a killed process leaves one
    check_plain(copy, "out")
    (copy / "mlflow.db-journal").write_bytes(bytes(1016) + bytes.fromhex("d9d505f920a163d7"))
    with pytest.raises(InputError, match="SQLite would delete the file that it names"):
        check_plain(copy, "out")
