"""Where a user's own files lie: a path or a pattern, within the data folder or absolute."""

from __future__ import annotations

import glob
from pathlib import Path

from clsearch.errors import InputError


def file(root: Path, path: str, field: str) -> Path:
    """The file at a path; raises `InputError` at `field` where there is none."""
    place = root / Path(path).expanduser()
    if not place.is_file():
        raise _absent(place, path, field, "a file that is there")
    return place


def files(root: Path, pattern: str, field: str) -> list[Path]:
    """The files at a path or that match a pattern (`train-*.parquet`), in order of their names.

    Raises `InputError` at `field` where there are none.
    """
    named = Path(pattern).expanduser()
    place = root / named
    if place.is_file():
        return [place]
    within = named if named.is_absolute() else Path(glob.escape(str(root))) / named
    found = [Path(name) for name in sorted(glob.glob(str(within))) if Path(name).is_file()]
    if not found:
        raise _absent(place, pattern, field, "a file that is there, or a pattern of such files")
    return found


def _absent(place: Path, path: str, field: str, allowed: str) -> InputError:
    step = f"Looked for {place.absolute()}. Paths are within the data folder (`root`), or absolute."
    return InputError(field, path, allowed, step)
