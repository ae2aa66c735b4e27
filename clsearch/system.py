"""A config's names turned into objects, and everything about it checked before anything starts."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clsearch.addresses import SQLITE, database_of
from clsearch.axes import Grid, axis_values
from clsearch.config import AugmentConfig, Config, MethodConfig, Plugin, checked_options
from clsearch.data._stored import Images
from clsearch.data.base import data_root
from clsearch.errors import InputError, unknown
from clsearch.methods.base import ChainState, Context, Method, Start, State
from clsearch.models.base import Backbone, Gates, Params, head_names
from clsearch.models.partition import fitted
from clsearch.models.widths import resized
from clsearch.plugins import find
from clsearch.regularizers.base import Regularizer
from clsearch.scenarios.base import Scenario, Task
from clsearch.scenarios.unlabelled import TEST_INPUTS, load_unlabelled
from clsearch.space import LEARNING_RATE, Hyper

Shape = tuple[int, int, int]

MAX_TRIALS = 100_000
"""Trials of one chain at one task, at most: more is a slip in the grid."""

ANY_SHAPE = 3, 224, 224
"""Images that every backbone takes, where those of the data are not known."""


@dataclass(frozen=True)
class TaskModel:
    """What answers a task: a network in the widths it was learned in, its parameters, the number
    of its head, and the gates to run it with."""

    backbone: Backbone
    params: Params
    head: int
    gates: Gates


@dataclass(frozen=True)
class System:
    """One method of the config with its backbone, its regularisers and what can be searched.

    The backbone has the configured widths, or those of a chain's state (`of`).
    """

    config: MethodConfig
    backbone: Backbone
    method: Method
    regularizers: tuple[Regularizer, ...]
    space: dict[str, Hyper]

    @property
    def label(self) -> str:
        return self.config.chain_name

    def of(self, state: State, task: Task | None = None) -> System:
        """The same on the network that a method's state belongs to, or that learned `task`."""
        units = self.method.units(state, task)
        if all(units.get(u.name, u.units) == u.units for u in self.backbone.unit_layers):
            return self
        backbone = resized(self.backbone, units)
        method = type(self.method)(self.method.options, backbone)
        regularizers = tuple(type(r)(r.options, backbone) for r in self.regularizers)
        return replace(self, backbone=backbone, method=method, regularizers=regularizers)

    def begin(self, parent: ChainState | None, context: Context) -> tuple[System, Start]:
        """What a task is learned with, and where it starts. Raises `DepletedError` where nothing
        can be learned."""
        if parent is None:
            return self, self.method.begin(None, context)
        parent = self.method.grow(parent)
        grown = self.of(parent.state)
        return grown, grown.method.begin(parent, context)

    def model(self, chain: ChainState, task: Task) -> TaskModel | None:
        """The model that answers `task` in a chain's state; None if there is none."""
        gates = self.method.gates(chain.state, task)
        if gates is None or head_names(task.head)[0] not in chain.params:
            return None
        backbone = self.of(chain.state, task).backbone
        return TaskModel(backbone, fitted(chain.params, backbone), task.head, gates)


def build_scenario(config: Config, download: bool = True) -> Scenario:
    """The scenario of a config, its options checked. Reads no images; without `download` it fetches
    nothing, whatever the config says."""
    kind = find("clsearch.scenarios", Scenario, config.scenario.name, "scenario.name")
    options = dict(config.scenario.options)
    if not download:
        options.pop("download", None)
    built: Scenario = kind(checked_options(kind, options, "scenario"))
    return built


def build_backbone(config: Config, shape: Shape) -> Backbone:
    """The backbone of a config for images of a shape."""
    kind = find("clsearch.models", Backbone, config.model.name, "model.name")
    built: Backbone = kind(checked_options(kind, config.model.options, "model"), shape)
    return built


