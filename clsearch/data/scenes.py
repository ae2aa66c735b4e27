"""MIT Indoor Scenes: photographs of 67 kinds of rooms and places."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from clsearch.data._listed import ListedSource, Listing, image, lines


class Scenes(ListedSource):
    """5,360 training and 1,340 test images of 67 classes (Quattoni and Torralba 2009).

    Read from `indoor-67`: the set's `Images/<class>/*.jpg` with its lists `TrainImages.txt` and
    `TestImages.txt` beside. Classes are those of the training list, by name.
    """

    name: ClassVar[str] = "scenes"
    licence: ClassVar[str] = "research only"
    folder: ClassVar[str] = "indoor-67"
    expected: ClassVar[tuple[str, ...]] = ("Images", "TrainImages.txt", "TestImages.txt")
    published: ClassVar[str] = "https://web.mit.edu/torralba/www/indoor.html"

    def listing(self, place: Path) -> Listing:
        train, test = (
            [name for (name,) in lines(place / f"{part}Images.txt", 1)]
            for part in ("Train", "Test")
        )
        classes = tuple(sorted({name.partition("/")[0] for name in train}))
        label = {name: i for i, name in enumerate(classes)}
        training, testing = (
            [image(place / "Images", n, label[n.partition("/")[0]], classes) for n in part]
            for part in (train, test)
        )
        return Listing(training, testing, classes)
