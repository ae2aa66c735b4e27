"""CIFAR-10: small colour photographs of ten kinds of things."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from clsearch.data._cifar import SHAPE, CifarSource
from clsearch.data._images import ImageOptions, decode
from clsearch.data._labels import number
from clsearch.data._parquet import EncodedRows, read_labels
from clsearch.data._pixels import raw_data
from clsearch.data.base import RawData, Samples
from clsearch.errors import InputError

PARQUET = "cifar10_parquet"
_NAMES = "label_names.txt"


class Cifar10(CifarSource):
    """50,000 training and 10,000 test images 32x32 of ten classes (Krizhevsky 2009).

    Read from the set's binary version, `cifar-10-batches-bin`, or else from Parquet files of
    encoded images as public hubs have them, `cifar10_parquet`: all that is in
    `train-*.parquet` and `test-*.parquet`, with the classes in `label_names.txt`.
    """

    name: ClassVar[str] = "cifar10"
    licence: ClassVar[str] = "none stated; the report is to be cited"
    folder: ClassVar[str] = "cifar-10-batches-bin"
    archive: ClassVar[str] = "cifar-10-binary.tar.gz"
    md5: ClassVar[str] = "c32a1d4ab5d03f1284b67883e8d87530"
    train_files: ClassVar[tuple[str, ...]] = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
    test_files: ClassVar[tuple[str, ...]] = ("test_batch.bin",)
    names_file: ClassVar[str] = "batches.meta.txt"
    label_bytes: ClassVar[int] = 1
    classes: ClassVar[int] = 10

    def load(self, root: Path, download: bool) -> RawData:
        if not self._parquet(root):
            return super().load(root, download)
        folder = root / PARQUET
        names = self._names(folder / _NAMES)
        train, test = (self._decoded(folder, part, names) for part in ("train", "test"))
        return raw_data(train, test, names, self.options, self.field)

    def check(self, root: Path) -> None:
        if not self._parquet(root):
            try:
                super().check(root)
            except InputError as error:
                other = f"{PARQUET} holds train-*.parquet, test-*.parquet and {_NAMES}"
                allowed = f"{error.allowed}, or in which {other}"
                raise InputError(error.field, error.value, allowed, error.step) from None

    def _parquet(self, root: Path) -> bool:
        """Whether the set is there as Parquet files, and not in its binary version."""
        folder = root / PARQUET
        there = all(any(folder.glob(f"{part}-*.parquet")) for part in ("train", "test"))
        return there and bool(self._missing(root / self.folder))

    def _decoded(self, folder: Path, part: str, names: tuple[str, ...]) -> Samples:
        """One part of the set from its Parquet files, uint8 `[N, 3, 32, 32]`."""
        files, field = sorted(folder.glob(f"{part}-*.parquet")), "scenario.root"
        try:
            labels, _, _ = number(read_labels(files, "label", field), None, names, field)
            images = EncodedRows(files, "image", labels, field)
            samples, _ = decode(images, len(labels), ImageOptions(), field, self.storage)
        except InputError as error:
            allowed = f"undamaged files {part}-*.parquet of the columns image and label"
            raise InputError(field, str(folder), allowed, f"{error.value}: {error.step}") from error
        if samples.inputs.shape[1:] != SHAPE:
            found = "x".join(map(str, samples.inputs.shape[1:]))
            raise InputError(field, str(folder), "images of 3x32x32", f"Found: {found}.")
        return samples
