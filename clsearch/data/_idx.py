"""What MNIST and the sets made in its image share: four IDX files, read by torchvision."""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from clsearch.data._download import not_fetched
from clsearch.data._torchvision import torchvision
from clsearch.data.base import RawData, Samples, Source, as_samples
from clsearch.errors import InputError

SIDE = 28
FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
# What torchvision's reader raises for a header or a length that makes no sense.
_UNREADABLE = (AssertionError, LookupError, OverflowError, RuntimeError, TypeError, ValueError)


class IdxSource(Source, ABC):
    """A set of 28x28 grey images in `<root>/<dataset>/raw`, by its torchvision class."""

    dataset: ClassVar[str]
    """Name of the class in `torchvision.datasets`, which is also the folder's."""
    classes: ClassVar[tuple[str, ...]]
    mean: ClassVar[float]
    std: ClassVar[float]

    def load(self, root: Path, download: bool) -> RawData:
        """Training and test parts, uint8 `[N, 1, 28, 28]`.

        Raises `InputError` for files that are missing, damaged or of another size, and for a
        download that failed.
        """
        folder = root / self.dataset / "raw"
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing and not download:
            raise self._missing(folder, missing)
        train = self._read(root, folder, train=True, download=bool(missing))
        test = self._read(root, folder, train=False, download=False)
        return RawData(train, test, self.classes, 255.0, (self.mean,), (self.std,))

    def _missing(self, folder: Path, missing: list[str]) -> InputError:
        packed = all((folder / f"{name}.gz").is_file() for name in missing)
        step = "Set `download: true` to have them fetched, or give another `root`."
        if packed:
            step = (
                "Their .gz files are there: unpack them, or set `download: true`, which does so"
                " without a network (copy them first if the folder is read-only)."
            )
        return InputError(
            "scenario.root",
            str(folder.parent.parent),
            f"a folder in which {self.dataset}/raw holds {', '.join(FILES)}",
            f"Missing: {', '.join(missing)}. {step}",
        )

    def _read(self, root: Path, folder: Path, train: bool, download: bool) -> Samples:
        """One part of the set, checked."""
        names = ", ".join(name for name in FILES if name.startswith("train") == train)
        advice = "Delete these files (and their .gz), then set `download: true`."
        try:
            part = self._dataset_class()(str(root), train=train, download=download)
            images, labels = part.data, part.targets
        except (OSError, *_UNREADABLE) as error:
            if download:
                raise not_fetched(self.dataset, root, error) from error
            allowed, step = f"undamaged IDX files {names}", advice
            if isinstance(error, OSError):
                allowed, step = f"a folder of readable files {names}", f"The system said: {error}."
            raise InputError("scenario.root", str(folder), allowed, step) from error
        self._check(folder, names, images, labels)
        return as_samples(images, labels)

    def _dataset_class(self) -> Any:
        """The torchvision class, without its fall-back to `processed/*.pt`: pickled files that
        would be read instead of the ones checked here. The name is the folder's, so it stays."""
        original = getattr(torchvision().datasets, self.dataset)
        return type(self.dataset, (original,), {"_check_legacy_exist": lambda _: False})

    def _check(self, folder: Path, names: str, images: Tensor, labels: Tensor) -> None:
        """Raises `InputError` unless images are `[N, 28, 28]`, N > 0, with a class label each."""
        found = f"images {list(images.shape)}, labels {list(labels.shape)}"
        allowed = f"{SIDE}x{SIDE} images and as many labels in {names}"
        if images.shape[1:] != (SIDE, SIDE) or not 0 < len(images) == len(labels):
            raise InputError("scenario.root", str(folder), allowed, f"Found: {found}.")
        if not int(labels.max()) < len(self.classes):
            allowed = f"labels from 0 to {len(self.classes) - 1} in {names}"
            step = f"Found: {int(labels.max())}."
            raise InputError("scenario.root", str(folder), allowed, step)
