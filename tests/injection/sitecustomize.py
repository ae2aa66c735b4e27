"""Read by every Python that a fault is injected into: `injected` is imported as soon as there are
trials to break, and the folder `methods` beside this file is one more place to look for methods."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import clsearch.methods

clsearch.methods.__path__.append(str(Path(__file__).with_name("methods")))


class _Injection(MetaPathFinder):
    """Imports `injected` right after `clsearch.trial`."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == "clsearch.trial" else None
        if spec is not None and spec.loader is not None:
            whole = spec.loader.exec_module

            def execute(module: ModuleType) -> None:
                whole(module)
                import injected  # noqa: F401

            spec.loader.exec_module = execute  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Injection())
