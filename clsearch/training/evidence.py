"""What the data of a finished task shows of its model: the evidence a method consolidates by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clsearch.methods.base import Evidence, ImportanceObjective, Start, State
from clsearch.models.base import Backbone, Params, Tap
from clsearch.scenarios.base import Task
from clsearch.training.batch import DeviceData, PackData, answer
from clsearch.training.importance import mean_moment, neuron_importance


@dataclass(frozen=True)
class TrainingEvidence(Evidence):
    """Evidence from a task's data, for the parameters `params` of a model trained from `start`.

    `unlabelled` gives the images of an unlabelled source, as the task sees them, uint8
    `[N, C, H, W]`; `accuracies` the accuracy on the validation samples of every task so far.
    """

    backbone: Backbone
    start: Start
    params: Params
    data: PackData
    task: Task
    batch_size: int
    mean_activity: Mapping[str, Tensor]
    running: Mapping[str, Tensor]
    unlabelled: Callable[[str], Tensor]
    accuracies: Callable[[Params, State], list[float]]

    def activity(self) -> Mapping[str, Tensor]:
        return self.mean_activity

    def importance(
        self, objective: ImportanceObjective, source: str = "train", classes: Sequence[str] = ()
    ) -> Params:
        return mean_moment(
            self.backbone,
            self.params,
            self._images(source, classes),
            self.data.readout,
            self.start.gates,
            list(self.start.trainable),
            objective,
            self.batch_size,
        )

    def _images(self, source: str, classes: Sequence[str]) -> DeviceData:
        train = self.data.train
        if len(self.data.readout.heads) > 1 and (classes or source != "train"):
            raise ValueError("other images and single classes are for one output layer")
        if source == "train":
            if not classes:
                return train
            wanted = torch.tensor([self.task.classes.index(name) for name in classes])
            kept = torch.isin(train.labels, wanted).nonzero().squeeze(1)
            return train.part(kept)
        images = self.unlabelled("test-inputs" if source == "both" else source)
        if source == "both":
            images = torch.cat([train.inputs, images])
        labels = images.new_zeros(len(images)).long()
        return DeviceData(images, labels, None, train.transform)

    def neuron_importance(self) -> dict[str, Tensor]:
        return neuron_importance(
            self.backbone,
            self.params,
            self.data.train,
            self.data.readout,
            self.start.gates,
            self.batch_size,
        )

    @torch.no_grad()
    def features(self) -> tuple[Tensor, Tensor]:
        found = []
        for batch in self.data.train.batches(self.batch_size):
            tap = Tap(self.start.gates)
            answer(self.backbone, self.params, batch.x, self.data.readout, None, batch.group, tap)
            found.append(tap.features)
        return torch.cat(found), self.data.train.labels

    def validation(self, params: Params, state: State) -> list[float]:
        return self.accuracies(params, state)
