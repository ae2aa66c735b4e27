"""Memory Aware Synapses (Aljundi et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from clsearch.errors import InputError
from clsearch.methods._anchor import AnchorOptions, QuadraticAnchor
from clsearch.methods.base import Context, Evidence, ImportanceObjective, MethodOptions, Start
from clsearch.models.base import Params
from clsearch.scenarios.base import Task
from clsearch.scenarios.unlabelled import TEST_INPUTS, TRAIN
from clsearch.space import Hyper

BOTH = "both"
"""Training images and test images without labels, together."""


def squared_norm(logits: Tensor, labels: Tensor) -> Tensor:
    """`‖F(x)‖²` of each sample: logits `[B, classes]` to `[B]`; labels play no part."""
    return logits.square().sum(-1)


def every_output(logits: Tensor, labels: Tensor) -> Tensor:
    """`F_c(x)` of every output c, `[B, classes]`; labels play no part."""
    return logits


class Adaptation(BaseModel):
    """Importance from other images, at the end of a task and without training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: int = Field(ge=1, description="The task after which it takes place.")
    source: str = Field(TRAIN, description="The images, as for `source`.")
    classes: list[str] = Field(
        [], description="Only the training images of these classes of the task."
    )
    replace: bool = Field(
        True, description="In place of the task's own importance; false: added to it."
    )


Source = Annotated[
    str,
    Field(
        description="Images that importance is measured on: `train`, `test-inputs` (test images"
        " without their labels), `both`, a data source by name, or a .npy file of uint8 images."
    ),
]


class MASOptions(AnchorOptions):
    scope: Literal["global", "local"] = Field(
        "global", description="Gradients of the whole network, or of each layer by itself (§4.3)."
    )
    output: Literal["squared_norm", "vector"] = Field(
        "squared_norm",
        description="Of the output's squared norm, or of every output (a backward pass each).",
    )
    source: Source = TRAIN
    adapt: list[Adaptation] = Field(
        [], description="Importance from other images after some tasks (§5.1, §5.2)."
    )


class MAS(QuadraticAnchor):
    """`λ/2 · Σ_ij Ω_ij (θ_ij − θ*_ij)²` (MAS eq. 3), λ called `strength`.

    Ω is the mean over images of the magnitude of the per-sample gradient (MAS eq. 2) of the
    output's squared norm, or with `output: vector` the sum of the magnitudes of every output's
    gradient (§4.1). With `scope: local` it is that of each layer's own squared norm, its input
    held fixed: Hebb's rule `2·y_i·y_j` between ReLU layers (§4.3, eq. 6). It needs no labels, so
    that the images may be any (`source`, `adapt`); `test-inputs` lets the model adapt to test
    images, as the paper does (§5.2), and its accuracy on these is then no longer that on images
    never seen. The authors' code uses λ in place of λ/2:
    double its values here.
    """

    name: ClassVar[str] = "mas"
    version: ClassVar[int] = 2
    Options: ClassVar[type[MethodOptions]] = MASOptions
    space: ClassVar[dict[str, Hyper]] = {
        "strength": Hyper(1.0, (0.01, 0.1, 1.0, 10.0), "λ of the quadratic penalty.")
    }

    @property
    def objective(self) -> ImportanceObjective:
        """What importance is the gradient of."""
        value = squared_norm if self.options.output == "squared_norm" else every_output
        return ImportanceObjective(value, "magnitude", self.options.scope == "local")

    @property
    def unlabelled(self) -> dict[str, str]:
        named = {f"adapt[{i}].source": a.source for i, a in enumerate(self.options.adapt)}
        asked = {**named, "source": self.options.source}.items()
        return {name: key for key, value in asked for name in _sources(value) if name != TRAIN}

    def check(self, tasks: Sequence[Task], epochs: int) -> None:
        if self.options.scope == "local" and self.options.output == "vector":
            raise InputError("output", "vector", "squared_norm, where `scope` is local")
        for i, adaptation in enumerate(self.options.adapt):
            field, number = f"adapt[{i}]", adaptation.task
            if number > len(tasks):
                raise InputError(f"{field}.task", number, f"1 to {len(tasks)}")
            if adaptation.classes and adaptation.source != TRAIN:
                allowed = f"{TRAIN}, where `classes` are given: other images have no labels"
                raise InputError(f"{field}.source", adaptation.source, allowed)
            for name in adaptation.classes:
                if name not in tasks[number - 1].classes:
                    allowed = f"classes of task {number}: {', '.join(tasks[number - 1].classes)}"
                    raise InputError(f"{field}.classes", name, allowed)

    def measure(self, start: Start, params: Params, evidence: Evidence, context: Context) -> Params:
        chosen = [a for a in self.options.adapt if a.task == context.task.number]
        parts = [evidence.importance(self.objective, _sources(a.source), a.classes) for a in chosen]
        if not any(a.replace for a in chosen):
            parts.append(evidence.importance(self.objective, _sources(self.options.source)))
        return {name: sum((p[name] for p in parts[1:]), parts[0][name]) for name in parts[0]}


def _sources(name: str) -> tuple[str, ...]:
    """The sources of images that a value of the option names."""
    return (TRAIN, TEST_INPUTS) if name == BOTH else (name,)
