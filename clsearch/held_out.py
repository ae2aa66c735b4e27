"""What no trial trains on: test samples, validation samples of all tasks, images without labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from clsearch.data._stored import Images, chunks
from clsearch.data.base import Samples
from clsearch.scenarios.base import Scenario, Task
from clsearch.scenarios.unlabelled import TEST_INPUTS
from clsearch.training.batch import DeviceData


class HeldOut:
    """The samples of a scenario for models already selected; each is made once.

    `sources` are the images of the unlabelled sources, uint8 `[N, C, H, W]`.
    """

    def __init__(self, scenario: Scenario, sources: Mapping[str, Images]) -> None:
        self.scenario, self.sources = scenario, sources
        self._tests: dict[int, DeviceData] = {}
        self._test_digests: dict[int, str] = {}
        self._validations: dict[int, Samples] = {}

    def test(self, task: Task) -> DeviceData:
        """The test samples of a task: opened here and nowhere else; their labels stay here."""
        if task.number not in self._tests:
            self._tests[task.number] = DeviceData.of(self.scenario.test(task.number), task)
        return self._tests[task.number]

    def test_digest(self, task: Task) -> str:
        """The digest of the test samples of a task."""
        if task.number not in self._test_digests:
            data = self.test(task)
            self._test_digests[task.number] = Samples(data.inputs, data.labels, data.image).digest()
        return self._test_digests[task.number]

    def validation(self, task: Task) -> Samples:
        """The validation samples of a task."""
        if task.number not in self._validations:
            self._validations[task.number] = self.scenario.data(task.number).validation
        return self._validations[task.number]

    def unlabelled(self, source: str, task: Task) -> Images:
        """The images of a source as `task` sees them, uint8 `[N, C, H, W]`."""
        if source == TEST_INPUTS:
            return self.test(task).inputs
        return task.transform.permute(self.sources[source])

    def digest(self, source: str, task: Task) -> str:
        """The SHA-256 of those images."""
        sha = hashlib.sha256()
        for images in chunks(self.unlabelled(source, task)):
            sha.update(images.numpy().data)
        return sha.hexdigest()
