"""What travels from the driver to the nodes: a task's arrays, and the files its images are in."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from clsearch.config import Config
from clsearch.data._fetched import on_this_host
from clsearch.data._stored import ImageFile, Images, Storage, StoredImages
from clsearch.data.base import Samples
from clsearch.errors import StoreError
from clsearch.protocols import Shown
from clsearch.scenarios.base import Task, TaskData
from clsearch.search._ray import ray, scheduling_strategies

CHUNK, AHEAD = 8 << 20, 4
"""Bytes of a file that travel at a time, and how many such parts are under way: no more of it is in
Ray's memory."""

PackedData = dict[str, Any]
Place = Callable[[ImageFile], ImageFile]
"""Where a file of images that the driver named is here; raises `StoreError`."""


def packed(part: TaskData) -> PackedData:
    """A task's data as numpy arrays, which Ray shares between workers without copies; images in a
    file stay there, and every worker reads its batches."""
    return {
        "task": part.task,
        "digest": part.digest,
        "images": [
            i if isinstance(i, StoredImages) else i.numpy()
            for i in (part.train.inputs, part.validation.inputs)
        ],
        "labels": [part.train.labels.numpy(), part.validation.labels.numpy()],
        "numbers": [
            None if i is None else i.numpy() for i in (part.train.image, part.validation.image)
        ],
    }


def unpacked(content: PackedData, place: Place = ImageFile.checked) -> TaskData:
    """Tensors over Ray's shared memory: read-only, and only ever read.

    Raises `StoreError` where a file of images is not on this host and cannot come here.
    """
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        images = [
            i.placed(place) if isinstance(i, StoredImages) else torch.from_numpy(i)
            for i in content["images"]
        ]
        labels = [torch.from_numpy(a) for a in content["labels"]]
        numbers = [None if a is None else torch.from_numpy(a) for a in content["numbers"]]
    task: Task = content["task"]
    train, validation = map(Samples, images, labels, numbers)
    return TaskData(task, train, validation, content["digest"])


def shown_here(shown: Shown, place: Place) -> Shown:
    """What a job is shown, with every file of images where it is on this host. Raises `StoreError`
    where one is not and cannot come."""

    def here(images: Images) -> Images:
        return images.placed(place) if isinstance(images, StoredImages) else images

    return Shown(
        {source: here(images) for source, images in shown.images.items()},
        {n: replace(s, inputs=here(s.inputs)) for n, s in shown.validation.items()},
    )


def this_node() -> str:
    """Ray's number of the node that this process is on."""
    return str(ray.get_runtime_context().get_node_id())


def place_here(config: Config, origin: str) -> Place:
    """Where files of images are on this node: on the driver's, `origin`, where the driver put them;
    elsewhere where the same options and variables would have put them."""
    if this_node() == origin:
        return ImageFile.checked
    folder = Storage(0, config.scenario.options.get("cache")).folder
    return partial(on_this_host, folder=folder, stream=partial(_stream, origin))


def _stream(origin: str, path: Path) -> Iterator[bytes]:
    """The content of a file on another node, in parts. Raises `StoreError`."""
    there = scheduling_strategies.NodeAffinitySchedulingStrategy(origin, soft=False)
    read = ray.remote(num_cpus=0, scheduling_strategy=there)(_read)
    under_way: deque[Any] = deque()
    offset = 0
    while True:
        while len(under_way) < AHEAD:
            under_way.append(read.remote(str(path), offset))
            offset += CHUNK
        try:
            part = ray.get(under_way.popleft())
        except ray.exceptions.RayError as error:
            said = " ".join(str(error).split())
            raise StoreError(f"{path} does not come from the driver's host: {said}") from error
        if isinstance(part, str):
            raise StoreError(f"{path} cannot be read on the driver's host: {part}")
        yield part
        if len(part) < CHUNK:
            return


def _read(path: str, offset: int) -> bytes | str:
    """A part of a file of this host, or why it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(CHUNK)
    except OSError as error:
        return error.strerror or str(error)
