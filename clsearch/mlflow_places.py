"""Where files are by MLflow's database in an output folder, put right in a copy of the folder.

MLflow keeps whole addresses: those of a folder that was copied or moved lead to where it was. What
is written goes into the folder whatever they say (`mlflow_runs`); they are for who reads.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from clsearch.addresses import database_of
from clsearch.errors import DamagedError, StoreError

ID = re.compile(r"(m-)?[0-9a-f]{32}")
"""MLflow's ids of runs and models, which are names of folders."""
MODEL = re.compile(r"file:.*/models/(m-[0-9a-f]{32})/artifacts")
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""What SQLite says of a damaged database; of one without these tables, SQLITE_ERROR."""
TABLES = ("experiments", "runs", "logged_models", "model_versions")
AGAIN = "Move it away, and resume the run: what this search has delivered is delivered again"
"""What helps where an output folder's own database is damaged."""
FOREIGN = f"""select 1 from sqlite_master
    where type in ('view', 'trigger') and lower(tbl_name) in {TABLES}"""
_TABLES = "select name from sqlite_master where type = 'table'"
_EMPTY = """select 1 where not exists (select 1 from sqlite_master
    where type in ('table', 'view') and name not like 'sqlite!_%' escape '!')"""
_MLFLOWS = """select 1 from sqlite_master as made, pragma_table_info('experiments') as part
    where made.type = 'table' and made.name = 'experiments' and part.name = 'artifact_location'"""
"""The table that MLflow makes first, in all its versions."""
BUSY, LOOK, STEP = 30.0, 5.0, 0.25
"""Seconds that another process may hold the database while it is put right, and while it is looked
at, for which somebody waits; and of one wait of SQLite's, in which no Ctrl-C is heard."""

T = TypeVar("T")

Change = tuple[str, tuple[object, ...]]
"""A statement and its values."""


def run_place(root: str, run: str) -> str:
    """Where the files of a run are, by MLflow's layout. Raises `DamagedError` for a run whose id is
    not one of MLflow's."""
    return f"{root}/{_checked(run)}/artifacts"


def model_place(root: str, model: str) -> str:
    """Where the files of a model are, by MLflow's layout. Raises `DamagedError` as above."""
    return f"{root}/models/{_checked(model)}/artifacts"


def _checked(name: object) -> str:
    if not ID.fullmatch(str(name)):
        raise DamagedError(f"MLflow's database has an id that MLflow did not make: {name!r}")
    return str(name)


def wrong_with(database: Path, own: bool) -> str:
    """Why a file of SQLite is no store of MLflow, and what helps; empty if it is one. MLflow itself
    would make one of any. Only an output folder's `own` is written to, where a process that was
    killed has left something to take back. Raises `StoreError` for one that is busy."""

    def tables(opened: sqlite3.Connection) -> set[str]:
        return {name for (name,) in opened.execute(_TABLES)}

    try:
        mode = "rw" if own else "ro"
        found = _transaction(f"{_address(database)}?mode={mode}", tables, LOOK)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        code = _code(error, sqlite3.SQLITE_CORRUPT)
        if code in DAMAGED:
            return f"is damaged ({error}). {AGAIN if own else 'Put a sound copy in its place'}"
        if code == sqlite3.SQLITE_READONLY:
            return (
                "was left by a process that was killed as it wrote. Resume the run: that mends it"
            )
        raise StoreError(f"{database} cannot be read: {error}") from error
    if found.issuperset(TABLES):
        return ""
    step = "Resume the run, which makes it one" if own else "Give `tracking.uri` one that is"
    return f"is no database of MLflow's. {step}"


