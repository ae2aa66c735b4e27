"""What a run leaves to look at: one HTML page, the same as Markdown, its figures and its tables."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsearch.errors import StoreError

if TYPE_CHECKING:
    from clsearch.report.drawing import Helper
    from clsearch.report.source import Run

_PAGE, _TEXT, _FIGURES, _TABLES, _NEW = "index.html", "index.md", "figures", "tables", ".new-"
_PARTS = (_FIGURES, _TABLES, _TEXT, _PAGE)
_MARK = '<meta name="generator" content="clsearch">'


def foreign(folder: Path) -> str:
    """What lies in a folder under the name of a part of a report, which no report has put there;
    empty if nothing does."""
    page = folder / _PAGE
    with contextlib.suppress(OSError):
        if page.is_file():
            with page.open(encoding="utf-8", errors="replace") as stream:
                if _MARK in stream.read(1000):
                    return ""
    return next((name for name in _PARTS if os.path.lexists(folder / name)), "")


def _put(new: Path, folder: Path) -> None:
    """Puts a finished report in place of an earlier one, or leaves that as it was."""
    old = [name for name in _PARTS if os.path.lexists(folder / name)]
    try:
        for name in old:
            (folder / name).rename(new / f"old {name}")
        for name in reversed(_PARTS):  # the page, by which they are known, stands first
            if (new / name).exists():
                (new / name).rename(folder / name)
    except BaseException:
        for name in _PARTS:
            with contextlib.suppress(OSError):
                if name not in old or (new / f"old {name}").exists():
                    (folder / name).rename(new / name)
            with contextlib.suppress(OSError):
                (new / f"old {name}").rename(folder / name)
        raise


def write_report(
    folder: Path,
    runs: Sequence[Run],
    helper: Helper | None = None,
    *,
    csv: bool = False,
    latex: bool = False,
) -> list[Path]:
    """Writes `index.html`, `index.md`, `figures/` as PNG and SVG, and `tables/` where asked for.

    An earlier report in the folder is replaced once everything is drawn; other files stay. `helper`
    draws too. What fails or is stopped leaves the earlier one. Returns the page and the PNG files.
    Raises `StoreError` when it cannot be written.
    """
    from clsearch.report.content import document
    from clsearch.report.document import markdown
    from clsearch.report.drawing import draw
    from clsearch.report.page import page
    from clsearch.report.source import labelled

    said = document(labelled(runs))
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for half_written in folder.glob(f"{_NEW}*"):
            shutil.rmtree(half_written)
        with tempfile.TemporaryDirectory(prefix=_NEW, dir=folder) as place:
            new = Path(place)
            figures = new / _FIGURES
            draw(figures, said.drawings, helper)
            images = {d.name: (figures / f"{d.name}.svg").read_bytes() for d in said.drawings}
            if csv or latex:
                _write_tables(new / _TABLES, said.sheets, csv=csv, latex=latex)
            (new / _TEXT).write_text(markdown(said), encoding="utf-8")
            (new / _PAGE).write_text(page(said, images), encoding="utf-8")
            _put(new, folder)
    except BaseException as error:
        with contextlib.suppress(OSError):  # of a report that failed nothing is left
            for above in made:
                above.rmdir()
        if not isinstance(error, OSError):
            raise
        raise StoreError(f"cannot write the report {folder}: {error.strerror or error}") from error
    return [folder / _PAGE, *(folder / _FIGURES / f"{name}.png" for name in images)]


def _write_tables(folder: Path, sheets: Sequence[Any], *, csv: bool, latex: bool) -> None:
    from clsearch.report.plain import as_csv, as_latex, file_name

    folder.mkdir()
    taken: set[str] = set()
    for sheet in sheets:
        name = file_name(sheet, taken)
        taken.add(name)
        if csv:
            (folder / f"{name}.csv").write_text(as_csv(sheet), encoding="utf-8", newline="")
        if latex:
            (folder / f"{name}.tex").write_text(as_latex(sheet), encoding="utf-8")
