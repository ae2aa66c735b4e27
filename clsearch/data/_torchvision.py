"""The one door to torchvision: everything in the package that needs it calls `torchvision()`."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import library

# torchvision 0.26-0.28 describes these two operators to torch in Python while it is imported, and
# takes for granted that its compiled library has declared them. A CUDA build of torchvision (what
# the registry serves) cannot load that library beside a CPU build of torch, and the import dies
# with "operator torchvision::nms does not exist". Declared here without an implementation, they
# let the import pass; data sets, transforms and models never call them.
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")


@cache
def torchvision() -> Any:
    """The torchvision module, imported on the first call in this process.

    The schemas `torchvision::nms` and `torchvision::qnms` are declared first, where the compiled
    library did not. Raises `ImportError` when torchvision is not installed.
    """
    _load_compiled()
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        _declare(missing)
    return importlib.import_module("torchvision")


def _load_compiled() -> None:
    """Loads torchvision's compiled operators, as its own import is about to; failing is allowed.

    It has to come first: declaring an operator that the library then declares too is an error.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    files = [Path(spec.origin).with_name(f"_C{suffix}") for suffix in EXTENSION_SUFFIXES]
    compiled = next((file for file in files if file.exists()), None)
    if compiled is not None:
        try:
            torch.ops.load_library(compiled)  # type: ignore[no-untyped-call]
        except OSError:
            return


@cache
def _library() -> library.Library:
    """Kept for the life of the process: its declarations vanish with it."""
    return library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]


def _declare(names: list[str]) -> None:
    for name in names:
        _library().define(name + _SCHEMA)  # type: ignore[no-untyped-call]
