"""Folders that were copied, moved, or made by somebody else: MLflow's files stay within them."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from test_tracking import (  # noqa: F401
    INFO,
    client,
    committed,
    figure,
    finished,
    model,
    runs,
    trial,
)

from clsearch.errors import DamagedError, InputError, StoreError
from clsearch.folder import check_plain
from clsearch.mlflow_places import put_right
from clsearch.tracking import MLflowTracker, store_of


@pytest.fixture(scope="module")
def first(
    tmp_path_factory: pytest.TempPathFactory,
    model: Path,  # noqa: F811
    figure: Path,  # noqa: F811
) -> Path:
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


def more(out: Path, model: Path, figure: Path) -> None:  # noqa: F811
    """A larger search in the folder: a selection that wins anew, and a new report."""
    tracker = MLflowTracker(out)
    tracker.start(replace(INFO, config={**INFO.config, "seeds": [0, 1]}))
    tracker.trial(trial(3, task=2))
    tracker.committed(committed(1, model, 2, [figure]))
    tracker.finish([figure], {}, "FINISHED")
    assert tracker.close(60) == 0, tracker.problem


def test_a_copy_is_written_to_and_its_original_is_not(
    first: Path,
    copy: Path,
    model: Path,  # noqa: F811
    figure: Path,  # noqa: F811
) -> None:
    before, own = written(first), written(copy / "artifacts")
    more(copy, model, figure)
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
        "update experiments set artifact_location = 'file:{away}' where name = 'demo'",
        "update runs set artifact_uri = 'file://{away}'",
        "update runs set artifact_uri = artifact_uri || '/../../../../{away}'",
        "update logged_models set artifact_location = 's3://bucket/there'",
        "update model_versions set source = replace(source, 'copy', 'away'), storage_location = ''",
    ],
)
def test_addresses_that_lead_elsewhere_are_put_right(
    statement: str,
    copy: Path,
    model: Path,  # noqa: F811
    figure: Path,  # noqa: F811
) -> None:
    away = copy.with_name("away")
    away.mkdir()
    look(copy)
    sound = dump(copy)
    change(copy, statement.format(away=away))
    assert dump(copy) != sound
    look(copy)
    assert dump(copy) == sound
    change(copy, statement.format(away=away))
    more(copy, model, figure)
    assert written(away) == set()


def dump(out: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(out / "mlflow.db")) as opened:
        return list(opened.iterdump())


@pytest.mark.parametrize(
    ("statement", "odd"),
    [
        ("update runs set run_uuid = '../../x' where name like 'search%'", "the id '../../x'"),
        ("update logged_models set model_id = '/etc' || substr(model_id, 1, 5)", "the id '/etc"),
        ("update model_versions set source = '/etc/passwd'", "the id 'passwd'"),
        (
            "create trigger t after insert on tags begin update RUNS set artifact_uri = 'x'; end",
            "the trigger 't'",
        ),
        ("create view v as select * from runs", "the view 'v'"),
    ],
)
def test_what_mlflow_did_not_make_is_refused_and_left(statement: str, odd: str, copy: Path) -> None:
    change(copy, "pragma foreign_keys = off", statement)
    before = dump(copy)
    with pytest.raises(DamagedError, match="which MLflow did not make") as refused:
        look(copy)
    assert odd in str(refused.value)
    assert dump(copy) == before


def test_a_database_that_is_right_is_not_written_to(copy: Path) -> None:
    look(copy)
    (copy / "mlflow.db").chmod(0o400)
    with contextlib.closing(sqlite3.connect(copy / "mlflow.db")) as busy:
        busy.execute("begin immediate")  # another process writes
        look(copy)


def test_one_that_cannot_be_put_right_is_a_store_error_and_damage_is_left_to_mlflow(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clsearch.mlflow_places.BUSY", 0.1)
    with contextlib.closing(sqlite3.connect(copy / "mlflow.db")) as busy:
        busy.execute("begin immediate")
        with pytest.raises(StoreError, match="cannot be written: database is locked"):
            look(copy)
    content = (copy / "mlflow.db").read_bytes()
    for damage in (b"", b"no database", content[: len(content) // 3]):
        (copy / "mlflow.db").write_bytes(damage)
        look(copy)
        assert (copy / "mlflow.db").read_bytes() == damage
    (copy / "mlflow.db").unlink()
    look(copy)
    assert not (copy / "mlflow.db").exists()


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
