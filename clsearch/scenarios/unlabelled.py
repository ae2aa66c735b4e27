"""Images without labels: a source by name, or a file of the user's."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from clsearch.data._stored import Images, chunks
from clsearch.data.base import Source, data_root
from clsearch.errors import InputError
from clsearch.plugins import discover
from clsearch.scenarios.base import Scenario, Task

TRAIN, TEST_INPUTS = "train", "test-inputs"
"""The sources that are a task's own: its training images, and its test images without labels."""


def load_unlabelled(name: str, task: Task, scenario: Scenario, field: str) -> Images:
    """Images uint8 `[N, C, H, W]` of a source's training part, or of a `.npy` file.

    The scenario says where data lies and is kept. Raises `InputError` under `field` for a name that
    is neither, a file that cannot be read, and images that are not like the task's: of another
    shape, or with other pixel values.
    """
    every = discover("clsearch.data", Source)
    known = {known: kind for known, kind in every.items() if not kind.needs_options()}
    allowed = f"a source ({', '.join(known)}) or a .npy file of uint8 images [N, C, H, W]"
    if name in known:
        source, options = known[name](storage=scenario.storage), scenario.options
        raw = source.load(data_root(options.root), options.download)
        images: Images = raw.train.inputs
        if tuple(images.shape[1:]) == task.shape and raw.scale != task.transform.scale:
            allowed = f"images whose pixels count up to {task.transform.scale:g}"
            raise InputError(field, name, allowed, f"These count up to {raw.scale:g}.")
    elif name.endswith(".npy"):
        images = _read(Path(name), field, allowed)
    else:
        raise InputError(field, name, allowed)
    if tuple(images.shape[1:]) != task.shape or not len(images):
        found = "x".join(map(str, images.shape))
        wanted = "x".join(map(str, task.shape))
        raise InputError(field, name, f"images of {wanted}, as the tasks have", f"It is {found}.")
    check_pixels(images, task, field, name)
    return images


def check_pixels(images: Images, task: Task, field: str, value: object) -> None:
    """Raises `InputError` for pixels above those of the task's data set."""
    largest, scale = max(int(part.max()) for part in chunks(images)), task.transform.scale
    if largest > scale:
        raise InputError(field, value, f"pixels from 0 to {scale:g}", f"There is one of {largest}.")


# What numpy raises for a header or a length that makes no sense, and for a home that is nobody's.
UNREADABLE = (OSError, ValueError, EOFError, BadZipFile, MemoryError, OverflowError, RuntimeError)


def _read(path: Path, field: str, allowed: str) -> Tensor:
    try:
        array = np.load(path.expanduser(), allow_pickle=False)
    except UNREADABLE as error:
        raise InputError(field, str(path), allowed, f"The reader said: {error}.") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise InputError(field, str(path), allowed)
    images = torch.from_numpy(np.ascontiguousarray(array))
    return images.unsqueeze(1) if images.ndim == 3 else images
