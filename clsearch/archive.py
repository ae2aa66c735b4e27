"""Exported programs, looked through before torch reads them: nothing in them may be pickled."""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from pathlib import Path
from pickle import UnpicklingError

import torch

from clsearch.errors import DamagedError
from clsearch.files import parse

KNOWN_PARTS = (
    "archive_format", "archive_version", "byteorder", ".data/", ".format_version", "version",
    ".storage_alignment", "models/", "data/sample_inputs/", "data/weights/", "data/constants/",
    "extra/",
)  # fmt: skip
"""What torch writes into an archive, beneath its one folder. Another layout is an older one, parts
of which torch unpickles."""

_TENSOR = re.compile(r"(weight|tensor)_\d+")
"""How torch calls a tensor that it reads as plain numbers; what has another name, it unpickles."""
_CONFIG = re.compile(r"\w+_config\.json")
"""How it calls the files that say which tensors there are."""


def checked_archive(path: Path, content: bytes) -> bytes:
    """The archive, made again of the parts that were looked at: where an archive can be read in two
    ways, torch gets the one that was checked.

    Raises `DamagedError` for one that is damaged, or holds what torch would unpickle.
    """
    again = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(again, "w") as copy:
            parts = archive.infolist()
            _check_names(path, [part.filename for part in parts])
            # torch compresses nothing: what unfolds to more than the file has is none of its own
            if sum(part.file_size for part in parts) > len(content):
                raise DamagedError(f"{path} unfolds to more than it has, as no model does")
            for part in parts:
                data = archive.read(part)
                _check_part(path, part.filename.partition("/")[2], data)
                copy.writestr(part.filename, data)
    except DamagedError:
        raise
    except UnpicklingError as error:
        raise _pickled(path) from error
    except Exception as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    return again.getvalue()


def _check_names(path: Path, names: list[str]) -> None:
    for name in names:
        root, _, inside = name.partition("/")
        if not (root and inside.startswith(KNOWN_PARTS)) or ".." in name.split("/"):
            raise DamagedError(f"{path} holds {name!r}, which no model of clsearch does")
    # torch looks for names whatever their case, and may find another of two
    ((name, times),) = Counter(name.casefold() for name in names).most_common(1) or [("", 0)]
    if times > 1:
        raise DamagedError(f"{path} holds {name!r} {times} times, as no model of clsearch does")


def _check_part(path: Path, inside: str, data: bytes) -> None:
    """Raises `DamagedError` or `UnpicklingError` for what torch would unpickle."""
    if inside.startswith("data/sample_inputs/"):
        torch.load(io.BytesIO(data), weights_only=True)
    elif inside.startswith(("data/weights/", "data/constants/")):
        name = inside.split("/", 2)[2]
        if _CONFIG.fullmatch(name):
            entries = parse(data)["config"].values()
            plain = all(_TENSOR.fullmatch(e["path_name"]) and not e["use_pickle"] for e in entries)
        else:
            plain = _TENSOR.fullmatch(name) is not None
        if not plain:
            raise _pickled(path)


def _pickled(path: Path) -> DamagedError:
    return DamagedError(f"{path} holds pickled objects, which clsearch does not read")
