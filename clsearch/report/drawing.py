"""Draws the figures of a report, in two processes where there is much to draw."""

from __future__ import annotations

import contextlib
import gc
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clsearch.files import uncollected
from clsearch.report.document import Drawing

DPI = 150
LOOK: Any = {
    "svg.hashsalt": "clsearch", "svg.fonttype": "path", "text.parse_math": False,
    "hatch.linewidth": 0.6,
}  # fmt: skip
"""Pictures are the same bytes every time, and need no font where they are looked at."""


Helper = subprocess.Popen[bytes]
"""A second process, which calls `share` for the folder that a line of its standard input names."""


@contextlib.contextmanager
def helped(command: Sequence[str]) -> Iterator[Helper | None]:
    """Starts a helper by its command, which may be empty, and ends it."""
    if not command:
        yield None
        return
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def draw(folder: Path, drawings: Sequence[Drawing], helper: Helper | None = None) -> None:
    """Writes each figure as PNG and SVG into a new folder. Raises `OSError`."""
    folder.mkdir()
    if helper is not None and helper.stdin is not None:
        with contextlib.suppress(BrokenPipeError), helper.stdin as line:
            line.write(f"{folder}\n".encode())
    share(folder, drawings)
    if helper is not None and helper.wait() != 0:  # what it began is left to this one
        for drawing in drawings:
            _save(folder, drawing)


def share(folder: Path, drawings: Iterable[Drawing]) -> None:
    """Draws what no other process has begun."""
    with uncollected():
        for drawing in drawings:
            try:
                (folder / f"{drawing.name}.png").touch(exist_ok=False)
            except FileExistsError:
                continue
            _save(folder, drawing)
            gc.collect(1)  # a figure is full of cycles


def _save(folder: Path, drawing: Drawing) -> None:
    from matplotlib import rc_context

    picture = folder / f"{drawing.name}.png"
    with rc_context(LOOK):
        figure = drawing.draw()
        figure.savefig(
            picture, dpi=DPI, metadata={"Software": None}, pil_kwargs={"compress_level": 1}
        )
        plain = {"Date": None, "Creator": None}
        figure.savefig(picture.with_suffix(".svg"), format="svg", dpi=DPI, metadata=plain)
