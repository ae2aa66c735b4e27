"""Reports drawn by two processes: the same bytes, whatever becomes of the second."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pytest
from test_report_content import searched

from clsearch import reporting
from clsearch.report import drawing


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run."""
    methods = [{"name": "clnp"}, {"name": "ewc"}]
    return searched(tmp_path_factory.mktemp("drawn") / "run", methods=methods)


@pytest.fixture(scope="module")
def alone(out: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a report that one process draws."""
    return files(reporting.report([out], tmp_path_factory.mktemp("alone")))


def files(written: Sequence[Path]) -> dict[str, bytes]:
    folder = written[0].parent
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def ended(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """How helpers end from now on."""
    codes: list[int | None] = []
    end = drawing.Helper.end

    def noted(helper: drawing.Helper) -> None:
        codes.append(helper.process.poll())
        end(helper)

    monkeypatch.setattr(drawing.Helper, "end", noted)
    return codes


def test_two_processes_draw_the_same(
    monkeypatch: pytest.MonkeyPatch, out: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    monkeypatch.setattr(reporting, "WORTH", -1)
    monkeypatch.setattr(reporting, "cores", lambda: 2)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 23.0)  # a notebook's own
    codes = ended(monkeypatch)
    assert files(reporting.report([out], tmp_path / "report")) == alone
    assert codes == [0]
    assert matplotlib.rcParams["font.size"] == 23.0


BEGUN = (
    "import pathlib, os, signal, sys; said = sys.stdin.buffer.read().partition(b'\\n')[2];"
    "(pathlib.Path(os.fsdecode(said)) / 'accuracy.png').touch(); "
)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ([sys.executable, "-c", BEGUN + "sys.exit(1)"], 1),
        ([sys.executable, "-c", BEGUN + "os.kill(os.getpid(), signal.SIGKILL)"], -signal.SIGKILL),
        ([sys.executable, "-c", "import sys; sys.exit(3)"], 3),
        (["/nowhere/python"], None),
    ],
    ids=["fails", "is killed", "is gone at once", "does not start"],
)
def test_a_helper_that_fails_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    alone: dict[str, bytes],
    tmp_path: Path,
    command: list[str],
    code: int | None,
) -> None:
    monkeypatch.setattr(reporting, "_helper", lambda outs: command)
    codes = ended(monkeypatch)
    assert files(reporting.report([out], tmp_path / "report")) == alone
    assert codes == ([] if code is None else [code])


def test_a_helper_draws_nothing_of_a_run_that_went_on(
    monkeypatch: pytest.MonkeyPatch, out: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """It reads the run a moment later than the first process."""
    monkeypatch.setattr(reporting, "WORTH", -1)
    monkeypatch.setattr(reporting, "cores", lambda: 2)
    monkeypatch.setattr(reporting, "_state", lambda outs: "of another moment")
    shared: list[str] = []
    share = drawing.share
    monkeypatch.setattr(
        drawing, "share", lambda *args: shared.extend(drawn := share(*args)) or drawn
    )
    assert files(reporting.report([out], tmp_path / "report")) == alone
    assert len(shared) == sum(name.endswith(".svg") for name in alone)


def test_a_helper_imports_nothing_from_where_it_is_called(
    monkeypatch: pytest.MonkeyPatch, out: Path, tmp_path: Path
) -> None:
    """Who wrote an output folder must not run code."""
    marker = tmp_path / "marker"
    for name in ("numpy", "clsearch", "torch"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')")
    monkeypatch.setattr(reporting, "WORTH", -1)
    monkeypatch.setattr(reporting, "cores", lambda: 2)
    done = subprocess.run(
        reporting._helper([out]), cwd=tmp_path, input=b"", capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert not marker.exists()
