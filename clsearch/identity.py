"""What a config is, wherever its data lies: what an output folder belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from clsearch.config import Config
from clsearch.options import PLACE, models_in
from clsearch.plugins import find
from clsearch.records import digest

FOLDERS = ("root", "cache")
"""Options of a scenario that name folders of this machine, whatever it holds."""
_Place = Callable[[str, Any], dict[str, Any]]
"""What is kept of an option that is a place: by its name and value."""


def identity(config: Config) -> dict[str, str]:
    """Digests of what an output folder belongs to: name, scenario, model and training.

    The number of tasks, where data lies, grids, methods, seeds, margin and resources may change
    between runs of one folder: the journal is keyed by content. Raises `InputError` for a scenario
    or a source that is not known.
    """
    scenario = without_places(config.scenario.model_dump(exclude_none=True))
    scenario.pop("tasks", None)
    parts = {
        "name": config.name,
        "scenario": scenario,
        "model": config.model.model_dump(exclude_none=True),
        "training": config.training.model_dump(exclude_none=True),
    }
    return {name: digest(part) for name, part in parts.items()}


def without_places(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """The name and the options of a scenario, without those declared with `PLACE`, in the options
    of its sources too. Raises `InputError` for a scenario or a source that is not known."""
    return _kept(scenario, _options(scenario), "scenario", lambda name, value: {})


def movable(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """The name and the options of a scenario without the folders of this machine: data of the
    user's own keeps the last part of its path. Raises `InputError` as `without_places` does."""

    def place(name: str, value: Any) -> dict[str, Any]:
        return {} if name in FOLDERS else {name: without_folders(value)}

    return _kept(scenario, _options(scenario), "scenario", place)


def without_folders(value: Any) -> Any:
    """JSON in which every absolute path is the name of its file; class names may look like one."""
    if isinstance(value, Mapping):
        return {name: without_folders(part) for name, part in value.items()}
    if isinstance(value, list):
        return [without_folders(part) for part in value]
    absolute = isinstance(value, str) and value.startswith(("/", "~"))
    return PurePath(value).name if absolute else value


def _options(scenario: Mapping[str, Any]) -> type[BaseModel]:
    from clsearch.scenarios.base import Scenario  # imports torch

    kind = find("clsearch.scenarios", Scenario, str(scenario.get("name")), "scenario.name")
    options: type[BaseModel] = kind.Options
    return options


def _kept(
    options: Mapping[str, Any], model: type[BaseModel], field: str, place: _Place
) -> dict[str, Any]:
    """The options, nested ones included, with what `place` makes of each declared with `PLACE`."""
    kept = {}
    for name, value in options.items():
        info = model.model_fields.get(name)
        if info is None:
            kept[name] = value
        elif info.json_schema_extra == PLACE:
            kept |= place(name, value)
        else:
            kept[name] = _within(value, info.annotation, f"{field}.{name}", place)
    return kept


def _within(value: Any, annotation: Any, field: str, place: _Place) -> Any:
    """The value of an option, which may be a section of options, or a list of such."""
    from clsearch.data.base import Source, SourceConfig  # imports torch

    if isinstance(value, list):
        return [_within(part, annotation, f"{field}[{i}]", place) for i, part in enumerate(value)]
    model = next(models_in(annotation), None)
    if not isinstance(value, dict) or model is None:
        return value
    if issubclass(model, SourceConfig):
        model = find("clsearch.data", Source, str(value.get("name")), field).Options
    return _kept(value, model, field, place)
