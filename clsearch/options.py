"""What every section of a configuration and every plug-in's options share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

PLACE: dict[str, Any] = {"place": True}
"""`json_schema_extra` of the `Field` of an option that says where data lies or is kept, or under
which licence, not what it is: a run stays what it is when such an option changes."""


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation names, those within `list[…]` and `… | None` included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


class Strict(BaseModel):
    """A frozen section that refuses unknown keys, numbers that are not finite, and truth values
    where numbers are meant: YAML's `yes` is no 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        several = isinstance(value, list | tuple)
        found = any(isinstance(v, bool) for v in (value if several else [value]))
        if found and "bool" not in str(annotation):
            raise ValueError("a list without true or false" if several else "no true or false")
        return value
