"""The making of an output folder's database, whatever ends it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from clsearch.mlflow_runs import SearchRuns
from clsearch.tracking import SETTINGS, store_of

MAKES = """
import sys
from clsearch.mlflow_runs import SearchRuns
SearchRuns(*sys.argv[1:], "demo", "d" * 64)
"""


@pytest.mark.parametrize("begun", [1, 300_000])
def test_one_that_is_killed_as_it_makes_the_database_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    """`begun`: bytes that are there by then."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    made, (uri, artifacts) = tmp_path / "mlflow.db", store_of(tmp_path, None)
    assert artifacts is not None
    process = subprocess.Popen([sys.executable, "-c", MAKES, uri, artifacts])
    try:
        while sum(path.stat().st_size for path in tmp_path.glob(".mlflow.db.*.tmp")) < begun:
            assert process.poll() is None
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()
    assert not made.exists()
    Path(f"{made}-journal").write_bytes(b"of one that was deleted")
    runs = SearchRuns(uri, artifacts, "demo", "d" * 64)
    runs.run("key", "name", None, {"clsearch.key": "key"}, 1)
    assert SearchRuns(uri, artifacts, "demo", "d" * 64).runs.keys() == {"key"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db"]
