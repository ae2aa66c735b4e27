"""PASCAL VOC Actions: people who do one thing or another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

from clsearch.data._images import Encoded
from clsearch.data._listed import ListedSource, Listing

_CLASSES = (
    *("jumping", "phoning", "playinginstrument", "reading", "ridingbike", "ridinghorse"),
    *("running", "takingphoto", "usingcomputer", "walking", "other"),
)
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Actions(ListedSource):
    """People of the action classification of VOC 2012 (Everingham et al. 2012), 11 classes.

    Read from the set's own layout, `VOCdevkit/VOC2012`. An image is a person's bounding box, as the
    challenge gives it; people who do several things at once are left out. Training is the set's
    `train`, testing its `val`: the labels of its `test` are not public. The last class is `other`,
    the challenge's people who do none of the ten things.
    """

    name: ClassVar[str] = "actions"
    licence: ClassVar[str] = "see the set's page (photographs of Flickr)"
    folder: ClassVar[str] = "VOCdevkit/VOC2012"
    expected: ClassVar[tuple[str, ...]] = (
        *("JPEGImages", "Annotations"),
        *("ImageSets/Action/train.txt", "ImageSets/Action/val.txt"),
    )
    files: ClassVar[tuple[tuple[str, str, str, str], ...]] = (
        (
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            *("6cd6e144f989b92b3379bac3b3de84fd", folder, folder),
        ),
    )
    published: ClassVar[str] = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012"

    def listing(self, place: Path) -> Listing:
        train, test = (
            [person for name in _names(place, part) for person in _people(place, name)]
            for part in ("train", "val")
        )
        return Listing(train, test, _CLASSES)


def _names(place: Path, part: str) -> list[str]:
    """The images of a list, each once: a line may name a person in it too."""
    text = (place / "ImageSets" / "Action" / f"{part}.txt").read_text(encoding="utf-8")
    return list(dict.fromkeys(line.split()[0] for line in text.splitlines() if line.strip()))


def _people(place: Path, name: str) -> Iterator[Encoded]:
    """The people of an image who do one thing."""
    file = place / "Annotations" / f"{name}.xml"
    try:
        objects = ElementTree.parse(file).getroot().findall("object")
    except ElementTree.ParseError as error:
        raise ValueError(f"{file.name}: {error}") from error
    for number, found in enumerate(objects, start=1):
        done = [a.tag for a in found.iterfind("actions/*") if (a.text or "").strip() == "1"]
        if len(done) != 1:
            continue
        if done[0] not in _CLASSES:
            raise ValueError(f"{file.name} has the action {done[0]!r}")
        corners = [found.findtext(f"bndbox/{corner}") for corner in _CORNERS]
        if None in corners:
            raise ValueError(f"{file.name} has a person without a bounding box")
        left, top, right, bottom = (round(float(corner or 0)) for corner in corners)
        yield Encoded(
            f"{name}.jpg, person {number}",
            place / "JPEGImages" / f"{name}.jpg",
            _CLASSES.index(done[0]),
            (left - 1, top - 1, right, bottom),  # the set counts pixels from 1, and the last too
        )
