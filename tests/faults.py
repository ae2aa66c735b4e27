"""Injects every fault of the matrix for real and prints what was lost.

    python -m tests.faults [NAME …] [--short] [--list] [--undisturbed FOLDER]

NAME is a part of a fault's name; none means all. Each fault strikes a search of its own, or a copy
of one, which then has to come to the selections of a run that nothing happened to. Exit code 1
where a finished trial was lost, a selection changed, or something else was not as it has to be.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # as pytest has it

from fault_matrix import FAULTS, Damage, Fault, Reference, ground

MODULES = ("fault_local", "fault_files", "fault_services", "fault_cluster")
"""Where the faults are. Being in one of them is being in the matrix."""

ABSENT = "not here: "
"""Stands in the line of a fault that this machine cannot have."""
HEADER = (
    "| fault | times injected | trials finished before | lost | re-trained | selections equal |"
)


def registry() -> dict[str, Fault]:
    """All faults, by name."""
    for name in MODULES:
        if importlib.util.find_spec(name):
            importlib.import_module(name)
    return FAULTS


def row(name: str, damage: Damage) -> str:
    """A line of the table."""
    equal = "yes" if damage.equal else "no"
    counts = (damage.injected, damage.before, damage.lost, damage.retrained)
    return f"| {name} | {' | '.join(map(str, counts))} | {equal} |"


def struck(fault: Fault, times: int, reference: Reference) -> tuple[str, bool]:
    """Injects a fault; what to print, and whether all is well."""
    # In /tmp and short: the path of a socket may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="clsearch-fault-", dir="/tmp") as folder:
        try:
            with ground(reference, Path(folder) / "ground", times) as made:
                damage = fault.inject(made)
        except pytest.skip.Exception as reason:
            return f"| {fault.name} | {ABSENT}{reason} | | | | |", True
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - told in its line
            traceback.print_exc()
            return f"| {fault.name} | {type(error).__name__} | | | | no |", False
        return row(fault.name, damage), damage.none


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a fault's name")
    parser.add_argument("--short", action="store_true", help="as often as the tests do")
    parser.add_argument("--list", action="store_true", help="print the names of the faults")
    parser.add_argument(
        "--undisturbed", type=Path, help="folder that keeps the undisturbed run for the next time"
    )
    asked = parser.parse_args()
    wanted = [
        fault
        for fault in registry().values()
        if not asked.names or any(part.lower() in fault.name.lower() for part in asked.names)
    ]
    if asked.list or not wanted:
        print("\n".join(fault.name for fault in (wanted or FAULTS.values())))
        return 0 if asked.list else 2
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left at work
    began, sound, absent = time.monotonic(), True, 0
    with tempfile.TemporaryDirectory(prefix="clsearch-faults-", dir="/tmp") as folder:
        reference = Reference.run(asked.undisturbed or Path(folder))
        print(f"{HEADER}\n|---|---|---|---|---|---|", flush=True)
        for fault in wanted:
            times = fault.short if asked.short else fault.full
            line, well = struck(fault, times, reference)
            print(line, flush=True)
            sound = sound and well
            absent += ABSENT in line
    said = "0 lost, all equal" if sound else "NOT SOUND"
    said += f"; {absent} not injected here" * (absent > 0)
    print(f"\n{said}; {time.monotonic() - began:.0f} s")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
