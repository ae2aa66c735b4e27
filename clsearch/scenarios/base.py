"""The contract of a scenario: a sequence of tasks, their data, and what is known of each."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from clsearch.data._stored import GIB, Images, Storage, StoredImages, permuted
from clsearch.data.base import Samples, Source
from clsearch.options import PLACE, Strict
from clsearch.records import TaskRecord
from clsearch.scenarios.answers import CLASSIFICATION, Answers

Incremental = Literal["task_incremental", "domain_incremental"]


@dataclass(frozen=True)
class InputTransform:
    """What stands between stored pixels and the network.

    `x = (pixel / scale - mean[c]) / std[c]`, then pixels in the order of `permutation` (int64
    `[H·W]`, None: as they are). The stored tensors of a task are permuted already.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    permutation: Tensor | None = None

    @property
    def order(self) -> str | None:
        """SHA-256 of the permutation; None: pixels stay as they are."""
        if self.permutation is None:
            return None
        return hashlib.sha256(self.permutation.numpy().data).hexdigest()

    def permute(self, images: Images) -> Images:
        """Images `[N, C, H, W]` of a data set as the task sees them: all channels alike."""
        if self.permutation is None:
            return images
        if isinstance(images, StoredImages):
            return images.permuted(self.permutation)
        return permuted(images, self.permutation).contiguous()

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels `[N, C, H, W]` (uint8 or float) to normalised float32 of the same shape."""
        mean, std = (
            torch.tensor(v, device=pixels.device).view(1, -1, 1, 1) for v in (self.mean, self.std)
        )
        copy = pixels.to(torch.float32, copy=True)
        return copy.div_(self.scale).sub_(mean).div_(std)


@dataclass(frozen=True)
class Task:
    """One task of a sequence. `number` counts from 1; `head` is the output layer it uses.

    Labels of its samples run from 0 to `len(classes) - 1`. `answers` say what the head's outputs
    mean.
    """

    number: int
    name: str
    classes: tuple[str, ...]
    head: int
    shape: tuple[int, int, int]
    transform: InputTransform
    answers: Answers = CLASSIFICATION

    @property
    def outputs(self) -> int:
        """How many outputs its head has."""
        return self.answers.width(len(self.classes))


@dataclass(frozen=True)
class TaskData:
    """What a trial may see of a task: training and validation samples, never test samples.

    `test_size` is how many test samples the scenario keeps back.
    """

    task: Task
    train: Samples
    validation: Samples
    digest: str
    test_size: int = 0


class ScenarioOptions(Strict):
    """Options that every scenario has."""

    root: str | None = Field(
        None,
        json_schema_extra=PLACE,
        description="Folder of the data; default `$CLSEARCH_DATA`, else `data`.",
    )
    download: bool = Field(
        False, json_schema_extra=PLACE, description="Download a missing data set into the folder."
    )
    validation: float = Field(
        0.1, gt=0, lt=1, description="Share of the training samples held out for validation."
    )
    test: float = Field(
        0.2, gt=0, lt=1, description="Share held out for testing, where a set has no test part."
    )
    split_seed: int = Field(
        0, ge=0, le=2**63 - 1, description="Seed of the split and of the task sequence."
    )
    memory: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        json_schema_extra=PLACE,
        description="GiB of decoded images that are kept in memory; those beyond it are kept in"
        " files and read batch by batch. Default a quarter of the machine's memory.",
    )
    cache: str | None = Field(
        None,
        json_schema_extra=PLACE,
        description="Folder of these files; default `$CLSEARCH_CACHE`, else `~/.cache/clsearch`.",
    )

    def storage(self) -> Storage:
        """Where the decoded images of a scenario are kept."""
        return Storage(None if self.memory is None else int(self.memory * GIB), self.cache)


class Scenario(ABC):
    """A sequence of tasks. One file a scenario; being in the folder is being registered.

    The constructor checks what can be checked without reading images; data is read on first use.
    `storage` is where all of its images are kept, those without labels included.
    """

    name: ClassVar[str]
    Options: ClassVar[type[ScenarioOptions]]
    incremental: Incremental

    def __init__(self, options: Any) -> None:
        self.options = options
        self.storage: Storage = options.storage()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the data as it was read: images left out, say."""
        return ()

    @property
    @abstractmethod
    def tasks(self) -> tuple[Task, ...]:
        """The tasks in order. May read the data."""

    @abstractmethod
    def data(self, number: int) -> TaskData:
        """Training and validation samples of task `number`, transformed, labels from 0."""

    def record(self, number: int) -> TaskRecord:
        """What task `number` is made from. Reads its data."""
        task, data, source = self.tasks[number - 1], self.data(number), self.origin(number)
        sizes = len(data.train), len(data.validation), data.test_size
        known = source.name, source.terms, task.classes, task.shape
        return TaskRecord(number, task.name, *known, data.digest, *sizes)

    @abstractmethod
    def origin(self, number: int) -> Source:
        """The data set that task `number` is made from."""

    @abstractmethod
    def test(self, number: int) -> Samples:
        """Test samples of task `number`: for the final evaluation of selected models only."""
