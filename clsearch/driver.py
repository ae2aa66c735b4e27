"""A search with its edges put together: Ray, MLflow, the screen and the output folder."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console

from clsearch.config import Config, ResourcesConfig
from clsearch.errors import (
    ClsearchError,
    InputError,
    InterruptedRunError,
    StoreError,
    is_unwritten,
    unwritten,
)
from clsearch.files import cores
from clsearch.folder import (
    claimed,
    open_store,
    write_config,
)
from clsearch.messages import command, from_pydantic, say
from clsearch.records import Selection, TaskResult
from clsearch.search.reach import check_address
from clsearch.signals import stopper
from clsearch.store import Store

if TYPE_CHECKING:
    from clsearch.sequence import Found, Search

CLOSE, CLOSE_SOON = 30.0, 2.0
"""Seconds MLflow has to take what waits, at the end of a run and when it is interrupted."""


@dataclass(frozen=True)
class Options:
    """What the command line says beside the config. Raises `InputError` for workers of a cluster,
    which has its own."""

    address: str | None = None
    tracking_uri: str | None = None
    workers: int | None = None
    data: Path | None = None
    storage: str | None = None

    def __post_init__(self) -> None:
        if self.address is not None and self.workers is not None:
            raise InputError("workers", self.workers, "nothing beside --address")

    def apply(self, config: Config) -> Config:
        """The config with them. Raises `InputError` for a value that it cannot have, and for an
        address of MLflow, the config's too, that cannot be used or that names a user."""
        from clsearch.tracking import check_uri

        update: dict[str, Any] = {}
        if self.data is not None:
            scenario = config.scenario
            update["scenario"] = scenario.model_copy(update={"root": str(self.data)})
        if self.tracking_uri is not None:
            update["tracking"] = config.tracking.model_copy(update={"uri": self.tracking_uri})
        given = {"workers": self.workers, "storage": self.storage}
        resources = {name: value for name, value in given.items() if value is not None}
        if resources:
            data = {**config.resources.model_dump(), **resources}
            try:
                update["resources"] = ResourcesConfig.model_validate(data)
            except ValidationError as error:
                raise from_pydantic(error, ResourcesConfig) from error
        config = config.model_copy(update=update)
        if config.tracking.uri is not None:
            check_uri(config.tracking.uri)
        return config


def run_search(config: Config, out: Path, options: Options, console: Console) -> None:
    """Runs or resumes a search in `out` and prints what it found.

    Raises `InputError` before anything is written; `ClsearchError` when the run fails and
    `InterruptedRunError` when it is stopped, both with the command that goes on with it.
    """
    from clsearch.pruning.measure import one_thread
    from clsearch.sequence import Search
    from clsearch.system import resolve

    if options.address is not None:
        check_address(options.address)
    config = resolve(options.apply(config))
    search = Search(config, out, _reached(config, out))
    resume = command("resume", out, *(["--address", options.address] if options.address else []))
    with claimed(out, config):
        try:
            # one_thread: commits measure here
            with one_thread(), stopper.saying(lambda: _step(out, resume)):
                failed = _search(search, options, resume, console)
        except KeyboardInterrupt as stop:
            raise InterruptedRunError(f"interrupted. {_step(out, resume)}") from stop
        except InputError:
            raise
        except ClsearchError as error:
            raise type(error)(f"{error}\n{_step(out, resume)}") from error
        except OSError as error:
            if not is_unwritten(error):
                raise
            raise unwritten(error, _step(out, resume)) from error
    if failed:
        first = failed[0]
        raise ClsearchError(
            f"{len(failed)} of {len(config.methods) * len(config.seeds)} chains failed; "
            f"the first: {first.chain} at task {first.task}: {first.reason}"
        )


def _step(out: Path, resume: str) -> str:
    """What to do after a search that has not come to its end."""
    begun = (out / "config.yaml").exists()
    return f"Go on with: {resume}" if begun else "Nothing was written."


def _reached(config: Config, out: Path) -> Store:
    """The store; raises `InputError` for one outside the output folder that cannot be written."""
    try:
        store = open_store(out, config)
        if config.resources.storage is not None:
            store.check()
    except StoreError as error:
        allowed = "a store that can be written to, with the credentials in the environment"
        raise InputError("storage", config.resources.storage, allowed, str(error)) from error
    return store


def plan_search(config: Config, out: Path, options: Options, console: Console) -> None:
    """Prints what a search would do and take; checks all that can be, and writes nothing.

    Raises `InputError`, and `StoreError` for a database of MLflow that is busy.
    """
    from clsearch.dry_run import print_forecast
    from clsearch.sequence import Search
    from clsearch.system import resolve
    from clsearch.tracking import writable_store_of

    if options.address is not None:
        check_address(options.address)
    config = resolve(options.apply(config))
    writable_store_of(out, config.tracking.uri)  # raises
    search = Search(config, out, open_store(out, config))
    print_forecast(search, config.resources.workers or cores(), console)


