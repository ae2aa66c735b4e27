"""The contract of a format: how a model is written, and read back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from clsearch.errors import InputError
from clsearch.exports.standalone import StandaloneModel
from clsearch.files import file_sha256, parse
from clsearch.plugins import discover

EMBEDDED = "metadata.json"
"""Under this name a file carries its description within itself."""

Loaded = Callable[[Tensor], Tensor]
"""An exported model: float32 pixels `[N, C, H, W]` from 0 to `input.high` to outputs `[N, …]`."""


class Format(ABC):
    """One form of an exported model. One file a format; being in the folder is being registered.

    `name` is the suffix of its paths, without the dot, and what `--format` takes. `folder`: it is a
    folder that says itself what it holds; of a file, `<file>.json` beside it does.
    """

    name: ClassVar[str]
    folder: ClassVar[bool] = False

    @abstractmethod
    def write(
        self, place: Path, model: StandaloneModel, described: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Writes the file or the folder at `place`, which is new, and returns what `<file>.json`
        says beyond `described`. Raises `InputError` for a model that the format cannot take."""

    def parts(self, path: Path) -> set[Path]:
        """All files of what it wrote at `path`."""
        return {path, description_of(path)}

    def sha256(self, path: Path) -> str:
        """The SHA-256 of what it wrote."""
        return file_sha256(path)

    @abstractmethod
    def load(self, path: Path) -> tuple[Loaded, dict[str, Any]]:
        """A model as `write` wrote it, and its description.

        The description is empty for a model that another program wrote. Raises `InputError` for one
        that cannot be read, `DamagedError` for one that is damaged, or holds pickled objects.
        """


def formats() -> dict[str, Format]:
    """All formats by name."""
    return {name: kind() for name, kind in discover("clsearch.exports.formats", Format).items()}


def format_of(path: Path, field: str) -> Format:
    """The format that the suffix of a path names. Raises `InputError` at `field` for another."""
    known = formats()
    found = known.get(path.suffix.removeprefix("."))
    if found is None:
        raise InputError(field, str(path), "a name that ends in " + endings(known))
    return found


def endings(known: Mapping[str, Format]) -> str:
    """`.onnx`, `.pt2` or `.safetensors`, or `.mlflow`, a folder."""
    files = [f".{name}" for name, each in known.items() if not each.folder]
    folders = [f".{name} (a folder)" for name, each in known.items() if each.folder]
    return ", ".join(files + folders)


def embedded(text: str) -> dict[str, Any]:
    """The description that a file carries; empty where the text is none."""
    try:
        found = parse(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def description_of(path: Path) -> Path:
    """The JSON file that stands beside an exported file and says what it is."""
    return path.with_name(f"{path.name}.json")
