"""Data on the device: one contiguous uint8 tensor per split, normalised batch by batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from clsearch.data._stored import Images, StoredImages, joined, part_of
from clsearch.data.base import Samples
from clsearch.models.base import Backbone, Gates, Tap, forward, head_names
from clsearch.scenarios.answers import CLASSIFICATION, Answers
from clsearch.scenarios.base import InputTransform, Task, TaskData
from clsearch.training.augment import Views
from clsearch.training.tap import Noise


@dataclass(frozen=True)
class Readout:
    """The output layers a model answers with: their heads, side by side.

    With one head, `allowed` is None. With several, the outputs stand side by side and `allowed`,
    bool `[tasks, Σ outputs]`, opens for a sample of task g the outputs of that task alone.
    `answers` say what outputs mean: of all tasks together.
    """

    heads: tuple[int, ...]
    allowed: Tensor | None = None
    answers: Answers = CLASSIFICATION

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> Readout:
        heads = tuple(dict.fromkeys(t.head for t in tasks))
        every = [t.answers for t in tasks]
        answers = every[0].joined(every)
        if len(heads) == 1:
            return cls(heads, None, answers)
        widths = [t.outputs for t in tasks]
        owner = torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))
        allowed = owner[None, :] == torch.arange(len(widths))[:, None]
        return cls(heads, allowed, answers)

    def weights(self, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Weight `[Σ outputs, features]` and bias `[Σ outputs]` of all heads, side by side."""
        if len(self.heads) == 1:
            weight, bias = head_names(self.heads[0])
            return params[weight], params[bias]
        names = [head_names(h) for h in self.heads]
        return torch.cat([params[w] for w, _ in names]), torch.cat([params[b] for _, b in names])

    def mask(self, outputs: Tensor, group: Tensor | None) -> Tensor:
        """Outputs `[B, Σ outputs]` reduced to those of the task `group[b]`: see `Answers.own`."""
        if self.allowed is None or group is None:
            return outputs
        return self.answers.own(outputs, self.allowed.to(outputs.device)[group])


@dataclass(frozen=True)
class Batch:
    """Normalised images `x` float32 `[B, C, H, W]`, labels `y` int64 `[B]`.

    Where each of K members sees the images in its own way, `x` is `[K, B, C, H, W]`.
    `group` int64 `[B]` says which task each sample is of, where the readout has several heads.
    `targets` `[B, …]` by name are what a method that distils keeps the samples' answers to.
    `noise` is what dropout draws; without, nothing is dropped.
    """

    x: Tensor
    y: Tensor
    group: Tensor | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)
    noise: Noise | None = None


def answer(
    backbone: Backbone,
    params: Mapping[str, Tensor],
    x: Tensor,
    readout: Readout,
    gates: Gates | None,
    group: Tensor | None = None,
    tap: Tap | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs `[B, Σ outputs]` and activations by unit layer, for one member; see `forward`."""
    if len(readout.heads) == 1:
        return forward(backbone, params, x, readout.heads[0], gates, tap)
    weight, bias = readout.weights(params)
    combined = {**params, "head.-1.weight": weight, "head.-1.bias": bias}
    logits, activations = forward(backbone, combined, x, -1, gates, tap)
    return readout.mask(logits, group), activations


@dataclass(frozen=True)
class DeviceData:
    """One split on one device: `inputs` uint8 `[N, C, H, W]`, `labels` int64 `[N]`.

    Images that are stored in a file come to the device batch by batch. `targets` `[N, …]` by name:
    see `Batch`. `image` int64 `[N]`: see `Samples`.
    """

    inputs: Images
    labels: Tensor
    group: Tensor | None
    transform: InputTransform
    targets: dict[str, Tensor] = field(default_factory=dict)
    image: Tensor | None = None

    @classmethod
    def of(cls, samples: Samples, task: Task) -> DeviceData:
        """Samples of one task, where they are."""
        return cls(samples.inputs, samples.labels, None, task.transform, image=samples.image)

    def __len__(self) -> int:
        return self.inputs.shape[0]

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def batch(self, index: Tensor, noise: Noise | None = None, views: Views | None = None) -> Batch:
        """The samples at `index` int64 `[B]`, normalised; with `views` as each member sees them."""
        pixels = self.inputs.index_select(0, index).to(self.device)
        if views is not None:
            pixels = views.of(pixels)
        group = None if self.group is None else self.group.index_select(0, index)
        labels = self.labels.index_select(0, index)
        targets = {name: value.index_select(0, index) for name, value in self.targets.items()}
        return Batch(self.transform.normalise(pixels), labels, group, targets, noise)

    def part(self, index: Tensor) -> DeviceData:
        """The samples at `index` int64 `[n]`."""
        group = None if self.group is None else self.group[index]
        targets = {name: value[index] for name, value in self.targets.items()}
        inputs = part_of(self.inputs, index)
        image = None if self.image is None else self.image[index]
        return DeviceData(inputs, self.labels[index], group, self.transform, targets, image)

    def batches(self, size: int) -> Iterator[Batch]:
        """All samples in order, `size` at a time."""
        for i in range(0, len(self), size):
            group = None if self.group is None else self.group[i : i + size]
            x = self.transform.normalise(self.inputs[i : i + size].to(self.device))
            yield Batch(x, self.labels[i : i + size], group)


@dataclass(frozen=True)
class PackData:
    """What a pack trains on: a task, or several side by side for `joint`."""

    train: DeviceData
    validation: DeviceData
    readout: Readout

    @classmethod
    def of(cls, parts: Sequence[TaskData], device: torch.device) -> PackData:
        """The tasks' samples, one after the other, labels counted over the classes of all."""
        readout = Readout.of([p.task for p in parts])
        readout = replace(readout, answers=readout.answers.on(device))
        return cls(
            _join([p.train for p in parts], parts, readout, device),
            _join([p.validation for p in parts], parts, readout, device),
            readout,
        )


def _on(images: Images, device: torch.device) -> Images:
    """Images in memory on a device; those in files stay there."""
    return images if isinstance(images, StoredImages) else images.to(device)


def _join(
    samples: Sequence[Samples], parts: Sequence[TaskData], readout: Readout, device: torch.device
) -> DeviceData:
    transform = parts[0].task.transform
    numbers = [s.image for s in samples if s.image is not None]
    image = torch.cat(numbers).to(device) if numbers else None
    if len(parts) == 1:
        one = samples[0]
        inputs, labels = _on(one.inputs, device), one.labels.to(device)
        return DeviceData(inputs, labels, None, transform, image=image)
    inputs = _on(joined([s.inputs for s in samples]), device)
    labels = torch.cat([s.labels for s in samples])
    group = None
    lengths = torch.tensor([len(s) for s in samples])
    if readout.allowed is not None or not readout.answers.shared_labels:
        counts = [len(part.task.classes) for part in parts]
        starts = list(itertools.accumulate(counts[:-1], initial=0))
        labels = labels + torch.tensor(starts).repeat_interleave(lengths)
    if readout.allowed is not None:
        group = torch.arange(len(parts)).repeat_interleave(lengths).to(device)
    return DeviceData(inputs, labels.to(device), group, transform, image=image)
