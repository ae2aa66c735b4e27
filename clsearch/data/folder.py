"""Images of the user's own in a folder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from clsearch.data._images import SUFFIXES, Encoded, ImageOptions, decode
from clsearch.data._pixels import raw_data
from clsearch.data.base import OwnOptions, RawData, Samples, Source
from clsearch.errors import InputError
from clsearch.options import PLACE


class FolderOptions(ImageOptions, OwnOptions):
    path: str = Field(
        json_schema_extra=PLACE, description="The folder: absolute, or within the data folder."
    )


class Folder(Source):
    """Image files in a folder for each class, whose name is that of the class.

    The class folders stand in `path`, or in `path/train` and `path/test`; without a test part the
    scenario holds one out. Files are looked for at any depth, those that are no images by their
    names (.jpg, .png, .webp, …) and hidden ones are passed over; classes and files are taken in
    order of their names.
    """

    name: ClassVar[str] = "folder"
    Options: ClassVar = FolderOptions

    def load(self, root: Path, download: bool) -> RawData:
        """Training and test parts, uint8 `[N, C, H, W]`.

        Raises `InputError` for a folder that is missing or has no classes, a class without images,
        a class of the test part that the training part lacks, and what `decode` refuses.
        """
        place = self._place(root)
        train = place / "train"
        whole = not _subfolders(train)
        names = [folder.name for folder in _subfolders(place if whole else train)]
        if not names:
            allowed = "a folder that holds a folder of images for each class"
            raise InputError(f"{self.field}.path", str(place), allowed)
        parts = [self._read(place if whole else train, names)]
        if not whole and (place / "test").is_dir():
            parts.append(self._read(place / "test", names))
        notes = tuple(note for _, part in parts for note in part)
        samples = [part for part, _ in parts]
        test = samples[1] if len(samples) > 1 else None
        return raw_data(samples[0], test, tuple(names), self.options, self.field, notes)

    def check(self, root: Path) -> None:
        self._place(root)

    def _place(self, root: Path) -> Path:
        place = root / Path(self.options.path).expanduser()
        if not place.is_dir():
            step = f"Looked for {place.absolute()}: `path` is within the data folder, or absolute."
            raise InputError(
                f"{self.field}.path", self.options.path, "a folder that is there", step
            )
        return place

    def _read(self, place: Path, names: list[str]) -> tuple[Samples, tuple[str, ...]]:
        """One part: the images of the class folders in `place`."""
        images: list[Encoded] = []
        for folder in _subfolders(place):
            if folder.name not in names:
                allowed = f"in {place}, folders of the classes of the training part"
                raise InputError(f"{self.field}.path", folder.name, allowed)
            found = sorted(file for file in folder.rglob("*") if _is_image(file, folder))
            if not found:
                allowed = f"an image ({', '.join(sorted(SUFFIXES))}) or more in every class folder"
                raise InputError(f"{self.field}.path", str(folder), allowed)
            label = names.index(folder.name)
            images += [Encoded(str(file.relative_to(place)), file, label) for file in found]
        return decode(images, len(images), self.options, self.field, self.storage)


def _subfolders(place: Path) -> list[Path]:
    """The folders in a folder, hidden ones left out, by name; none where it is not there."""
    if not place.is_dir():
        return []
    return sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_image(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in SUFFIXES and not hidden and file.is_file()
