"""The quickstart as README's first line runs it: seconds, and the memory of all its processes.

    python -m benchmarks.quickstart [--out DIR] [--record FILE]

Memory is what driver and workers hold at most, looked at twice a second: resident bytes without
shared ones, and without Ray's daemons. `--record` also writes figures and output as JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks._machine import machine

ROOT = Path(__file__).parent.parent
RAYS_OWN = ("raylet", "gcs_server", "agent", "log_monitor", "monitor", "dashboard")
SECONDS, BYTES = 90.0, 2 << 30
"""Limits."""


def own_memory(process: psutil.Process) -> int:
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


def measure(out: Path) -> dict[str, Any]:
    """Runs the quickstart in `out`: exit `code`, printed `text`, `seconds`, `memory` in bytes."""
    command = [sys.executable, "-m", "clsearch", "run", "experiments/quickstart.yaml"]
    began, most = time.monotonic(), 0
    printed: list[str] = []
    with subprocess.Popen(
        [*command, "--out", str(out.absolute())], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        stdout = process.stdout
        assert stdout is not None
        reader = threading.Thread(target=lambda: printed.append(stdout.read()))
        reader.start()
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            most = max(most, own_memory(watched))
            time.sleep(0.5)
        reader.join()
    seconds = time.monotonic() - began
    text = "".join(printed)
    return {"code": process.returncode, "text": text, "seconds": seconds, "memory": most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="output folder; default a temporary one")
    parser.add_argument("--record", type=Path, help="JSON file for figures and output")
    given = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out or Path(temporary) / "quickstart"
        found = measure(out)
    print(found["text"], end="")
    print(
        f"{found['seconds']:.0f} s (limit {SECONDS:.0f}), "
        f"{found['memory'] / 2**30:.2f} GiB (limit {BYTES / 2**30:.0f})"
    )
    if given.record:
        given.record.write_text(json.dumps({**found, "out": str(out.absolute())}))
    sys.exit(found["code"])


if __name__ == "__main__":
    main()
