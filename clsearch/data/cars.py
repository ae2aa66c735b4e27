"""Stanford Cars: photographs of 196 models of cars."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from clsearch.data._images import Encoded
from clsearch.data._listed import ListedSource, Listing, image
from clsearch.data._mat import read_mat


class Cars(ListedSource):
    """8,144 training and 8,041 test images of 196 classes, Stanford Cars (Krause et al. 2013).

    Read from the set's files as torchvision lays them out, in `stanford_cars`: whole images, not
    their bounding boxes. The labels of the test part come in a file of their own.
    """

    name: ClassVar[str] = "cars"
    licence: ClassVar[str] = "see the set's page"
    folder: ClassVar[str] = "stanford_cars"
    expected: ClassVar[tuple[str, ...]] = (
        *("cars_train", "cars_test", "cars_test_annos_withlabels.mat"),
        *("devkit/cars_meta.mat", "devkit/cars_train_annos.mat"),
    )
    published: ClassVar[str] = "https://github.com/pytorch/vision/issues/7545"
    """The set's own page, ai.stanford.edu/~jkrause/cars/car_dataset.html, serves it no more."""

    def listing(self, place: Path) -> Listing:
        (names,) = read_mat(place / "devkit" / "cars_meta.mat", "class_names")
        classes = tuple(str(name.item()) for name in names.reshape(-1))
        return Listing(
            _annotated(place, "devkit/cars_train_annos.mat", "cars_train", classes),
            _annotated(place, "cars_test_annos_withlabels.mat", "cars_test", classes),
            classes,
        )


def _annotated(place: Path, file: str, folder: str, classes: tuple[str, ...]) -> list[Encoded]:
    """The images of one part: a MATLAB structure array with `fname` and `class`, from 1."""
    (found,) = read_mat(place / file, "annotations")
    if not {"fname", "class"} <= set(found.dtype.names or ()):
        raise ValueError(f"{file} has annotations without fname or class")
    return [
        image(place / folder, str(one["fname"].item()), int(one["class"].item()) - 1, classes)
        for one in found.reshape(-1)
    ]
