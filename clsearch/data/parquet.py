"""Encoded images of the user's own in Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from clsearch.data._images import ImageOptions, decode
from clsearch.data._labels import LabelOptions, class_names, number
from clsearch.data._parquet import EncodedRows, read_labels
from clsearch.data._paths import files
from clsearch.data._pixels import raw_data
from clsearch.data.base import OwnOptions, RawData, Samples, Source
from clsearch.options import PLACE


class ParquetOptions(ImageOptions, LabelOptions, OwnOptions):
    path: str = Field(
        json_schema_extra=PLACE,
        description="The training part: a file or a pattern (`train-*.parquet`), absolute or within"
        " the data folder.",
    )
    test_path: str | None = Field(
        None,
        json_schema_extra=PLACE,
        description="The test part, likewise; default: the scenario holds one out.",
    )
    image: str = Field(
        "image",
        description="Column of the encoded images: bytes, or sections with bytes under `bytes`.",
    )
    label: str = Field("label", description="Column of the labels: whole numbers or texts.")


class Parquet(Source):
    """Encoded images and their labels in Parquet files, as public hubs keep them."""

    name: ClassVar[str] = "parquet"
    Options: ClassVar = ParquetOptions

    def load(self, root: Path, download: bool) -> RawData:
        """Training and test parts, uint8 `[N, C, H, W]`.

        Raises `InputError` for files that are missing or damaged, columns that are not there or of
        another kind, labels outside the classes, and what `decode` refuses.
        """
        training, *testing = self._files(root)
        known = class_names(self.options, root, self.field)
        column, field = self.options.label, f"{self.field}.label"
        labels = read_labels(training, column, field)
        others = read_labels(testing[0], column, field) if testing else None
        first, second, names = number(labels, others, known, field)
        train, notes = self._read(training, first)
        if second is None:
            return raw_data(train, None, names, self.options, self.field, notes)
        test, also = self._read(testing[0], second)
        return raw_data(train, test, names, self.options, self.field, notes + also)

    def check(self, root: Path) -> None:
        self._files(root)

    def _files(self, root: Path) -> list[list[Path]]:
        """The files of the training part and, if there is one, of the test part."""
        found = [files(root, self.options.path, f"{self.field}.path")]
        if self.options.test_path is not None:
            found.append(files(root, self.options.test_path, f"{self.field}.test_path"))
        return found

    def _read(self, part: list[Path], labels: list[int]) -> tuple[Samples, tuple[str, ...]]:
        images = EncodedRows(part, self.options.image, labels, f"{self.field}.image")
        return decode(images, len(labels), self.options, self.field, self.storage)
