"""What the data of a finished task shows of its model: the evidence a method consolidates by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clsearch.data._stored import Images, joined
from clsearch.errors import InputError
from clsearch.methods.base import Evidence, ImportanceObjective, Start, State
from clsearch.models.base import Backbone, Params, Tap
from clsearch.scenarios.base import Task
from clsearch.scenarios.unlabelled import TRAIN
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
    unlabelled: Callable[[str], Images]
    accuracies: Callable[[Params, State], list[float]]

    def activity(self) -> Mapping[str, Tensor]:
        return self.mean_activity

    def importance(
        self,
        objective: ImportanceObjective,
        sources: Sequence[str] = (TRAIN,),
        classes: Sequence[str] = (),
    ) -> Params:
        return mean_moment(
            self.backbone,
            self.params,
            self._images(sources, classes),
            self.data.readout,
            self.start.gates,
            list(self.start.trainable),
            objective,
            self.batch_size,
        )

    def _images(self, sources: Sequence[str], classes: Sequence[str]) -> DeviceData:
        train = self.data.train
        if len(self.data.readout.heads) > 1 and (classes or tuple(sources) != (TRAIN,)):
            raise ValueError("other images and single classes are for one output layer")
        if classes:
            wanted = torch.tensor([self.task.classes.index(name) for name in classes])
            kept = torch.isin(train.labels, wanted).nonzero().squeeze(1)
            if not len(kept):
                allowed = f"classes that task {self.task.number} has training images of"
                raise InputError("adapt.classes", list(classes), allowed)
            return train.part(kept)
        if tuple(sources) == (TRAIN,):
            return train
        parts = [train.inputs if name == TRAIN else self.unlabelled(name) for name in sources]
        images = joined(parts)
        labels = torch.zeros(len(images), dtype=torch.int64, device=train.device)
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
