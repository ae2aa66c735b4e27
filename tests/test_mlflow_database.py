"""The making of an output folder's database, whatever ends it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clsearch.mlflow_runs import SearchRuns
from clsearch.tracking import SETTINGS, store_of

DIES = """
import itertools, os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from clsearch.mlflow_runs import SearchRuns
numbers = itertools.count(1)

@event.listens_for(Engine, "before_cursor_execute")
def count(*_):
    if next(numbers) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

SearchRuns(*sys.argv[1:3], "demo", "d" * 64)
"""


@pytest.mark.parametrize("statement", [10, 150, 300])
def test_one_that_is_killed_as_it_makes_the_database_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: int
) -> None:
    """Just before one of the statements that make it."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    made, (uri, artifacts) = tmp_path / "mlflow.db", store_of(tmp_path, None)
    assert artifacts is not None
    arguments = [uri, artifacts, str(statement)]
    done = subprocess.run([sys.executable, "-c", DIES, *arguments], check=False, timeout=120)
    assert done.returncode == -9
    assert not made.exists()
    assert list(tmp_path.glob(".mlflow.db.*.tmp"))
    Path(f"{made}-journal").write_bytes(b"of one that was deleted")
    runs = SearchRuns(uri, artifacts, "demo", "d" * 64)
    runs.run("key", "name", None, {"clsearch.key": "key"}, 1)
    assert SearchRuns(uri, artifacts, "demo", "d" * 64).runs.keys() == {"key"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db"]
