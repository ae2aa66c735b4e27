"""Real faults on real searches: whatever is killed, cut off or broken, the selections stay.

The faults are those of `python -m tests.faults`, each injected as often as it is `short`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from command import write_config
from fault_matrix import Fault, Reference, ground
from faults import registry

pytestmark = pytest.mark.timeout(600)

TESTED = [
    pytest.param(fault, id=name, marks=pytest.mark.long if fault.long else pytest.mark.slow)
    for name, fault in registry().items()
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference.run(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("fault", TESTED)
def test_nothing_is_lost(fault: Fault, reference: Reference, tmp_path: Path) -> None:
    with ground(reference, tmp_path / "ground", fault.short) as made:
        damage = fault.inject(made)
    print(damage)
    assert damage.injected >= 1
    assert damage.none, damage


@pytest.mark.long
def test_trials_that_fail_leave_the_others_alone(reference: Reference, tmp_path: Path) -> None:
    """A method that breaks, of tests/injection, comes in as a plug-in."""

    def faulty(label: str, fault: str) -> dict[str, object]:
        options = {"fault": fault, "marker": str(tmp_path / label)}
        return {"name": "faulty", "label": label, "options": options, "grid": {"lr": [0.003]}}

    config = write_config(
        tmp_path / "c.yaml",
        scenario={"name": "permuted", "source": "digits", "tasks": 1},
        methods=[
            {"name": "finetune", "grid": {"lr": [0.003, 1e30]}},
            faulty("raises", "raise"),
            faulty("dies-once", "once"),
            faulty("dies", "always"),
        ],
    )
    out = tmp_path / "out"
    with ground(reference, tmp_path / "ground", 1) as made:
        done = made.call("run", config, "--out", out)
    assert done.returncode == 1
    assert done.stderr.startswith("clsearch: 2 of 4 chains failed; the first: ")
    assert len(done.stderr.splitlines()) == 1
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    by_label = {(r["method"], r["hp_lr"]): r for r in rows}
    assert by_label["finetune", 0.003]["status"] == "COMPLETE"
    diverged = by_label["finetune", 1e30]
    assert diverged["status"] == "FAILED"
    assert diverged["reason"]
    raised = by_label["raises", 0.003]
    assert (raised["status"], raised["reason"]) == (
        "FAILED", "RuntimeError: the sensor is unplugged",
    )  # fmt: skip
    died = by_label["dies", 0.003]
    assert (died["status"], died["reason"]) == ("FAILED", "its worker died again and again")
    once = by_label["dies-once", 0.003]
    assert once["status"] == "COMPLETE"
    assert once["validation_accuracy"] == by_label["finetune", 0.003]["validation_accuracy"]
    selections = json.loads((out / "selections.json").read_bytes())
    outcomes = {s["method"]: s["outcome"] for s in selections}
    assert outcomes == {
        "finetune": "selected", "raises": "failed", "dies-once": "selected", "dies": "failed",
    }  # fmt: skip
    assert (out / "report" / "index.md").is_file()


def test_this_python_sees_psutils_processes() -> None:
    """The checks for survivors find a process that survives."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        gone, alive = psutil.wait_procs([psutil.Process(process.pid)], timeout=0.1)
        assert (len(gone), len(alive)) == (0, 1)
    finally:
        process.kill()
        process.wait()
