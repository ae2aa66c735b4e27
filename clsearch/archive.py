"""Exported programs, looked through before torch reads them: nothing in them may be pickled."""

from __future__ import annotations

import io
import zipfile
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


def check_archive(path: Path, content: bytes) -> None:
    """Raises `DamagedError` for an archive that is damaged, or holds pickled tensors, which torch
    would unpickle."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = archive.infolist()
            for name in (part.filename for part in parts):
                root, _, folder = name.partition("/")
                known = root and folder.startswith(KNOWN_PARTS)
                if not known or ".." in name.split("/"):
                    raise DamagedError(f"{path} holds {name!r}, which no model of clsearch does")
            # torch compresses nothing: what unfolds to more than the file has is none of its own
            if sum(part.file_size for part in parts) > len(content):
                raise DamagedError(f"{path} unfolds to more than it has, as no model does")
            if archive.testzip() is not None:
                raise DamagedError(f"{path} is damaged: a part of it has the wrong checksum")
            for name in archive.namelist():
                folder = name.split("/", 1)[-1]
                if folder.startswith("data/sample_inputs/"):
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                elif folder.startswith(("data/weights/", "data/constants/")):
                    _check_payloads(path, archive, name)
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    except UnpicklingError as error:
        raise DamagedError(f"{path} holds pickled objects, which clsearch does not read") from error


def _check_payloads(path: Path, archive: zipfile.ZipFile, name: str) -> None:
    file = name.rsplit("/", 1)[-1]
    plain = file.startswith(("weight_", "tensor_"))
    if file.endswith("_config.json"):
        config = parse(archive.read(name))["config"]
        plain = not any(entry["use_pickle"] for entry in config.values())
    if not plain:
        raise DamagedError(f"{path} holds pickled objects, which clsearch does not read")
