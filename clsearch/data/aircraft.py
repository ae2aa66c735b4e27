"""FGVC-Aircraft: photographs of a hundred kinds of aircraft."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from clsearch.data._labels import read_names
from clsearch.data._listed import ListedSource, Listing, image, lines

_PAGE = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft"


class Aircraft(ListedSource):
    """6,667 training and 3,333 test images of 100 variants, FGVC-Aircraft (Maji et al. 2013).

    Read from the set's own layout, `fgvc-aircraft-2013b/data`; training is the set's `trainval`.
    """

    name: ClassVar[str] = "aircraft"
    licence: ClassVar[str] = "non-commercial research"
    folder: ClassVar[str] = "fgvc-aircraft-2013b"
    expected: ClassVar[tuple[str, ...]] = (
        *("data/images", "data/variants.txt"),
        *("data/images_variant_trainval.txt", "data/images_variant_test.txt"),
    )
    files: ClassVar[tuple[tuple[str, str, str, str], ...]] = (
        (
            f"{_PAGE}/archives/fgvc-aircraft-2013b.tar.gz",
            *("d4acdd33327262359767eeaa97a4f732", folder, folder),
        ),
    )
    published: ClassVar[str] = _PAGE

    def listing(self, place: Path) -> Listing:
        data = place / "data"
        classes = read_names(data / "variants.txt", "scenario.root")
        train, test = (
            [
                image(data / "images", f"{number}.jpg", classes.index(variant), classes)
                for number, variant in lines(data / f"images_variant_{part}.txt", 2)
            ]
            for part in ("trainval", "test")
        )
        return Listing(train, test, classes)
