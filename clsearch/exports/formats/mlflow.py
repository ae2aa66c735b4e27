"""`.mlflow`: a folder for `mlflow models serve`, with a `.pt2` program inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from clsearch.errors import DamagedError, InputError
from clsearch.exports.formats.base import Format, Loaded
from clsearch.exports.formats.pt2 import Program
from clsearch.exports.mlmodel import FILES, PROGRAM, write_alone
from clsearch.exports.standalone import StandaloneModel


class Served(Format):
    """A model of MLflow; its description stands in `MLmodel`, under `metadata`."""

    name: ClassVar[str] = "mlflow"
    folder: ClassVar[bool] = True

    def write(
        self, place: Path, model: StandaloneModel, described: Mapping[str, Any]
    ) -> dict[str, Any]:
        program = place / PROGRAM
        program.parent.mkdir(parents=True)
        Program().write(program, model, described)
        write_alone(place, model.task.shape, model.head.out_features, described)
        return {}

    def parts(self, path: Path) -> set[Path]:
        return {path / name for name in FILES}

    def sha256(self, path: Path) -> str:
        """That of the program inside."""
        return super().sha256(path / PROGRAM)

    def load(self, path: Path) -> tuple[Loaded, dict[str, Any]]:
        if not (path / "MLmodel").is_file():
            raise InputError("model", str(path), "a folder with the file MLmodel")
        if not (path / PROGRAM).is_file():
            raise DamagedError(f"{path} has no {PROGRAM}")
        return Program().load(path / PROGRAM)
