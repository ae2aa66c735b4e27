"""Ray, imported here and nowhere else, once the switches that it reads at import are set."""

from __future__ import annotations

import atexit
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
from clsearch.search.reach import within
from clsearch.signals import AT_ONCE, STOPS, stopper

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
from ray._private import ray_constants, services, utils, worker  # noqa: E402
from ray._private.node import Node  # noqa: E402
from ray.util import scheduling_strategies  # noqa: E402

__all__ = [
    "Node",
    "authenticated",
    "head_client",
    "job_client",
    "leave",
    "own_signals",
    "ray",
    "ray_constants",
    "raylet",
    "scheduling_strategies",
    "services",
    "stuck",
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


STOP = 15.0
"""Seconds that Ray has to end."""

_INSTALL, _UNINSTALL = "27InstallFailureSignalHandlerEPKcb", "21UninstallSignalActionEv"
"""Of `ray::RayLog`: its failure signal handler, which takes SIGTERM too, comes and goes."""


@contextlib.contextmanager
def own_signals(starting: bool) -> Iterator[None]:
    """Keeps the handlers of this process while Ray starts or stops. A signal that comes meanwhile
    is handled at the end: in between, Ray's code may drop what a handler raises, and hold a lock
    for ever. A second one, later than `AT_ONCE`, is handled as soon as Python can. Does nothing in
    another thread than the main one.

    Ray installs its failure signal handler where it finds none, and takes it away where there is
    one. Both are done here, at once before the handlers of this process are put in place, so that
    a SIGTERM meets the others for microseconds only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = {n: handler for n in STOPS if (handler := signal.getsignal(n)) is not None}
    came: list[tuple[int, float]] = []

    def handle(number: int, frame: Any) -> None:
        # Not sent again: who watches the signals would take it for a second one.
        handler = own[signal.Signals(number)]
        handler(number, frame) if callable(handler) else signal.raise_signal(number)

    def note(number: int, frame: Any) -> None:
        stopper.heard = True
        came.append((number, time.monotonic()))
        if came[-1][1] > came[0][1] + AT_ONCE:
            handle(number, frame)

    with contextlib.ExitStack() as stack:
        stack.callback(lambda: handle(came[0][0], None) if came else None)
        stack.callback(setattr, utils, "set_sigterm_handler", utils.set_sigterm_handler)
        for number, handler in own.items():
            stack.callback(signal.signal, number, handler)
        with contextlib.suppress(AttributeError):
            change = _INSTALL if starting else _UNINSTALL
            call = ctypes.PyDLL(raylet.__file__)[f"_ZN3ray6RayLog{change}"]
            call(*((None, False) if starting else ()))
        for number, handler in own.items():
            signal.signal(number, handler if handler == signal.SIG_IGN else note)
        utils.set_sigterm_handler = lambda handler: None
        yield


def head_client() -> Any:
    """This process's connection to the head of its cluster."""
    return worker.global_worker.gcs_client


def leave() -> None:
    """Ends what `ray.init` began, if Ray answers. If not, Ray's and Tune's exit hooks, which would
    wait for it, are taken off, and this process is `stuck`."""
    try:
        within(STOP, ray.shutdown)
    except TimeoutError:
        from ray.tune import registry

        _stuck.set()
        for hook in (ray.shutdown, registry._unregister_all):
            atexit.unregister(hook)


_stuck = threading.Event()


def stuck() -> bool:
    """Whether a Ray did not end in this process, which cannot start another one."""
    return _stuck.is_set()


def job_client() -> type[Any]:
    """Ray's client of a job server. What it imports, workers do without."""
    from ray.job_submission import JobSubmissionClient

    # It says on its own when a log ends.
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.CRITICAL)
    return JobSubmissionClient  # type: ignore[no-any-return]
