"""Exported models as files and folders, written whole or not at all, and read again.

A model's path says by its suffix what it is: see `clsearch.exports.formats`. Beside a file stands
`<file>.json`, which says what it holds; a folder says it itself.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from pydantic import BaseModel, Field, ValidationError

from clsearch.errors import DamagedError, InputError, StoreError
from clsearch.exports.formats.base import Loaded, description_of, format_of
from clsearch.exports.standalone import FORMAT, StandaloneModel, example_of, model_of
from clsearch.files import check_file, check_new, check_readable, content_of, file_sha256, parse

if TYPE_CHECKING:
    from clsearch.methods.base import ChainState
    from clsearch.scenarios.base import Task
    from clsearch.system import System

_OWN = ("format", "file", "sha256", "check", "architecture", "task", "input", "output")


def check_target(path: Path, force: bool) -> None:
    """Raises `InputError` for another suffix, for files that exist unless `force`, for a folder in
    place of a file, and for one that holds more than an exported model."""
    kind = format_of(path, "to")
    if kind.folder:
        check_folder(path, kind.parts(path), force)
    else:
        for file in sorted(kind.parts(path)):
            check_file(file, force)


def check_folder(path: Path, own: Set[Path], force: bool) -> None:
    """Raises `InputError` for a folder that exists: unless `force`, and all its files are `own`,
    those that were exported. What else lies there is not clsearch's to delete."""
    check_new(path, force)
    if not path.exists():
        return
    found = _below(path) if path.is_dir() else [path]
    other = next((p for p in found if p not in own and (p.is_symlink() or not p.is_dir())), None)
    if other is not None:
        step = f"{other} was not exported, and is left alone."
        raise InputError("to", str(path), "a new folder, or one with nothing else in it", step)


def _below(path: Path) -> Iterator[Path]:
    """What lies in a folder, one after the other: it may be that of the whole system. Raises
    `InputError` for what cannot be read."""

    def refuse(error: OSError) -> NoReturn:
        raise InputError("to", str(path), "a folder that can be read", str(error)) from error

    for folder, folders, files in os.walk(path, onerror=refuse):
        folders.sort()
        yield from (Path(folder, name) for name in sorted([*folders, *files]))


def save_export(
    path: Path, model: StandaloneModel, metadata: Mapping[str, Any], force: bool = False
) -> dict[str, Any]:
    """Writes the model to `path`, and `<name>.json` beside a file; returns what that says.

    `metadata` (metrics, digests, configuration; JSON-able) is stored with the description of the
    model. Raises `InputError` for what `check_target` refuses, for a folder that cannot be written,
    and for a model that the format cannot take; `StoreError` for a full disk. A failure leaves
    nothing new.
    """
    check_target(path, force)
    taken = sorted(_OWN & metadata.keys())
    if taken:
        raise ValueError(f"metadata may not hold {', '.join(taken)}: the description has it")
    kind = format_of(path, "to")
    described = {**model.describe(), **metadata, "file": path.name}
    with made(path.parent, path.name, description_of(path).name) as (place, beside):
        described |= kind.write(place, model, described)
        if kind.folder:
            replace_folder(place, path)
            return described
        described["sha256"] = file_sha256(place)
        beside.write_text(json.dumps(described, indent=2, allow_nan=False) + "\n")
        place.replace(path)
        beside.replace(description_of(path))
    return described


@contextlib.contextmanager
def made(folder: Path, *names: str) -> Iterator[tuple[Path, ...]]:
    """Places in `folder` to write to under other names; what is left there in the end is removed.

    Raises `InputError` for a folder that cannot be written, `StoreError` for a full disk.
    """
    places = tuple(folder / f".{name}.{os.getpid()}.tmp" for name in names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield places
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{folder}: {error.strerror}; nothing was exported") from error
        raise InputError("to", str(folder), "a folder to write to", str(error)) from error
    finally:
        for place in places:
            _remove(place)


def replace_folder(new: Path, path: Path) -> None:
    """Puts a folder in the place of another, if there is one."""
    old = new.with_name(f"{new.name}.old")
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _remove(old)


def write_model_files(
    folder: Path,
    system: System,
    state: ChainState,
    task: Task,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes `model.pt2`, `model.json` and `example.npy` (the batch it was exported with).

    Raises `ValueError` for a task that the chain has no answer for.
    """
    import numpy as np

    model = model_of(system, state, task)
    save_export(folder / "model.pt2", model, metadata or {}, force=True)
    np.save(folder / "example.npy", example_of(model).numpy(), allow_pickle=False)


_Number = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""Of a size, a class or a task. The limit is above all of them: messages show the number."""


class _Task(BaseModel):
    """What the model answers: a task of its scenario, whose classes its outputs are."""

    number: _Number
    name: str
    classes: list[str]


class _Input(BaseModel):
    """Images `["N", C, H, W]`, pixels from 0 to `high`."""

    shape: tuple[str, _Number, _Number, _Number]
    high: float = Field(gt=0, allow_inf_nan=False)
    permuted: bool


class _Output(BaseModel):
    """Outputs `["N", width]`, and what they are."""

    shape: tuple[str, _Number]
    what: str = Field(alias="is")


DESCRIBED: dict[str, type[BaseModel]] = {"task": _Task, "input": _Input, "output": _Output}
"""What a model has to say of itself to be measured."""


def load_export(path: Path) -> tuple[Loaded, dict[str, Any]]:
    """A saved model, callable on float32 pixels `[N, C, H, W]`, and its metadata.

    Raises `InputError` for a file that is missing, of another kind or not from clsearch,
    `DamagedError` for one that is not what `<file>.json` beside it describes. One with pickled
    objects is refused: nothing is unpickled but sample inputs, as plain tensors. Still, a `.pt2` is
    a program: load those you trust.
    """
    kind, about = format_of(path, "model"), description_of(path)
    try:
        if not kind.folder and about.exists():
            _check_sha256(path, about)
        answer, described = kind.load(path)
    except DamagedError as error:
        if kind.folder or about.exists():
            raise
        # Without a description nothing says that it ever was an exported model.
        said = str(error).removeprefix(f"{path} ")
        allowed = "a model that `clsearch export` wrote"
        raise InputError("model", str(path), allowed, f"It {said}.") from error
    except OSError as error:
        raise InputError("model", str(path), "a model that can be read", str(error)) from error
    if described.get("format") != FORMAT:
        step = f"It does not describe itself as {FORMAT}."
        raise InputError("model", str(path), "a model that `clsearch export` wrote", step)
    for part, needed in DESCRIBED.items():
        try:
            # As JSON, in which the strict reader takes lists for tuples.
            needed.model_validate_json(json.dumps(described.get(part)), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join([part, *map(str, first["loc"])])
            step = f"Its description has no whole `{part}` ({where}: {first['msg']})."
            allowed = "a model that `clsearch export` wrote"
            raise InputError("model", str(path), allowed, step) from error
    return answer, described


def _check_sha256(path: Path, about: Path) -> None:
    try:
        expected = parse(content_of(about))["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{about} does not describe a model of clsearch: {error!r}") from error
    check_readable(path, path.stat())
    if file_sha256(path) != expected:
        raise DamagedError(f"{path} is not what {about} describes (SHA-256 differs)")


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    elif os.path.lexists(place):
        place.unlink()
