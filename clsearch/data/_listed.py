"""What sets of photographs share: image files of many sizes, and lists that say which is what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from pydantic import Field

from clsearch.data._download import fetch
from clsearch.data._images import Encoded, ImageOptions, Size, decode
from clsearch.data._pixels import raw_data
from clsearch.data.base import RawData, Source
from clsearch.errors import InputError


class ListedOptions(ImageOptions):
    size: Size | None = Field(
        224,
        description="Height and width, or one number for both: every image is scaled until it"
        " covers them and cropped at the centre. null leaves them as they are.",
    )


class Listing(NamedTuple):
    """The images of both parts and the names of the classes; a set may have no test part."""

    train: list[Encoded]
    test: list[Encoded]
    classes: tuple[str, ...]


class ListedSource(Source, ABC):
    """A published set of photographs in `<root>/<folder>`, in its own layout."""

    Options: ClassVar = ListedOptions
    folder: ClassVar[str]
    expected: ClassVar[tuple[str, ...]]
    """Files and folders that have to be in the folder."""
    files: ClassVar[tuple[tuple[str, str, str, str], ...]] = ()
    """Where to fetch it: URL, MD5, what of an archive, into what folder; none: by hand."""
    published: ClassVar[str]
    """The page of the set."""

    @abstractmethod
    def listing(self, place: Path) -> Listing:
        """What is in the folder; may raise what reading a file of another form raises."""

    def load(self, root: Path, download: bool) -> RawData:
        """Training and test parts, uint8 `[N, C, H, W]`.

        Raises `InputError` for files that are missing or damaged, for images that cannot be decoded
        and for a download that failed.
        """
        place = root / self.folder
        if download and self._missing(place):
            for url, md5, inside, into in self.files:
                fetch(url, md5, root / into, inside or None)
        self.check(root)
        try:
            found = self.listing(place)
        except (OSError, SyntaxError, ValueError, LookupError, TypeError) as error:
            said = " ".join(str(error).split())
            allowed = f"undamaged {', '.join(self.expected)}"
            step = f"The reader said: {said}"
            raise InputError("scenario.root", str(place), allowed, step) from error
        (train, notes), *others = (
            decode(part, len(part), self.options, self.field, self.storage)
            for part in (found.train, found.test)
            if part
        )
        test, also = others[0] if others else (None, ())
        return raw_data(train, test, found.classes, self.options, self.field, notes + also)

    def check(self, root: Path) -> None:
        missing = self._missing(root / self.folder)
        if missing:
            how = "Set `download: true` to have it fetched" if self.files else "Fetch it by hand"
            raise InputError(
                "scenario.root",
                str(root),
                f"a folder in which {self.folder} holds {', '.join(self.expected)}",
                f"Missing: {', '.join(missing)}. {how} from {self.published}, or give another"
                " `root`.",
            )

    def _missing(self, place: Path) -> list[str]:
        return [name for name in self.expected if not (place / name).exists()]


def lines(path: Path, parts: int) -> Iterator[list[str]]:
    """The lines of a list that are not empty, cut at blanks into so many parts.

    Raises `ValueError` for a line of fewer.
    """
    for line in path.read_text(encoding="utf-8").splitlines():
        cut = line.strip().split(" ", parts - 1)
        if len(cut) == parts and cut[0]:
            yield cut
        elif line.strip():
            raise ValueError(f"{path.name} has the line {line!r}")


def image(place: Path, name: str, number: int, classes: Sequence[str]) -> Encoded:
    """The image at a path within a folder; raises `ValueError` for a class that is not there."""
    if not 0 <= number < len(classes):
        raise ValueError(f"{name} is of class {number + 1} of {len(classes)}")
    return Encoded(name, place / name, number)
