"""Tiny ImageNet: photographs of two hundred kinds of things."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from clsearch.data._download import fetch
from clsearch.data._images import Encoded, ImageOptions, decode
from clsearch.data._labels import read_names
from clsearch.data._pixels import raw_data
from clsearch.data.base import RawData, Source
from clsearch.errors import InputError
from clsearch.options import PLACE

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_FOLDER = "tiny-imagenet-200"
_EXPECTED = (
    "wnids.txt, words.txt, train/<class>/images/*.JPEG, val/images/*.JPEG and"
    " val/val_annotations.txt"
)


class TinyImageNetOptions(ImageOptions):
    path: str = Field(
        _FOLDER, json_schema_extra=PLACE, description="Folder of the set, within the data folder."
    )


class TinyImageNet(Source):
    """100,000 training and 10,000 validation images 64x64 of 200 classes (Le and Yang 2015).

    Read from the set's own layout: `train/<class>/images` and, as the test part,
    `val/images` with `val/val_annotations.txt`; the set's `test` has no labels and is not read.
    Classes are those of `wnids.txt` in the order of their numbers, each called by its first word in
    `words.txt`, or its number where another class has that word.
    """

    name: ClassVar[str] = "tiny_imagenet"
    licence: ClassVar[str] = "non-commercial research, as ImageNet"
    Options: ClassVar = TinyImageNetOptions

    def load(self, root: Path, download: bool) -> RawData:
        """Training and test parts, uint8 `[N, 3, 64, 64]`; grey images have three equal channels.

        Raises `InputError` for files that are missing or damaged and for a download that failed.
        """
        folder = root / Path(self.options.path).expanduser()
        if download and not (folder / "wnids.txt").is_file():
            fetch(_URL, _MD5, folder, _FOLDER)
        self.check(root)
        numbers = sorted(read_names(folder / "wnids.txt", "scenario.root"))
        label = {number: i for i, number in enumerate(numbers)}
        parts = [list(self._train(folder, label)), list(self._test(folder, label))]
        decoded = [
            decode(part, len(part), self.options, self.field, self.storage) for part in parts
        ]
        (train, left_out), (test, also) = decoded
        names = self._names(folder, numbers)
        return raw_data(train, test, names, self.options, self.field, left_out + also)

    def check(self, root: Path) -> None:
        folder = root / Path(self.options.path).expanduser()
        expected = ("wnids.txt", "words.txt", "train", "val/images", "val/val_annotations.txt")
        missing = [name for name in expected if not (folder / name).exists()]
        if missing:
            step = f"Missing: {', '.join(missing)}. Set `download: true` to have the set fetched,"
            raise InputError(
                "scenario.root",
                str(root),
                f"a folder in which {self.options.path} holds {_EXPECTED}",
                f"{step} or give another `root`.",
            )

    def _train(self, folder: Path, label: dict[str, int]) -> Iterable[Encoded]:
        for number, i in label.items():
            files = sorted((folder / "train" / number / "images").glob("*.JPEG"))
            if not files:
                allowed = f"a folder with images in train/{number}/images"
                raise InputError("scenario.root", str(folder), allowed)
            yield from (Encoded(file.name, file, i) for file in files)

    def _test(self, folder: Path, label: dict[str, int]) -> Iterable[Encoded]:
        """The validation part, in the order of its list."""
        for line in read_names(folder / "val" / "val_annotations.txt", "scenario.root"):
            file, number = [*line.split("\t"), ""][:2]
            if number not in label:
                allowed = "a val/val_annotations.txt with a file and a class of wnids.txt a line"
                step = f"It has the line {line!r}."
                raise InputError("scenario.root", str(folder), allowed, step)
            yield Encoded(f"val/{file}", folder / "val" / "images" / file, label[number])

    def _names(self, folder: Path, numbers: list[str]) -> tuple[str, ...]:
        words = {}
        for line in read_names(folder / "words.txt", "scenario.root"):
            number, _, said = line.partition("\t")
            words[number] = said.partition(",")[0].strip()
        named = [words.get(number) or number for number in numbers]
        return tuple(
            name if named.count(name) == 1 else number
            for name, number in zip(named, numbers, strict=True)
        )