def not_mlflows(database: Path) -> str:
    """Why MLflow may not make its tables in a file of SQLite; empty where it may, for its own,
    whatever its version, and for one that cannot be read, of which MLflow will say so. Raises
    `StoreError` for one that is busy."""

    def free_or_mlflows(opened: sqlite3.Connection) -> bool:
        return bool(opened.execute(_EMPTY).fetchone() or opened.execute(_MLFLOWS).fetchone())

    try:
        free = _transaction(f"{_address(database)}?mode=ro", free_or_mlflows, LOOK)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        code = _code(error, sqlite3.SQLITE_CORRUPT)
        if code == sqlite3.SQLITE_BUSY:
            step = "Another program holds it: try again when that is over."
            raise StoreError(f"{database} cannot be read: {error}. {step}") from error
        return f"is damaged ({error})" if code in DAMAGED else ""
    return "" if free else "has tables, and not those of MLflow"


def _address(database: Path) -> str:
    return f"file:{quote(os.fsencode(database.absolute()))}"


def _code(error: Exception, none: int = sqlite3.SQLITE_ERROR) -> int:
    """SQLite's code. Text that is none has `none`: Python says that, not SQLite."""
    return int(getattr(error, "sqlite_errorcode", none)) & 0xFF


def _transaction(address: str, act: Callable[[sqlite3.Connection], T], patience: float) -> T:
    """What `act` returns, whose changes of a database all happen, or none. Raises `sqlite3.Error`,
    of one that is busy after so many seconds."""
    end = time.monotonic() + patience
    while True:
        with contextlib.closing(sqlite3.connect(address, STEP, uri=True)) as opened:
            try:
                with opened:
                    return act(opened)
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise


def put_right(uri: str, root: str, experiment: str) -> None:
    """Has the addresses of an experiment, its runs and its models begin with `root`, in the
    database at `uri`. Those that are not of MLflow's layout stay, as does a database that is empty,
    or has what MLflow does not make: views in place of these tables, whose rows may have no end,
    and triggers on them. Raises `StoreError` for one that is damaged, busy or cannot be written."""
    database = database_of(uri)
    if database is None or not database.is_file():
        return

    def change(opened: sqlite3.Connection) -> None:
        if opened.execute(FOREIGN).fetchone():
            return
        for statement, values in list(_changes(opened, root, experiment)):
            opened.execute(statement, values)

    try:
        _transaction(_address(database), change, BUSY)
    except UnicodeDecodeError:
        pass  # what SQLite says of the damage quotes it
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.DatabaseError as error:
        code = _code(error)
        if code in DAMAGED:
            raise StoreError(f"{database} is damaged ({error}). {AGAIN}") from error
        if code != sqlite3.SQLITE_ERROR:
            raise StoreError(f"{database} cannot be put right: {error}") from error


def _changes(opened: sqlite3.Connection, root: str, experiment: str) -> Iterator[Change]:
    """What differs. A model version of ours gets source and place; one that a user made of it has
    the version as its source, and gets the place alone."""
    named = "select experiment_id, artifact_location from experiments where name = ?"
    for number, place in opened.execute(named, [experiment]).fetchall():
        if place != root:
            change = "update experiments set artifact_location = ? where experiment_id = ?"
            yield change, (root, number)
        for table, key, column, place_of in (
            ("runs", "run_uuid", "artifact_uri", run_place),
            ("logged_models", "model_id", "artifact_location", model_place),
        ):
            query = f"select {key}, {column} from {table} where experiment_id = ?"
            change = f"update {table} set {column} = ? where {key} = ?"
            for name, now in opened.execute(query, [number]):
                if _match(ID, name) and now != place_of(root, name):
                    yield change, (place_of(root, name), name)
        query = """select v.rowid, v.source, v.storage_location from model_versions v
            join runs r on v.run_id = r.run_uuid where r.experiment_id = ?"""
        change = "update model_versions set source = ?, storage_location = ? where rowid = ?"
        for row, source, stored in opened.execute(query, [number]):
            ours = _match(MODEL, source)
            if model := ours or _match(MODEL, stored):
                right = model_place(root, model[1])
                said = right if ours else source
                if (source, stored) != (said, right):
                    yield change, (said, right, row)


def _match(pattern: re.Pattern[str], value: object) -> re.Match[str] | None:
    """How a pattern matches the whole of a value, which can be anything, whatever its column."""
    return pattern.fullmatch(value) if isinstance(value, str) else None
