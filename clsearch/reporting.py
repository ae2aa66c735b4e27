"""Reports on runs, read from their output folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clsearch.errors import MISSING, DamagedError, InputError
from clsearch.files import cores
from clsearch.folder import (
    about,
    open_chains,
    open_store,
    read_parquet,
    results_of,
    run_config,
)
from clsearch.messages import command, say
from clsearch.records import TrialRecord
from clsearch.report import foreign, write_report
from clsearch.report.drawing import helped, share
from clsearch.report.parquet import trials_of
from clsearch.report.source import Run

if TYPE_CHECKING:
    from rich.console import Console

WORTH = 1 << 20
"""Bytes of scans from which two processes draw: those of some thousand trials."""


def report(
    outs: Sequence[Path],
    to: Path | None = None,
    *,
    csv: bool = False,
    latex: bool = False,
    force: bool = False,
) -> list[Path]:
    """Writes the report on a run, or on several side by side; returns its page and its PNG files.

    `to` is by default `report` in the folder of the run; several runs need one. Unfinished runs are
    reported as such. Raises `InputError` for a folder that is no run and a `to` that is in use, or
    holds what would be replaced and is of no report,
    `DamagedError` for files that cannot be read.
    """
    with helped(_helper(outs), _state(outs)) as helper:
        runs = [read_run(out) for out in outs]
        if to is None:
            if len(outs) > 1:
                allowed = "the folder to write a report on several runs to"
                raise InputError("to", MISSING, allowed)
            to, force = outs[0] / "report", True
        elif other := foreign(to):
            step = f"{to / other} is not of a report, and is left alone."
            raise InputError("to", str(to), "a folder without files of these names", step)
        _check_target(to, force)
        return write_report(to, runs, helper, csv=csv, latex=latex)


def _helper(outs: Sequence[Path]) -> list[str]:
    """The command of a second process that draws, where it wins more than its start takes. It reads
    the runs itself: what it got from this one, it would have to unpickle."""
    tables = [out / "scan.parquet" for out in outs]
    size = sum(table.stat().st_size for table in tables if table.is_file())
    if cores() == 1 or size <= WORTH:
        return []
    # -P: a folder that a report is made in may hold modules of the names that are imported.
    return [sys.executable, "-P", "-m", __name__, *map(str, outs)]


def _state(outs: Sequence[Path]) -> str:
    """What tells a run's tables from those of a moment later."""
    tables = [out / name for out in outs for name in ("trials.parquet", "selections.json")]
    seen = [t.stat() for t in tables if t.is_file()]
    return " ".join(f"{s.st_ino}-{s.st_size}-{s.st_mtime_ns}" for s in seen)


def _help(*outs: Path) -> None:
    """Draws figures of these runs beside the process that reports on them, from the last on."""
    from clsearch.report.content import document
    from clsearch.report.source import labelled

    state = _state(outs)
    drawings = document(labelled([read_run(out) for out in outs])).drawings
    seen, _, folder = sys.stdin.buffer.read().partition(b"\n")
    if folder and seen == state.encode():  # else the run went on between two looks at it
        share(Path(os.fsdecode(folder)), reversed(drawings))


def _check_target(to: Path, force: bool) -> None:
    """Raises `InputError` for a folder that cannot be written, or holds something."""
    above = next(folder for folder in (to, *to.absolute().parents) if os.path.lexists(folder))
    allowed = "a new or empty folder that can be written"
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        step = f"{above} is no folder." if not above.is_dir() else f"{above} cannot be written."
        raise InputError("to", str(to), allowed, step)
    if to.is_dir() and any(to.iterdir()) and not force:
        step = "Use --force to write into it: a report in it is replaced, other files stay."
        raise InputError("to", str(to), allowed, step)


def read_run(out: Path) -> Run:
    """A run as a report shows it. Raises `InputError` for a folder that is none, `DamagedError`,
    and `StoreError` where the journal of one that is not finished cannot be read."""
    config = run_config(out)
    results = results_of(out)
    said = about(out)
    # Without search.json it ended before its first task.
    unfinished = open_chains(config, results, len(said.get("tasks", ())) or 1)
    return Run(
        config,
        _trials(out),
        results,
        said,
        unfinished,
        open_store(out, config).count("trials") if unfinished else 0,
        out.resolve().name,
    )


def _trials(out: Path) -> list[TrialRecord]:
    if not (out / "trials.parquet").is_file():
        return []
    try:
        return trials_of(read_parquet(out, "trials"), read_parquet(out, "scan"))
    except (KeyError, ValueError, TypeError) as error:
        raise DamagedError(
            f"trials.parquet or scan.parquet in {out} cannot be read ({error!r}). "
            f"This writes them again: {command('resume', out)}"
        ) from error


def print_written(written: Sequence[Path], tables: bool, console: Console) -> None:
    """Prints where a report is: its page and its figures, as `report` returns them."""
    page, *figures = written
    beside = "the same as Markdown, figures as PNG and SVG beside it"
    say(console, f"{page}: all in one file, {len(figures)} figures")
    say(console, f"{page.with_suffix('.md')}: {beside}")
    if tables:
        say(console, f"{page.parent / 'tables'}: the tables")


if __name__ == "__main__":
    _help(*map(Path, sys.argv[1:]))
