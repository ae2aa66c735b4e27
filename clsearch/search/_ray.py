"""Ray, imported here and nowhere else, once the switches that it reads at import are set."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from clsearch.search import local

for _name, _value in {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402 - the switches above are read at import
from ray import _raylet as raylet  # noqa: E402
from ray._private import ray_constants, services  # noqa: E402
from ray._private.node import Node  # noqa: E402
from ray.util import scheduling_strategies  # noqa: E402

__all__ = [
    "Node",
    "authenticated",
    "job_client",
    "ray",
    "ray_constants",
    "raylet",
    "scheduling_strategies",
    "services",
]


def __getattr__(name: str) -> Any:
    """Tune, imported when it is first asked for: a job is followed without it."""
    if name != "tune":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ray import tune

    return tune


@contextlib.contextmanager
def authenticated(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Ray's processes that start meanwhile, and this one from now on, use this token.

    Ray remembers mode and token of the cluster that the process had before.
    """
    with local.environment(variables):
        raylet.Config.initialize("")  # type: ignore[attr-defined]
        raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]
        yield


def job_client() -> type[Any]:
    """Ray's client of a job server. What it imports, workers do without."""
    from ray.job_submission import JobSubmissionClient

    # It says on its own when a log ends.
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.CRITICAL)
    return JobSubmissionClient  # type: ignore[no-any-return]
