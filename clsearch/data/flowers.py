"""Oxford Flowers: photographs of 102 kinds of flowers."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from clsearch.data._listed import ListedSource, Listing, image
from clsearch.data._mat import read_mat

_PAGE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"


class Flowers(ListedSource):
    """2,040 training and 6,149 test images of 102 classes (Nilsback and Zisserman 2008).

    Read from the set's files as torchvision lays them out, in `flowers-102`; training is the set's
    training and validation parts. Classes are called by their numbers, from 1: the files have no
    names.
    """

    name: ClassVar[str] = "flowers"
    licence: ClassVar[str] = "none stated"
    folder: ClassVar[str] = "flowers-102"
    expected: ClassVar[tuple[str, ...]] = ("jpg", "imagelabels.mat", "setid.mat")
    files: ClassVar[tuple[tuple[str, str, str, str], ...]] = (
        (f"{_PAGE}/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", "jpg", f"{folder}/jpg"),
        (f"{_PAGE}/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", "", folder),
        (f"{_PAGE}/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", "", folder),
    )
    published: ClassVar[str] = _PAGE

    def listing(self, place: Path) -> Listing:
        labels = read_mat(place / "imagelabels.mat", "labels")[0].reshape(-1).tolist()
        first, second, testing = read_mat(place / "setid.mat", "trnid", "valid", "tstid")
        classes = tuple(str(i + 1) for i in range(max(labels)))
        train, test = (
            [
                image(place / "jpg", f"image_{i:05d}.jpg", labels[i - 1] - 1, classes)
                for ids in part
                for i in ids.reshape(-1).tolist()
            ]
            for part in ((first, second), (testing,))
        )
        return Listing(train, test, classes)