def build_system(config: Config, index: int, shape: Shape) -> System:
    """The method at `index` of a config, with its backbone and regularisers."""
    entry, field = config.methods[index], f"methods[{index}]"
    backbone = build_backbone(config, shape)
    kind = find("clsearch.methods", Method, entry.name, f"{field}.name")
    method: Method = kind(checked_options(kind, entry.options, f"{field}.options"), backbone)
    own = [
        Plugin(name=n) for n in kind.regularizers if n not in [r.name for r in entry.regularizers]
    ]
    regularizers = []
    for i, plugin in enumerate([*own, *entry.regularizers]):
        where = f"{field}.regularizers[{i - len(own)}]" if i >= len(own) else f"{field}.name"
        r_kind = find("clsearch.regularizers", Regularizer, plugin.name, f"{where}.name")
        try:
            regularizers.append(r_kind(checked_options(r_kind, plugin.options, where), backbone))
        except InputError as error:
            raise (error if error.field.startswith(where) else error.under(where)) from None
    names = [r.name for r in regularizers]
    if len(set(names)) < len(names):
        raise InputError(f"{field}.regularizers", names, "each regulariser once")
    space, owners = {"lr": LEARNING_RATE}, {"lr": "the optimiser"}
    for owner, declared in [
        (entry.name, method.space),
        *((r.name, r.axes) for r in regularizers),
    ]:
        for name, hyper in declared.items():
            if name in space:
                raise InputError(
                    f"{field}.regularizers",
                    owner,
                    f"parts whose hyperparameters differ in name; {owners[name]} has {name!r} too",
                )
            space[name], owners[name] = hyper, owner
    return System(entry, backbone, method, tuple(regularizers), space)


def resolve(config: Config) -> Config:
    """The config with the options of its scenario and backbone filled in, as it is stored.

    A data folder, files of images and a database of MLflow are made absolute, so that a resumed run
    finds them from anywhere.
    """
    kind = find("clsearch.scenarios", Scenario, config.scenario.name, "scenario.name")
    scenario = checked_options(kind, config.scenario.options, "scenario").model_dump(mode="json")
    if scenario.get("root") or os.environ.get("CLSEARCH_DATA"):
        scenario["root"] = str(data_root(scenario.get("root")).absolute())
    if scenario.get("cache"):
        scenario["cache"] = str(Path(scenario["cache"]).expanduser().absolute())
    kind = find("clsearch.models", Backbone, config.model.name, "model.name")
    model = checked_options(kind, config.model.options, "model").model_dump(mode="json")
    tracking = config.tracking
    if tracking.uri and (database := database_of(tracking.uri)):
        tracking = tracking.model_copy(update={"uri": f"{SQLITE}{database.absolute()}"})
    return config.model_copy(
        update={
            "tracking": tracking,
            "scenario": Plugin(name=config.scenario.name, **scenario),
            "model": Plugin(name=config.model.name, **model),
            "methods": [
                m.model_copy(update={"options": _absolute(m.options)}) for m in config.methods
            ],
        }
    )


def _absolute(value: Any) -> Any:
    """Options with the paths of `.npy` files in them made absolute."""
    if isinstance(value, str) and value.endswith(".npy"):
        return str(Path(value).expanduser().absolute())
    if isinstance(value, Mapping):
        return {key: _absolute(part) for key, part in value.items()}
    return [_absolute(part) for part in value] if isinstance(value, list) else value


def check(
    config: Config, scenario: Scenario, systems: Sequence[System], tasks: Sequence[Task]
) -> dict[str, Images]:
    """Raises `InputError` for combinations, options and grids that cannot be searched.

    Returns the images of the unlabelled sources that methods name, uint8 `[N, C, H, W]`.
    """
    unlabelled: dict[str, Images] = {}
    if systems:
        systems[0].backbone.initial()  # raises for weights that do not fit
    if config.training.augment is not None:
        _check_augment(config.training.augment, systems, tasks)
    _check_methods(config, scenario, systems)
    for i, system in enumerate(systems):
        other = [t for t in tasks if not t.answers.probabilities]
        if other and system.method.needs_classes:
            step = f"Task {other[0].number} answers with {other[0].answers.outputs_are}."
            allowed = "a method that does without the probabilities of classes"
            raise InputError(f"methods[{i}].name", system.config.name, allowed, step)
        options = f"methods[{i}].options"
        try:
            system.method.check(tasks, config.training.epochs)
        except InputError as error:
            raise error.under(options) from None
        for name, option in system.method.unlabelled.items():
            if name not in (*unlabelled, TEST_INPUTS):
                field = f"{options}.{option}"
                unlabelled[name] = load_unlabelled(name, tasks[0], scenario, field)
    return unlabelled


