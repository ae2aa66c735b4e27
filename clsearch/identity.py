"""What a config is, wherever its data lies: what an output folder belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from clsearch.config import Config
from clsearch.data.base import Source, SourceConfig
from clsearch.options import PLACE, models_in
from clsearch.plugins import find
from clsearch.records import digest
from clsearch.scenarios.base import Scenario


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
    kind = find("clsearch.scenarios", Scenario, str(scenario.get("name")), "scenario.name")
    return _kept(scenario, kind.Options, "scenario")


def _kept(options: Mapping[str, Any], model: type[BaseModel], field: str) -> dict[str, Any]:
    kept = {}
    for name, value in options.items():
        info = model.model_fields.get(name)
        if info is None:
            kept[name] = value
        elif info.json_schema_extra != PLACE:
            kept[name] = _within(value, info.annotation, f"{field}.{name}")
    return kept


def _within(value: Any, annotation: Any, field: str) -> Any:
    """The value of an option, which may be a section of options, or a list of such."""
    if isinstance(value, list):
        return [_within(part, annotation, f"{field}[{i}]") for i, part in enumerate(value)]
    model = next(models_in(annotation), None)
    if not isinstance(value, dict) or model is None:
        return value
    if issubclass(model, SourceConfig):
        model = find("clsearch.data", Source, str(value.get("name")), field).Options
    return _kept(value, model, field)
