"""Chars74K: letters on signs and shop fronts."""

from __future__ import annotations

import string
from pathlib import Path
from typing import ClassVar

from clsearch.data._images import Encoded
from clsearch.data._listed import ListedSource, Listing

_CLASSES = (*string.ascii_uppercase, *string.ascii_lowercase)
_FIRST = 11
"""Of the numbered folders: those before it hold the digits 0 to 9."""


class Letters(ListedSource):
    """Photographed letters A to Z and a to z of Chars74K, 52 classes (de Campos et al. 2009).

    Read from the set's own layout, `English/Img/GoodImg/Bmp/Sample011` to `Sample062`: the
    characters of `EnglishImg.tgz` that the set calls good, without its digits. The set has no test
    part; the scenario holds one out.
    """

    name: ClassVar[str] = "letters"
    licence: ClassVar[str] = "its source is to be acknowledged and cited"
    folder: ClassVar[str] = "English/Img/GoodImg/Bmp"
    expected: ClassVar[tuple[str, ...]] = ("Sample011", "Sample062")
    published: ClassVar[str] = "https://teodecampos.github.io/chars74k"

    def listing(self, place: Path) -> Listing:
        found = []
        for label, letter in enumerate(_CLASSES):
            folder = place / f"Sample{label + _FIRST:03d}"
            files = sorted(folder.glob("*.png"))
            if not files:
                raise ValueError(f"{folder.name} has no images of {letter}")
            found += [Encoded(f"{folder.name}/{file.name}", file, label) for file in files]
        return Listing(found, [], _CLASSES)
