"""Every test computes in one thread, as workers do: two beside other load come to a standstill."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Ended
from tracked import finished

from clsearch.protocols import SearchInfo
from clsearch.tracking import MLflowTracker

torch.set_num_threads(1)
# A shell has what it runs in the background ignore the first of these, and `nohup` the second:
# commands under test would ignore them too.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in this process: what is refused is refused before anything starts."""
    from clsearch.__main__ import act

    monkeypatch.delenv("CLSEARCH_DATA", raising=False)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr("sys.argv", ["clsearch", *map(str, arguments)])
        try:
            act()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        return Ended(code, *capsys.readouterr())

    return run


# Searches that a tracker is told of


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
    example = torch.rand(4, 1, 4, 4)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    torch.export.save(program, folder / "model.pt2", extra_files={"metadata.json": '{"task": 1}'})
    np.save(folder / "example.npy", example.numpy())
    return folder


@pytest.fixture(scope="session")
def figure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("figure") / "accuracy.png"
    path.write_text("<svg/>")
    return path


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs, to copy: creating one takes a second or two."""
    out = tmp_path_factory.mktemp("store")
    tracker = MLflowTracker(out)
    tracker.start(SearchInfo("none", "0" * 32, {}, []))
    assert tracker.close(60) == 0
    return out / "mlflow.db"


@pytest.fixture
def out(tmp_path: Path, empty_store: Path) -> Path:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="session")
def played(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, model: Path, figure: Path
) -> Path:
    """The output folder of a finished search. For tests that only look."""
    folder = tmp_path_factory.mktemp("played")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    finished(MLflowTracker(folder, apart=True), model, figure)
    return folder
