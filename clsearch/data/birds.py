"""Caltech-UCSD Birds: photographs of two hundred kinds of birds."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from clsearch.data._listed import ListedSource, Listing, image, lines

_URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"


class Birds(ListedSource):
    """5,994 training and 5,794 test images of 200 classes, CUB-200-2011 (Wah et al. 2011).

    Read from the set's own layout, `CUB_200_2011`; whole images, not their bounding boxes.
    """

    name: ClassVar[str] = "birds"
    licence: ClassVar[str] = "non-commercial research"
    folder: ClassVar[str] = "CUB_200_2011"
    expected: ClassVar[tuple[str, ...]] = (
        *("images", "images.txt", "image_class_labels.txt"),
        *("train_test_split.txt", "classes.txt"),
    )
    files: ClassVar[tuple[tuple[str, str, str, str], ...]] = (
        (_URL, "97eceeb196236b17998738112f37df78", folder, folder),
    )
    published: ClassVar[str] = "https://www.vision.caltech.edu/datasets/cub_200_2011"

    def listing(self, place: Path) -> Listing:
        classes = tuple(name for _, name in lines(place / "classes.txt", 2))
        label = {i: int(c) - 1 for i, c in lines(place / "image_class_labels.txt", 2)}
        trained = {i: part == "1" for i, part in lines(place / "train_test_split.txt", 2)}
        found = Listing([], [], classes)
        for i, name in lines(place / "images.txt", 2):
            part = found.train if trained[i] else found.test
            part.append(image(place / "images", name, label[i], classes))
        return found
