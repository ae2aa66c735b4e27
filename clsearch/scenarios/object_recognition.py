"""Object recognition: photographs of eight sets, one after the other (MAS §5.1)."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from pydantic import Field

from clsearch.data._images import Corrupt, Size
from clsearch.data.base import SourceConfig, build_source
from clsearch.scenarios._classes import once
from clsearch.scenarios._common import ConformedPool, Plan, PlannedScenario, Pool
from clsearch.scenarios.base import Incremental, ScenarioOptions

Set = Literal["flowers", "scenes", "birds", "cars", "aircraft", "actions", "letters", "svhn"]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of the pixels that torchvision's weights were trained on."""

_SMALL: Set = "svhn"
"""The set whose images are of one size, and scaled after they are read."""


class ObjectRecognitionOptions(ScenarioOptions):
    tasks: list[Set] = Field(
        list(get_args(Set)),
        min_length=1,
        description="The sets, a task each, in order; default all eight. `[birds, scenes]` is one"
        " of the pairs of MAS table 1.",
    )
    size: Size = Field(
        224,
        description="Height and width, or one number for both: every image is scaled until it"
        " covers them and cropped at the centre.",
    )
    normalise: Literal["own", "imagenet"] = Field(
        "own",
        description="Mean and deviation that pixels are normalised by: each set's own, or those of"
        " ImageNet, which weights of torchvision were trained with.",
    )
    corrupt: Corrupt = Field(
        "refuse",
        description="What to do with images that cannot be decoded: stop and name them, or leave"
        " them out and say so.",
    )


class ObjectRecognition(PlannedScenario):
    """Task t has all classes of the t-th set and an output layer of its own (MAS §5.1, fig. 5).

    Flowers, Scenes, Birds, Cars, Aircraft, Actions, Letters, SVHN, each with its own training and
    test part.
    """

    name: ClassVar[str] = "object_recognition"
    Options: ClassVar = ObjectRecognitionOptions
    incremental: Incremental = "task_incremental"

    def __init__(self, options: ObjectRecognitionOptions) -> None:
        super().__init__(options)
        once(options.tasks, "scenario.tasks", "every set once")
        self.pools: list[Pool] = []
        for name in options.tasks:
            form = {} if name == _SMALL else {"size": options.size, "corrupt": options.corrupt}
            source = build_source(SourceConfig(name=name, **form), "scenario", self.storage)
            moments = IMAGENET if options.normalise == "imagenet" else None
            self.pools.append(ConformedPool(source, options, options.size, "rgb", moments))

    def steps(self) -> list[tuple[Pool, Plan]]:
        return [
            (pool, Plan(pool.source.name, tuple(range(len(pool.raw.classes)))))
            for pool in self.pools
        ]
