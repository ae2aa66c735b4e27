"""The data that no trial sees: test samples, kept validation samples, images without labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

from clsearch.data.base import Samples
from clsearch.scenarios.base import Scenario, Task
from clsearch.training.batch import DeviceData


class Images:
    """The samples of a scenario for models already selected.

    `digests` holds the SHA-256 of every unlabelled source.
    """

    def __init__(self, scenario: Scenario, unlabelled: Mapping[str, Tensor]) -> None:
        self.scenario, self.sources = scenario, unlabelled
        self.digests = {
            name: hashlib.sha256(images.numpy().data).hexdigest()
            for name, images in unlabelled.items()
        }
        self._tests: dict[int, DeviceData] = {}

    def test(self, task: Task) -> DeviceData:
        """The test samples of a task: opened here and nowhere else."""
        if task.number not in self._tests:
            self._tests[task.number] = self._device(self.scenario.test(task.number), task)
        return self._tests[task.number]

    def validation(self, task: Task) -> DeviceData:
        """The validation samples of a task, kept after it was learned."""
        return self._device(self.scenario.data(task.number).validation, task)

    def unlabelled(self, source: str, task: Task) -> Tensor:
        """The images of a source as `task` sees them, uint8 `[N, C, H, W]`; `test-inputs` are
        those of its test samples."""
        if source == "test-inputs":
            return self.test(task).inputs
        images, order = self.sources[source], task.transform.permutation
        return images if order is None else images.flatten(2)[:, :, order].view_as(images)

    @staticmethod
    def _device(samples: Samples, task: Task) -> DeviceData:
        return DeviceData(samples.inputs, samples.labels, None, task.transform)
