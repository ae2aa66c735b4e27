"""Hyperparameter and graceful-forgetting search for continual learning, distributed with Ray.

From Python: `load_config`, `run`, `Results`, `select`, `export`, `export_all`. They are imported
when first used, so that `import clsearch` alone is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clsearch.api import Results, export, export_all, load_config, run, select

__version__ = "0.1.0"
__all__ = ["Results", "__version__", "export", "export_all", "load_config", "run", "select"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'clsearch' has no attribute {name!r}")
    from clsearch import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
