"""Discovery of plug-ins: a new one is one new file in its folder and no edit elsewhere."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

from clsearch.errors import unknown


def discover(package: str, base: type[Any]) -> dict[str, type[Any]]:
    """The concrete subclasses of `base` in the modules of `package`, by their `name`.

    A module whose name starts with an underscore, and `base` itself, are left out. Raises
    `TypeError` when two plug-ins of one package carry the same name.
    """
    found: dict[str, type[Any]] = {}
    root = importlib.import_module(package)
    for module_info in pkgutil.iter_modules(root.__path__):
        if module_info.name.startswith("_") or module_info.name == "base":
            continue
        module = importlib.import_module(f"{package}.{module_info.name}")
        for value in vars(module).values():
            own = inspect.isclass(value) and value.__module__ == module.__name__
            if not own or not issubclass(value, base) or inspect.isabstract(value):
                continue
            if value.name in found:
                raise TypeError(f"two plug-ins of {package} are called {value.name!r}")
            found[value.name] = value
    return dict(sorted(found.items()))


def find(package: str, base: type[Any], name: str, field: str) -> type[Any]:
    """The plug-in called `name`; an unknown name raises `InputError` listing the known ones."""
    known = discover(package, base)
    if name not in known:
        raise unknown(field, name, known)
    return known[name]
