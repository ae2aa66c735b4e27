"""The quickstart as a user runs it: what it must reach, and what its numbers must say."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from clsearch.metrics import average_accuracy, average_forgetting

ROOT = Path(__file__).parent.parent
RAYS_OWN = ("raylet", "gcs_server", "agent", "log_monitor", "monitor", "dashboard")
LIMIT = 2 << 30


def _own_memory(process: psutil.Process) -> int:
    """Resident bytes of a process and its children, without Ray's daemons.

    Shared memory (Ray's object store, mapped by all) is counted once, with the daemon that has it.
    """
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            command = " ".join(one.cmdline()[:3])
            if not any(name in command for name in RAYS_OWN):
                memory = one.memory_info()
                total += memory.rss - getattr(memory, "shared", 0)
        except psutil.Error:
            continue
    return total


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    command = [sys.executable, "-m", "clsearch", "run", "experiments/quickstart.yaml"]
    began, most = time.monotonic(), 0
    with subprocess.Popen(
        [*command, "--out", str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        printed: list[str] = []
        reader = threading.Thread(target=lambda: printed.append(process.stdout.read()))  # type: ignore[union-attr]
        reader.start()
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            most = max(most, _own_memory(watched))
            time.sleep(0.5)
        reader.join()
    return {
        "out": out,
        "code": process.returncode,
        "text": "".join(printed),
        "seconds": time.monotonic() - began,
        "memory": most,
        "matrix": json.loads((out / "accuracy_matrix.json").read_bytes()),
    }


@pytest.mark.slow
def test_it_finishes_and_prints_the_table(quickstart: dict[str, Any]) -> None:
    assert quickstart["code"] == 0
    for words in ("finetune", "ewc", "mas", "clnp", "160 trials trained", "clsearch export"):
        assert words in quickstart["text"]


@pytest.mark.slow
def test_memory_stays_within_the_limit(quickstart: dict[str, Any]) -> None:
    assert quickstart["memory"] < LIMIT, f"{quickstart['memory'] / 2**30:.2f} GiB"


@pytest.mark.slow
def test_clnp_forgets_exactly_nothing(quickstart: dict[str, Any]) -> None:
    rows = quickstart["matrix"]["clnp"]["0"]
    assert len(rows) == 5
    for i, row in enumerate(rows):
        assert row[:i] == rows[i - 1][:i] if i else True
    assert average_forgetting(rows) == 0.0


@pytest.mark.slow
def test_finetune_forgets_most_and_ewc_and_mas_lie_between(quickstart: dict[str, Any]) -> None:
    forgetting = {m: average_forgetting(r["0"]) for m, r in quickstart["matrix"].items()}
    accuracy = {m: average_accuracy(r["0"]) for m, r in quickstart["matrix"].items()}
    assert forgetting["finetune"] > 0.2
    for method in ("ewc", "mas"):
        assert 0.0 < forgetting[method] < forgetting["finetune"]
        assert accuracy["finetune"] < accuracy[method] < accuracy["clnp"]


@pytest.mark.slow
def test_test_accuracy_is_within_sight_of_validation(quickstart: dict[str, Any]) -> None:
    """The stored CLNP models answer as well on test data as their selection promised, to a few
    points: a few hundred samples have a standard error of about one."""
    selections = json.loads((quickstart["out"] / "selections.json").read_bytes())
    for s in selections:
        if s["method"] == "clnp":
            test = quickstart["matrix"]["clnp"]["0"][s["task"] - 1][s["task"] - 1]
            assert abs(test - s["accuracy"]) < 0.06
