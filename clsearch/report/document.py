"""What a report says, before it is HTML or Markdown: sections of words, tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clsearch.report.tables import Sheet, escaped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure to be drawn: the name of its files, what it shows for those who do not see it, and
    how to read it."""

    name: str
    alt: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Section:
    title: str
    words: Sequence[str] = ()
    sheets: Sequence[Sheet] = ()
    drawings: Sequence[Drawing] = ()


@dataclass(frozen=True)
class Document:
    """`notes` stand at the top: what a reader must know before the numbers."""

    title: str
    notes: Sequence[str]
    sections: Sequence[Section]

    @property
    def drawings(self) -> list[Drawing]:
        return [drawing for section in self.sections for drawing in section.drawings]

    @property
    def sheets(self) -> list[Sheet]:
        return [sheet for section in self.sections for sheet in section.sheets]


def markdown(document: Document) -> str:
    """The report as Markdown; figures lie in the folder `figures` beside it."""
    parts = [f"# {escaped(document.title)}"]
    parts += [f"> **{escaped(note)}**" for note in document.notes]
    for section in document.sections:
        parts.append(f"## {escaped(section.title)}")
        parts += [escaped(words) for words in section.words]
        parts += [sheet.markdown().rstrip() for sheet in section.sheets]
        parts += [
            f"![{escaped(d.alt)}](figures/{d.name}.png)\n\n*{escaped(d.caption)}* "
            f"[SVG](figures/{d.name}.svg)"
            for d in section.drawings
        ]
    return "\n\n".join(parts) + "\n"