def check_without_data(config: Config) -> None:
    """Raises `InputError` for what is wrong with a config wherever its data lies: names, options,
    combinations and grids. Reads no file."""
    scenario = build_scenario(config)
    systems = [build_system(config, i, ANY_SHAPE) for i in range(len(config.methods))]
    _check_methods(config, scenario, systems)


def _check_methods(config: Config, scenario: Scenario, systems: Sequence[System]) -> None:
    """Raises `InputError` for methods and grids that cannot be searched on any data."""
    for i, system in enumerate(systems):
        if scenario.incremental not in system.method.scenarios:
            raise InputError(
                f"methods[{i}].name",
                system.config.name,
                "a method for " + scenario.incremental,
                f"{system.config.name} takes {', '.join(system.method.scenarios)} scenarios.",
            )
        if system.config.fine_tune and not system.method.prunes:
            allowed = "a method that prunes, where there is fine-tuning after pruning"
            raise InputError(f"methods[{i}].fine_tune", system.config.name, allowed)
        tune = system.config.fine_tune
        if tune and tune.l1 is not None and "l1" not in system.space:
            allowed = "null: no regulariser of this method has an l1"
            raise InputError(f"methods[{i}].fine_tune.l1", tune.l1, allowed)
        _check_grid(system.config.grid, system.space, f"methods[{i}].grid")
    everything = {name: hyper for system in systems for name, hyper in system.space.items()}
    _check_grid(config.search.grid, everything, "search.grid")
    for i, system in enumerate(systems):
        count = math.prod(len(values) for values in _axes(config, system).values())
        if count > MAX_TRIALS:
            allowed = f"grids that span at most {MAX_TRIALS} trials a task and chain"
            raise InputError(f"methods[{i}].grid", f"{count} trials", allowed)


def _check_augment(
    augment: AugmentConfig, systems: Sequence[System], tasks: Sequence[Task]
) -> None:
    """Raises `InputError` for what random changes of the images would make no sense of."""
    field, value = "training.augment", augment.model_dump(exclude_defaults=True)
    for task in tasks:
        if task.transform.permutation is not None:
            allowed = "a scenario that leaves the pixels where they are"
            raise InputError(field, value, allowed, f"Task {task.name} permutes them.")
        if augment.crop >= min(task.shape[1:]):
            allowed = f"less than {min(task.shape[1:])}, the side of {task.name}'s images"
            raise InputError(f"{field}.crop", augment.crop, allowed)
    for system in systems:
        if system.method.distils:
            allowed = "methods that do not keep the answers to stored images"
            step = f"{system.label} does: search it in a file of its own, without `augment`."
            raise InputError(field, value, allowed, step)


def _check_grid(grid: Grid, space: Mapping[str, Hyper], field: str) -> None:
    for name, axis in grid.items():
        if name not in space:
            raise unknown(f"{field}.{name}", name, space)
        for value in axis_values(axis):
            if not space[name].allows(value):
                raise InputError(f"{field}.{name}", value, space[name].allowed)


def _axes(config: Config, system: System) -> dict[str, list[float]]:
    axes = {n: [h.default] for n, h in system.space.items() if h.default is not None}
    for grid in (config.search.grid, system.config.grid):
        axes |= {name: axis_values(axis) for name, axis in grid.items() if name in system.space}
    return axes


def grid_of(config: Config, system: System) -> list[dict[str, float]]:
    """The hyperparameters of every trial of a method: the product of its axes, in order.

    A method's own axis replaces a shared one; a hyperparameter without an axis has its default, or
    none and is left out.
    """
    axes = _axes(config, system)
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
