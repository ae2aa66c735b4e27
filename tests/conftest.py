"""Every test computes in one thread, as workers do: two beside other load come to a standstill."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch
from command import Ended

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
