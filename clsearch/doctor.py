"""What `clsearch doctor` looks at: each edge really tried, one line each, and what to mend."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from clsearch.errors import ClsearchError, InputError
from clsearch.files import cores
from clsearch.memory import free_memory, machine_memory

if TYPE_CHECKING:
    from clsearch.data.base import Source

FREE_DISK = 5 << 30
"""Bytes below which a disk is called short: some thousands of checkpoints of a middling model."""

FREE_MEMORY = 2 << 30
"""Bytes of memory a run takes beside Ray's own."""

PATIENCE = 120
"""Seconds Ray or MLflow may take to start."""

_RAY = """
from clsearch.config import ResourcesConfig
from clsearch.search.ray_backend import RaySearcher
searcher = RaySearcher(ResourcesConfig(workers=1, device="cpu"))
try:
    print(searcher.try_out())
finally:
    searcher.close()
"""

_MLFLOW = """
import sys
from pathlib import Path
from clsearch.protocols import SearchInfo
from clsearch.tracking import MLflowTracker
tracker = MLflowTracker(Path(sys.argv[1]), apart=True)
tracker.start(SearchInfo("doctor", "doctor", {}, []))
waiting = tracker.close(60.0)
sys.exit(f"it did not take {waiting} entries: {tracker.problem}" if waiting else 0)
"""


@dataclass(frozen=True)
class Finding:
    """One line of the examination; `mend` says what to do, and is empty where all is well."""

    what: str
    found: str
    mend: str = ""


def examine(data: Path | None, console: Console) -> int:
    """Prints what was found, line by line; returns 0, or 1 if something has to be mended."""
    to_mend = 0
    for look in (_versions, _devices, _ray, _mlflow, lambda: _data(data), _disk):
        for finding in look():
            to_mend += bool(finding.mend)
            word = "mend" if finding.mend else "OK  "
            console.print(
                f"{word} {finding.what}: {finding.found}",
                soft_wrap=True, markup=False, highlight=False,
            )  # fmt: skip
            if finding.mend:
                console.print(
                    f"       {finding.mend}", soft_wrap=True, markup=False, highlight=False
                )
    console.print(f"{to_mend} to mend." if to_mend else "Nothing to mend.", highlight=False)
    return 1 if to_mend else 0


def _versions() -> Iterator[Finding]:
    version = platform.python_version()
    mend = "" if sys.version_info >= (3, 11) else "Install Python 3.11 or newer."
    yield Finding("python", version, mend)
    wanted = {
        re.split(r"[\s\[<>=!~;(]", line)[0]: line
        for line in importlib.metadata.requires("clsearch") or ()
        if "extra ==" not in line
    }
    for name in ("torch", "torchvision", "ray", "mlflow", "pyarrow"):
        line = wanted.get(name, name).replace('"', "")
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "not installed", f"pip install '{line}'")
            continue
        mend = "" if _satisfies(found, line) else f"pip install '{line}'"
        if name == "torchvision" and not mend:
            mend = _try_torchvision(line)
        yield Finding(name, found, mend)


def _satisfies(version: str, requirement: str) -> bool:
    """Whether a version meets the lower and upper bounds of a requirement line."""
    have = _numbers(version)
    for sign, bound in re.findall(r"(>=|<)\s*([\d.]+)", requirement):
        limit = _numbers(bound)
        if (have < limit) if sign == ">=" else (have >= limit):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])


def _try_torchvision(line: str) -> str:
    from clsearch.data._torchvision import torchvision

    try:
        torchvision()
    except (ImportError, OSError, RuntimeError) as error:
        return f"It cannot be imported ({error}). pip install --force-reinstall '{line}'"
    return ""


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("processors", f"{cores()} cores, one trial or pack each")
    total, free = machine_memory(), free_memory()
    short = "" if free >= FREE_MEMORY else "Close other programs: a run takes about 2 GB."
    yield Finding("memory", f"{_gib(free)} free of {_gib(total)}", short)
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch is a CPU build" if built is None else f"torch is built for CUDA {built}"
        yield Finding("cuda", f"no GPU seen ({why}); trials run on the processors")
        return
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        yield Finding(
            "cuda", f"{about.name}, {_gib(about.total_memory)}, CUDA {torch.version.cuda}"
        )


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def _ray() -> Iterator[Finding]:
    """Starts a local Ray and runs one task on it, in a process of its own."""
    answer, problem = _run(_RAY)
    mend = "Is /tmp writable, and is no firewall between local ports? Then reinstall ray[tune]."
    yield Finding("ray", problem or f"started here; {answer}", mend if problem else "")


def _mlflow() -> Iterator[Finding]:
    """Creates an MLflow store in a temporary folder, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="clsearch-doctor-") as folder:
        _, problem = _run(_MLFLOW, folder)
        if not problem and not (Path(folder) / "mlflow.db").is_file():
            problem = "it left no database"
    mend = "Is the temporary folder writable? Then reinstall mlflow."
    yield Finding("mlflow", problem or "a store was created and written", mend if problem else "")


def _run(code: str, *arguments: str) -> tuple[str, str]:
    """Runs a few lines of Python elsewhere: what they printed, and what went wrong."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "", f"no answer within {PATIENCE} s"
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return done.stdout.strip(), last if done.returncode else ""


def _data(folder: Path | None) -> Iterator[Finding]:
    """Which data sources can be read. Only a folder the user named has to be there."""
    from clsearch.data.base import Source, data_root
    from clsearch.plugins import discover

    root = data_root(None if folder is None else str(folder)).absolute()
    named = "--data" if folder is not None else "$CLSEARCH_DATA"
    if not root.is_dir():
        asked = folder is not None or "CLSEARCH_DATA" in os.environ
        mend = f"Create it or give another folder in {named}." if asked else ""
        yield Finding("data", f"no folder {root}", mend)
    for name, kind in discover("clsearch.data", Source).items():
        if not kind.needs_options():
            yield _source(name, kind(), root)


def _source(name: str, source: Source, root: Path) -> Finding:
    what, embedded = f"data {name}", source.embedded
    try:
        source.check(root)
    except ClsearchError as error:
        if embedded:
            return Finding(what, str(error), "Reinstall the package it comes with.")
        return Finding(what, f"not there. {error.step if isinstance(error, InputError) else error}")
    return Finding(what, "comes with an installed package" if embedded else "found")


def _disk() -> Iterator[Finding]:
    for what, folder in (("disk here", Path.cwd()), ("disk of temporary files", Path("/tmp"))):
        free = shutil.disk_usage(folder).free
        mend = "" if free >= FREE_DISK else "Free some space, or give --out on another disk."
        yield Finding(what, f"{_gib(free)} free in {folder}", mend)
