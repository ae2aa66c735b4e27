"""Ray, imported here and nowhere else, once the switches that it reads at import are set."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import threading
import time
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
from ray._private import ray_constants, services, utils  # noqa: E402
from ray._private.node import Node  # noqa: E402
from ray.util import scheduling_strategies  # noqa: E402

__all__ = [
    "Node",
    "authenticated",
    "job_client",
    "own_signals",
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


_CRASHES = {True: "27InstallFailureSignalHandlerEPKcb", False: "21UninstallSignalActionEv"}
"""Of `ray::RayLog`: the handler of crashes, which takes SIGTERM too, and its end."""

AT_ONCE = 1.0
"""Seconds within which a second signal is the first one: `timeout` sends it twice."""


@contextlib.contextmanager
def own_signals(crashes: bool) -> Iterator[None]:
    """Keeps the handlers of this process while Ray starts (`crashes`) or stops. What comes
    meanwhile waits for the end: an exception of a handler can be dropped in Ray's code, which then
    holds a lock for ever. Who sends a second one does not want to wait.

    Ray has a handler of crashes installed where it finds none, and takes it away where there is
    one: here that is done before, so that no SIGTERM meets it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, float]] = []

    def note(number: int, frame: Any) -> None:
        came.append((number, time.monotonic()))
        if came[-1][1] - came[0][1] > AT_ONCE:
            raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {n: own for n in numbers if (own := signal.getsignal(n)) is not None}
    set_handler = utils.set_sigterm_handler
    try:
        with contextlib.suppress(AttributeError):
            change = ctypes.PyDLL(raylet.__file__)[f"_ZN3ray6RayLog{_CRASHES[crashes]}"]
            change(*((None, False) if crashes else ()))
        for number, handler in handlers.items():
            signal.signal(number, handler if handler == signal.SIG_IGN else note)
        utils.set_sigterm_handler = lambda handler: None
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0][0])


def job_client() -> type[Any]:
    """Ray's client of a job server. What it imports, workers do without."""
    from ray.job_submission import JobSubmissionClient

    # It says on its own when a log ends.
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.CRITICAL)
    return JobSubmissionClient  # type: ignore[no-any-return]
