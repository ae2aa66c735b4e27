"""Where MLflow's database in an output folder says that files are: in that folder alone.

MLflow keeps whole addresses. In a copy of a folder they lead to the first one, in one that was
moved to where it was, and in one that somebody else made to wherever that somebody likes.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from clsearch.errors import DamagedError, StoreError

PLAIN = re.compile(r"(m-)?[0-9a-f]{32}")
"""MLflow's ids of runs and models, which are names of folders."""
TABLES = re.compile(r"\b(experiments|runs|logged_models|model_versions)\b", re.IGNORECASE)
BUSY = 30.0
"""Seconds that another process may hold the database."""

Change = tuple[str, tuple[object, ...]]
"""A statement and its values."""


def put_right(uri: str, artifacts: str, experiment: str) -> None:
    """Has an experiment, its runs and its models keep their files under the address `artifacts`, by
    MLflow's own layout. `uri` is the database's.

    One that cannot be read is left to MLflow, which says why. Raises `DamagedError` for one that
    MLflow did not write, `StoreError` where it has to be changed and cannot be.
    """
    database = Path(uri.removeprefix("sqlite:///"))
    if not database.is_file():
        return
    with contextlib.closing(sqlite3.connect(database, BUSY)) as opened:
        try:
            changes = list(_changes(opened, artifacts, experiment))
        except sqlite3.DatabaseError:
            return
        except ValueError as error:
            raise DamagedError(f"{database} has {error}, which MLflow did not make") from error
        try:
            with opened:
                for statement, values in changes:
                    opened.execute(statement, values)
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{database} cannot be written: {error}") from error


def _changes(opened: sqlite3.Connection, artifacts: str, experiment: str) -> Iterator[Change]:
    """Raises `ValueError`, with what is odd, and whatever SQLite does."""
    odd = "select type, name, sql from sqlite_master where type in ('trigger', 'view')"
    for kind, name, text in opened.execute(odd):
        if TABLES.search(f"{name} {text}"):
            raise ValueError(f"the {kind} {name!r}")
    named = "select experiment_id, artifact_location from experiments where name = ?"
    for number, place in opened.execute(named, [experiment]).fetchall():
        if place != artifacts:
            yield "update experiments set artifact_location = ? where experiment_id = ?", (
                artifacts, number,
            )  # fmt: skip
        yield from _inside(opened, artifacts, number)


def _inside(opened: sqlite3.Connection, artifacts: str, number: int) -> Iterator[Change]:
    """The runs and models of an experiment."""
    for table, key, column, folder in (
        ("runs", "run_uuid", "artifact_uri", ""),
        ("logged_models", "model_id", "artifact_location", "models/"),
    ):
        query = f"select {key}, {column} from {table} where experiment_id = ?"
        for name, place in opened.execute(query, [number]):
            right = f"{artifacts}/{folder}{_plain(name)}/artifacts"
            if place != right:
                yield f"update {table} set {column} = ? where {key} = ?", (right, name)
    versions = """select v.rowid, v.source, v.storage_location from model_versions v
        join runs r on v.run_id = r.run_uuid where r.experiment_id = ?"""
    for row, *places in opened.execute(versions, [number]):
        model = _plain(str(places[0]).removesuffix("/artifacts").rpartition("/")[2])
        right = f"{artifacts}/models/{model}/artifacts"
        if places != [right, right]:
            change = "update model_versions set source = ?, storage_location = ? where rowid = ?"
            yield change, (right, right, row)


def _plain(name: object) -> str:
    if not PLAIN.fullmatch(str(name)):
        raise ValueError(f"the id {name!r}")
    return str(name)
