"""`.safetensors`: the tensors alone; clsearch rebuilds the model by `<file>.json` beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from clsearch.errors import DamagedError, InputError
from clsearch.exports.formats.base import Format, Loaded, description_of
from clsearch.exports.standalone import StandaloneModel, rebuild
from clsearch.files import content_of, parse

_ODD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What comes of a description that is not what `StandaloneModel.describe` writes."""


class Tensors(Format):
    """safetensors: no code, and nothing to unpickle."""

    name: ClassVar[str] = "safetensors"

    def write(
        self, place: Path, model: StandaloneModel, described: Mapping[str, Any]
    ) -> dict[str, Any]:
        from safetensors.torch import save

        tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
        place.write_bytes(save(tensors))
        return {}

    def load(self, path: Path) -> tuple[Loaded, dict[str, Any]]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        content, about = content_of(path), description_of(path)
        try:
            described: dict[str, Any] = parse(content_of(about))
            if described["file"] != path.name:
                raise InputError("model", str(path), f"{described['file']}, of which {about} tells")
            return rebuild(described, load(content)), described
        except (*_ODD, RuntimeError, SafetensorError) as error:
            said = repr(error).partition("\n")[0]
            raise DamagedError(f"{about} does not describe a model of clsearch: {said}") from error
