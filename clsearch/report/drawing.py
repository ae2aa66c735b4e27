"""Draws the figures of a report, in two processes where there is much to draw.

`python -m clsearch.report.drawing FOLDER RUN…` is the second of them. It reads the runs itself: a
process that got them from the first would have to unpickle them.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clsearch.files import cores
from clsearch.report.document import Drawing

DPI = 150
LOOK: Any = {
    "svg.hashsalt": "clsearch", "svg.fonttype": "path", "text.parse_math": False,
    "hatch.linewidth": 0.6,
}  # fmt: skip
"""Pictures are the same bytes every time, and need no font where they are looked at."""
_WORTH = 2_000
"""Trials from which a second process wins more than its start and its reading take."""


def draw(folder: Path, drawings: Sequence[Drawing], trials: int, runs: Sequence[Path]) -> None:
    """Writes each figure as PNG and SVG into a new folder; `runs` are where so many trials were
    read from. Raises `OSError`."""
    folder.mkdir()
    with _second(folder, runs if trials >= _WORTH and cores() > 1 else ()) as second:
        _draw(folder, drawings)
        if second is not None and second.wait() != 0:  # what it began is left to this one
            for drawing in drawings:
                _save(folder, drawing)


@contextlib.contextmanager
def _second(folder: Path, runs: Sequence[Path]) -> Iterator[subprocess.Popen[bytes] | None]:
    if not runs:
        yield None
        return
    command = [sys.executable, "-m", __name__, str(folder), *map(str, runs)]
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _draw(folder: Path, drawings: Iterable[Drawing]) -> None:
    """Draws what the other process has not begun."""
    for drawing in drawings:
        try:
            (folder / f"{drawing.name}.png").touch(exist_ok=False)
        except FileExistsError:
            continue
        _save(folder, drawing)


def _save(folder: Path, drawing: Drawing) -> None:
    from matplotlib import rc_context

    picture = folder / f"{drawing.name}.png"
    with rc_context(LOOK):
        figure = drawing.draw()
        figure.savefig(picture, dpi=DPI, metadata={"Software": None})
        plain = {"Date": None, "Creator": None}
        figure.savefig(picture.with_suffix(".svg"), format="svg", dpi=DPI, metadata=plain)


def _main(folder: Path, *outs: Path) -> None:
    from clsearch.report.content import document
    from clsearch.report.source import labelled
    from clsearch.reporting import read_run

    _draw(folder, reversed(document(labelled([read_run(out) for out in outs])).drawings))


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
