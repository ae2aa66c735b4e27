"""Weights that torchvision trained on ImageNet, as the fresh parameters of a backbone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from clsearch.errors import InputError
from clsearch.files import check_readable, content_of, file_sha256
from clsearch.models._convnet import ConvNet
from clsearch.models.base import Backbone, BackboneOptions, Params

DOWNLOAD = "torchvision"
FIELD = "model.weights"


class PretrainedOptions(BackboneOptions):
    weights: str | None = Field(
        None,
        description="Where training starts: `torchvision`, which downloads its ImageNet weights "
        "once, or a file with a state dict of torchvision's model, `.pth` or `.safetensors`.",
    )


class Pretrained(ConvNet):
    """A network of torchvision's. `sources` names its modules, in the order of the unit layers;
    its own output layer is left out. `url` is where torchvision keeps its weights."""

    sources: ClassVar[tuple[str, ...]]
    url: ClassVar[str]

    @property
    def initial_digest(self) -> str | None:
        weights = self.options.weights
        if weights is None or weights == DOWNLOAD:
            return weights and self.url
        path = Path(weights)
        try:
            status = path.stat()
        except OSError as error:
            raise _unreadable(weights, error) from error
        return _sha256(path, status.st_mtime_ns, status.st_size)

    def initial(self) -> Params:
        """Raises `InputError` for a file that cannot be read, or holds another architecture."""
        if self.options.weights is None:
            return {}
        found = self._read(self.options.weights)
        kind: Any = type(self)
        configured: Backbone = kind(self.options, self.shape)  # this one may have been widened
        own: Params = {}
        for unit, source in zip(self.unit_layers, self.sources, strict=True):
            for name in (unit.weight, unit.bias):
                given = f"{source}.{name.rpartition('.')[2]}"
                own[name] = self._checked(found, given, configured.get_parameter(name).shape)
        return own

    def _read(self, weights: str) -> Mapping[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            state: Mapping[str, Tensor]
            if weights == DOWNLOAD:
                state = torch.hub.load_state_dict_from_url(
                    self.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
                )
            elif Path(weights).suffix == ".safetensors":
                state = load(content_of(Path(weights)))
            else:
                check_readable(weights, os.stat(weights))
                state = torch.load(weights, map_location="cpu", weights_only=True)
            return state
        except (
            OSError,
            ValueError,
            EOFError,
            RuntimeError,
            UnpicklingError,
            SafetensorError,
        ) as error:
            raise _unreadable(weights, error) from error

    def _checked(self, found: object, name: str, shape: torch.Size) -> Tensor:
        """The tensor of a name, float32 of its own; `InputError` unless it has the shape."""
        value = found.get(name) if isinstance(found, Mapping) else None
        if not isinstance(value, Tensor) or value.shape != shape:
            wanted = "x".join(map(str, shape))
            has = "x".join(map(str, value.shape)) if isinstance(value, Tensor) else "missing"
            allowed = f"a state dict of torchvision's {self.name} with {name} of {wanted}"
            raise InputError(FIELD, self.options.weights, allowed, f"In this one it is {has}.")
        return value.detach().to(torch.float32, copy=True)


def _unreadable(weights: str, error: Exception) -> InputError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(FIELD, weights, "weights that can be read", lines[0])


@cache
def _sha256(path: Path, modified: int, size: int) -> str:
    """Of a file's content; read again when it changed."""
    return file_sha256(path)