def _search(search: Search, options: Options, resume: str, console: Console) -> list[Selection]:
    """The search between the edges: Ray, MLflow and the screen. Returns the ends of chains that
    failed. Nothing is written before both edges have accepted what the user asked for.
    """
    from clsearch.progress import ConsoleProgress
    from clsearch.report.tables import print_tables
    from clsearch.reporting import report
    from clsearch.search.ray_backend import RaySearcher
    from clsearch.tracking import MLflowTracker
    from clsearch.ui import ui_command

    config, out = search.config, search.out
    tracker = MLflowTracker(out, config.tracking.uri, config.tracking.system_metrics, apart=True)
    try:
        with watched(_step(out, resume)):
            searcher = RaySearcher(config.resources, options.address)
        try:
            write_config(out, config)
            if config.resources.storage is None:  # else another search may be writing there
                search.store.sweep()
            tracker.start(search.info())
            with watched(_step(out, resume)), ConsoleProgress(console) as progress:
                found = search.run(searcher, tracker, progress)
        finally:
            searcher.close()
        figures = report([out])
    except BaseException as error:
        # The audit trail says how it ended, if it still can: the reason to raise is the first one.
        # RuntimeError: it ended before it began.
        with contextlib.suppress(ClsearchError, RuntimeError):
            tracker.finish([], {}, "FAILED" if isinstance(error, Exception) else "KILLED")
        tracker.close(CLOSE_SOON)
        raise
    failed = [r.selection for r in found.results if r.selection.outcome == "failed"]
    tracker.finish(figures, _summary(found.results), "FAILED" if failed else "FINISHED")
    waiting = tracker.close(CLOSE)
    print_tables(console, found.trials, found.results)
    if waiting:
        problem = f" ({tracker.problem})" if tracker.problem else ""
        say(
            console,
            f"MLflow has not taken {waiting} entries yet{problem}. "
            f"They wait in {out / 'outbox'}; this delivers them: {command('resume', out)}",
        )
    if tracker.rejected:
        say(
            console,
            f"MLflow has refused {len(tracker.rejected)} entries; why is in "
            f"{out / 'outbox' / 'rejected'}. Those of this search are offered again by "
            f"{command('resume', out)}",
        )
    _print_end(found, out, ui_command(out, config.tracking.uri), console)
    return failed


WATCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
if not sys.stdin.read():
    print(sys.argv[1], file=sys.stderr)
"""
"""Waits until its input ends, and speaks if nothing was said there."""


@contextlib.contextmanager
def watched(step: str) -> Iterator[None]:
    """Has a step printed if this process ends without a word: it was killed, or Ray ended it, which
    it does when its own processes die."""
    text = f"clsearch: the run was killed, or Ray's own processes died. {step}"
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", WATCH, text],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process
    )

    def interrupted() -> str:
        watcher.communicate(b"it is said")
        return step

    try:
        with stopper.saying(interrupted):
            yield
    finally:
        watcher.communicate(b"it ended by itself")


def _summary(results: Sequence[TaskResult]) -> dict[str, float]:
    """The metrics of a whole search, by method and seed: ACC, forgetting, BWT."""
    from clsearch.metrics import (
        accuracy_matrix,
        average_accuracy,
        average_forgetting,
        backward_transfer,
    )

    found = {}
    for chain in sorted({r.selection.chain for r in results}, key=str):
        matrix = accuracy_matrix(r for r in results if r.selection.chain == chain)
        for name, metric in (
            ("average_accuracy", average_accuracy),
            ("average_forgetting", average_forgetting),
            ("backward_transfer", backward_transfer),
        ):
            value = metric(matrix)
            if value is not None:
                found[f"{name}/{chain.method}.seed-{chain.seed}"] = value
    return found


def _print_end(found: Found, out: Path, ui: str, console: Console) -> None:
    """What was trained, and the commands to look further."""
    if found.trained:
        reused = f", {found.reused} taken from the journal" if found.reused else ""
        say(console, f"{found.trained} trials trained{reused}.")
    else:
        say(
            console, f"Nothing was trained: all {found.reused} trials were in the journal of {out}."
        )
    done = [r for r in found.results if r.commit]
    say(console, f"Report:             {out / 'report' / 'index.html'}")
    say(console, f"Audit in MLflow:    {ui}")
    if done:
        s = done[-1].selection
        which = ["--method", s.method, "--task", str(s.task)]
        which += ["--seed", str(s.seed)] if len(found.config.seeds) > 1 else []
        take = command("export", out, *which, "--to", "model.pt2")
        say(console, f"Export a model:     {take}")
