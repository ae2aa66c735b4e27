"""Draws the figures of a report, in two processes where there is much to draw."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass
class Helper:
    """A second process, which draws as well, by `share`. It reads from its standard input a line,
    `about`, and after it the path of the folder to draw into."""

    process: subprocess.Popen[bytes]
    about: str

    def begin(self, folder: Path) -> None:
        said = self.about.encode() + b"\n" + os.fsencode(folder)
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), self.process.stdin as stream:
                stream.write(said)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def helped(command: Sequence[str], about: str) -> Iterator[Helper | None]:
    """Starts a helper by its command, which may be empty, and ends it; none where it does not
    start: one process draws all as well."""
    nowhere = subprocess.DEVNULL
    helper = None
    with contextlib.suppress(OSError):
        if command:
            helper = Helper(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere),
                about,
            )
    try:
        yield helper
    finally:
        if helper is not None:
            helper.end()


def draw(folder: Path, drawings: Sequence[Drawing], helper: Helper | None = None) -> None:
    """Writes each figure as PNG and SVG into a new folder. Raises `OSError`."""
    folder.mkdir()
    if helper is None:
        share(folder, drawings)
        return
    try:
        helper.begin(folder)
        drawn = share(folder, drawings)
        failed = helper.process.wait() != 0
    except BaseException:
        helper.end()  # before the folder goes
        raise
    if failed:  # what it began is left to this one
        for drawing in drawings:
            if drawing.name not in drawn:
                _save(folder, drawing)


def share(folder: Path, drawings: Iterable[Drawing]) -> set[str]:
    """Draws what no other process has begun; returns the names."""
    drawn = set()
    with uncollected():
        for drawing in drawings:
            try:
                (folder / f"{drawing.name}.png").touch(exist_ok=False)
            except FileExistsError:
                continue
            _save(folder, drawing)
            drawn.add(drawing.name)
            gc.collect(1)  # a figure is full of cycles
    return drawn


def _save(folder: Path, drawing: Drawing) -> None:
    from matplotlib import rc_context, rcdefaults, rcParams

    picture = folder / f"{drawing.name}.png"
    with rc_context():
        rcdefaults()  # whatever the process has set for figures of its own
        rcParams.update(LOOK)
        figure = drawing.draw()
        figure.savefig(
            picture, dpi=DPI, metadata={"Software": None}, pil_kwargs={"compress_level": 1}
        )
        plain = {"Date": None, "Creator": None}
        figure.savefig(picture.with_suffix(".svg"), format="svg", dpi=DPI, metadata=plain)
