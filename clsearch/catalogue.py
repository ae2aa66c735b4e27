"""What there is to choose from, described by the code itself: as Markdown, plug-in by plug-in."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.markdown import Markdown

from clsearch.axes import Space
from clsearch.config import Plugin
from clsearch.data.base import SourceConfig
from clsearch.errors import unknown
from clsearch.methods.base import Method
from clsearch.models.activations import lwta, maxout
from clsearch.options import models_in
from clsearch.plugins import discover
from clsearch.regularizers.base import Regularizer
from clsearch.space import LEARNING_RATE, Hyper


def methods(name: str | None = None) -> str:
    """Every method, regulariser and activation, or the one called `name`.

    Each with its equation, options, hyperparameters and the values worth searching. Raises
    `InputError` for a name that is none.
    """
    known = {
        "Methods": discover("clsearch.methods", Method),
        "Regularisers": discover("clsearch.regularizers", Regularizer),
    }
    if name is not None:
        kinds = known["Methods"] | known["Regularisers"]
        if name not in kinds:
            raise unknown("name", name, kinds)
        return "\n\n".join(plugin(name, kinds[name])) + "\n"
    parts = []
    for title, kinds in known.items():
        parts.append(f"## {title}")
        for one, kind in kinds.items():
            parts += plugin(one, kind)
    parts += ["## Activations", *_activations()]
    return "\n\n".join(parts) + "\n"


def print_methods(name: str | None, console: Console) -> None:
    """Prints the same: laid out in a terminal, as it is elsewhere."""
    text = methods(name)
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        print(text, end="")


def _activations() -> Iterator[str]:
    yield "### `relu`"
    yield "`max(x, 0)`, the default. A backbone takes the others as `activation`, with a `group`."
    for function in (lwta, maxout):
        yield f"### `{function.__name__}`"
        yield _text(function)


def _text(described: Any) -> str:
    """A docstring without its indentation."""
    return "\n".join(line.strip() for line in (described.__doc__ or "").strip().splitlines())


def section(title: str, model: type[BaseModel], path: str = "") -> Iterator[str]:
    """A table of a model's fields, then one for each section within it."""
    yield f"## {title}"
    yield _table(model)
    for name, info in model.model_fields.items():
        for inner in models_in(info.annotation):
            if inner is not Space and not issubclass(inner, Plugin):
                where = f"{path}{name}"
                yield from section(f"`{where}`", inner, f"{where}.")


def _table(model: type[BaseModel]) -> str:
    if not model.model_fields:
        return "No options."
    rows = ["| key | type | default | what |", "|---|---|---|---|"]
    for name, info in model.model_fields.items():
        what = info.description or _summary(info.annotation)
        rows.append(f"| `{name}` | {_type(info)} | {_default(info)} | {what} |")
    return "\n".join(rows)


def _summary(annotation: Any) -> str:
    found = next(models_in(annotation), None)
    return (found.__doc__ or "").splitlines()[0] if found else ""


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    if info.default is PydanticUndefined or isinstance(info.default, BaseModel):
        return "" if not isinstance(info.default, Plugin) else f"`{info.default.model_dump()}`"
    return f"`{'null' if info.default is None else info.default}`".replace("True", "true").replace(
        "False", "false"
    )


def _type(info: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(m, key)}"
        for m in info.metadata
        for key, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(m, key, None) is not None
    ]
    return _name(info.annotation) + (f" {', '.join(bounds)}" if bounds else "")


def _name(annotation: Any) -> str:  # noqa: PLR0911 - one return a kind of type
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _name(inner[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(a) for a in inner)
    if origin is list:
        return f"list of {_name(inner[0])}"
    if origin is dict:
        return "mapping"
    if annotation is type(None):
        return "null"
    if annotation is SourceConfig:
        return "text or section"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return names.get(annotation, str(annotation))


def plugin(name: str, kind: type[Any]) -> Iterator[str]:
    yield f"### `{name}`"
    yield _text(kind)
    if hasattr(kind, "Options"):
        yield _table(kind.Options)
        for key, info in kind.Options.model_fields.items():
            for inner in models_in(info.annotation):
                if not issubclass(inner, Plugin):
                    yield f"Keys of `{key}`:"
                    yield _table(inner)
    space: dict[str, Hyper] = dict(getattr(kind, "space", {}))
    if issubclass(kind, Method):
        space = {"lr": LEARNING_RATE, **space}
        known = discover("clsearch.regularizers", Regularizer)
        for regularizer in kind.regularizers:
            space |= known[regularizer].space
        if kind.regularizers:
            yield f"Includes the regulariser {', '.join(f'`{r}`' for r in kind.regularizers)}."
    if space:
        rows = ["| hyperparameter | default | worth searching | what |", "|---|---|---|---|"]
        for key, hyper in space.items():
            grid = ", ".join(f"{v:g}" for v in hyper.grid)
            rows.append(
                f"| `{key}` | {hyper.default:g} | {grid} | {hyper.doc} Takes {hyper.allowed}. |"
            )
        yield "\n".join(rows)
