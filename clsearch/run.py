"""What the commands do: a search with its edges put together, and what can be done with one."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from clsearch.config import Config
from clsearch.errors import ClsearchError, DamagedError, InputError, InterruptedRunError
from clsearch.files import atomic_write, cores, in_use, program_path
from clsearch.folder import (
    claimed,
    open_store,
    records_of,
    results_of,
    run_config,
    write_config,
)
from clsearch.records import Selection, TaskResult

if TYPE_CHECKING:
    from clsearch.sequence import Results, Search

CLOSE, CLOSE_SOON = 30.0, 2.0
"""Seconds MLflow has to take what waits, at the end of a run and when it is interrupted."""


@dataclass(frozen=True)
class Options:
    """What the command line says beside the config."""

    address: str | None = None
    tracking_uri: str | None = None
    workers: int | None = None
    data: Path | None = None

    def apply(self, config: Config) -> Config:
        update: dict[str, Any] = {}
        if self.data is not None:
            scenario = config.scenario
            update["scenario"] = scenario.model_copy(update={"root": str(self.data)})
        if self.tracking_uri is not None:
            update["tracking"] = config.tracking.model_copy(update={"uri": self.tracking_uri})
        if self.workers is not None:
            update["resources"] = config.resources.model_copy(update={"workers": self.workers})
        return config.model_copy(update=update)


def run_search(config: Config, out: Path, options: Options, console: Console) -> None:
    """Runs or resumes a search in `out` and prints what it found.

    Raises `InputError` before anything is written; `ClsearchError` when the run fails and
    `InterruptedRunError` when it is stopped, both with the command that goes on with it.
    """
    from clsearch.sequence import Search
    from clsearch.system import resolve

    config = resolve(options.apply(config))
    search = Search(config, out, open_store(out))
    resume = _command("resume", out, *(["--address", options.address] if options.address else []))
    with claimed(out, config):
        try:
            failed = _search(search, options, console)
        except KeyboardInterrupt as stop:
            begun = (out / "config.yaml").exists()
            step = f"Go on with: {resume}" if begun else "Nothing was written."
            raise InterruptedRunError(f"interrupted. {step}") from stop
        except InputError:
            raise
        except ClsearchError as error:
            raise type(error)(f"{error}\nGo on with: {resume}") from error
    if failed:
        first = failed[0]
        raise ClsearchError(
            f"{len(failed)} of {len(config.methods) * len(config.seeds)} chains failed; "
            f"the first: {first.chain} at task {first.task}: {first.reason}"
        )


def plan_search(config: Config, out: Path, options: Options, console: Console) -> None:
    """Prints what a search would do and take; checks all that can be, and writes nothing.

    Raises `InputError`.
    """
    from clsearch.dry_run import print_forecast
    from clsearch.sequence import Search
    from clsearch.system import resolve

    config = resolve(options.apply(config))
    search = Search(config, out, open_store(out))
    print_forecast(search, config.resources.workers or cores(), console)


def _search(search: Search, options: Options, console: Console) -> list[Selection]:
    """The search between the edges: Ray, MLflow and the screen. Returns the ends of chains that
    failed. Nothing is written before both edges have accepted what the user asked for.
    """
    import torch

    from clsearch.progress import ConsoleProgress
    from clsearch.report import write_report
    from clsearch.report.tables import print_tables
    from clsearch.search.ray_backend import RaySearcher
    from clsearch.tracking import MLflowTracker, ui_command

    # What a commit measures must not depend on how many cores the driver's machine has.
    torch.set_num_threads(1)
    config, out = search.config, search.out
    tracker = MLflowTracker(out, config.tracking.uri)
    try:
        searcher = RaySearcher(config.resources, options.address)
        try:
            write_config(out, config)
            search.store.sweep()
            tracker.start(search.info())
            with watched(_command("resume", out)), ConsoleProgress(console) as progress:
                found = search.run(searcher, tracker, progress)
        finally:
            searcher.close()
        figures = write_report(out, found.records, found.results, config.name)
    except (KeyboardInterrupt, ClsearchError) as error:
        # The audit trail says how it ended, if it still can: the reason to raise is the first one.
        # RuntimeError: it ended before it began.
        with contextlib.suppress(ClsearchError, RuntimeError):
            tracker.finish([], {}, "FAILED" if isinstance(error, ClsearchError) else "KILLED")
        tracker.close(CLOSE_SOON)
        raise
    failed = [r.selection for r in found.results if r.selection.outcome == "failed"]
    tracker.finish(figures, _summary(found.results), "FAILED" if failed else "FINISHED")
    waiting = tracker.close(CLOSE)
    print_tables(console, found.records, found.results)
    if waiting or tracker.rejected:
        console.print(
            f"MLflow has not taken {waiting + len(tracker.rejected)} entries ({tracker.problem}). "
            f"They wait in {out / 'outbox'}; this delivers them: {_command('resume', out)}",
            soft_wrap=True,
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
def watched(resume: str) -> Iterator[None]:
    """Has the way to go on printed if this process ends without a word: it was killed, or Ray ended
    it, which it does when its own processes die."""
    text = f"clsearch: the run was killed, or Ray's own processes died. Go on with: {resume}"
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", WATCH, text],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process
    )
    try:
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
                found[f"{name}.{chain.method}.seed-{chain.seed}"] = value
    return found


def _print_end(found: Results, out: Path, ui: str, console: Console) -> None:
    """What was trained, and the commands to look further."""
    if found.trained:
        reused = f", {found.reused} taken from the journal" if found.reused else ""
        console.print(f"{found.trained} trials trained{reused}.")
    else:
        console.print(
            f"Nothing was trained: all {found.reused} trials were in the journal of {out}.",
            soft_wrap=True,
        )
    done = [r for r in found.results if r.commit]
    console.print(f"Figures and tables: {out / 'report'}", soft_wrap=True)
    console.print(f"Audit in MLflow:    {ui}", soft_wrap=True)
    if done:
        s = done[-1].selection
        command = _command(
            "export", out, "--method", s.method, "--task", str(s.task), "--to", "model.pt2"
        )
        console.print(f"Export a model:     {command}", soft_wrap=True)


def _command(verb: str, out: Path, *rest: str) -> str:
    """A command of clsearch as it can be typed here: by its path, where it is not on the PATH."""
    program = "clsearch" if shutil.which("clsearch") else program_path("clsearch")
    return shlex.join([program, verb, str(out), *rest])


def print_status(out: Path, console: Console) -> None:
    """Prints how far a run is, and whether a driver is at work on it."""
    from clsearch.system import build_scenario

    config = run_config(out)
    results = results_of(out)
    at_work = in_use(out)
    tasks = len(build_scenario(config).tasks)
    journal = out / "checkpoints" / "trials"
    stored = sum(1 for p in journal.glob("*/manifest.json")) if journal.is_dir() else 0
    console.print(
        f"{config.name} in {out}: {stored} finished trials in the journal", soft_wrap=True
    )
    finished = True
    for method in config.methods:
        for seed in config.seeds:
            of_chain = [
                r
                for r in results
                if (r.selection.method, r.selection.seed) == (method.chain_name, seed)
            ]
            own = [r.selection for r in of_chain]
            ended = next((s for s in own if s.outcome != "selected"), None)
            line = f"  {method.chain_name}/seed-{seed}: {len(own)} of {tasks} tasks"
            transferred = [str(r.selection.task) for r in of_chain if r.transfer]
            if transferred:
                line += f", last-layer transfer at {', '.join(transferred)}"
            if ended:
                line = f"  {ended.chain}: {ended.outcome} at task {ended.task}: {ended.reason}"
            elif len(own) < tasks:
                finished = False
            console.print(line, soft_wrap=True)
    if at_work:
        console.print("A run is at work on it.")
    elif finished:
        console.print("Finished.")
    else:
        console.print(f"Not finished. Go on with: {_command('resume', out)}", soft_wrap=True)


def reselect(out: Path, margin: float, to: Path | None, force: bool, console: Console) -> None:
    """Prints what another margin would have selected at each task, among the trials that ran.

    A task's trials started from the model selected before with the run's own margin; to let
    another margin seed the tasks, run the config with that margin: it trains only what is new.
    """
    from clsearch.refinement import known_prunings
    from clsearch.selection import select

    config = run_config(out)
    if not 0 <= margin <= 100:
        raise InputError("--margin", margin, "percentage points from 0 to 100")
    if to is not None:
        _check_target(to)
        if to.exists() and not force:
            raise InputError("--to", str(to), "a file that does not exist yet", "Or add --force.")
    records, old = [r for r in records_of(out) if not r.fine_tuned], {}
    for result in results_of(out):
        old[(result.selection.task, str(result.selection.chain))] = result.selection
    places = sorted({(r.task, str(r.chain)) for r in records})
    if not places:
        raise InputError("DIR", str(out), "a run with finished trials")
    store, chosen = open_store(out), []
    for place in places:
        own = [r for r in records if (r.task, str(r.chain)) == place]
        found = select(own, margin)
        by_layer = known_prunings(store, found) if config.selection.per_layer else {}
        chosen.append(select(own, margin, by_layer=by_layer) if by_layer else found)
    changed = 0
    for place, new in zip(places, chosen, strict=True):
        before = old.get(place)
        won = next((c for c in before.candidates if c.chosen), None) if before else None
        same = won is not None and won.trial_key == new.trial_key
        changed += not same or (won is not None and won.threshold != new.threshold)
        console.print(f"task {place[0]} {place[1]}: {_outcome(new)}", soft_wrap=True)
        if before is not None and not same:
            console.print(f"    was: {_outcome(before)}", soft_wrap=True)
    console.print(
        f"Margin {margin:g}: {changed} of {len(chosen)} selections differ from the run's. Nothing "
        "was trained; each task's trials still start from the run's own selection before it.",
        soft_wrap=True,
    )
    if config.selection.per_layer:
        console.print(
            "Thresholds by layer were looked for at the run's own margins; at others, trials are "
            "pruned at one threshold for all layers.",
            soft_wrap=True,
        )
    if any(m.fine_tune for m in config.methods):
        console.print("Fine-tuning, which comes after selection, is left out.")
    if to is not None:
        atomic_write(to, json.dumps([s.to_json() for s in chosen], indent=1) + "\n")


def _outcome(s: Selection) -> str:
    if s.outcome != "selected":
        return f"{s.outcome}: {s.reason}"
    hypers = " ".join(f"{n}={v:g}" for n, v in s.hyperparameters.items())
    pruned = "nothing" if s.threshold is None else f"activity ≤ {s.threshold:.4g}"
    return (
        f"{hypers} · validation {100 * (s.validation_accuracy or 0):.2f} % · prune {pruned}: "
        f"{100 * (s.accuracy or 0):.2f} %, sparsity {100 * (s.sparsity or 0):.0f} %"
    )


def _check_target(to: Path) -> None:
    """Raises `InputError` for a file that cannot be written because of where it is."""
    folder = to.absolute().parent
    if to.is_dir() or not folder.is_dir():
        step = "It is a folder." if to.is_dir() else f"There is no folder {folder}."
        raise InputError("--to", str(to), "a file in a folder that exists", step)


def export_selected(
    out: Path, method: str, task: int, seed: int | None, to: Path, force: bool, compact: bool
) -> tuple[Path, dict[str, Any]]:
    """Writes the selected model of a method and task; `compact`: what the task needs of it, and
    what that saves. Raises `InputError` for what isn't there."""
    from clsearch.export import check_target, compaction, model_of, provenance, save_export
    from clsearch.selected import open_selected

    run_config(out)
    _check_target(to)
    check_target(to, force)
    try:
        chain = open_selected(out, method, task, seed)
    except InputError as error:
        if error.field not in ("method", "task", "seed"):
            raise
        raise InputError(f"--{error.field}", error.value, error.allowed, error.step) from None
    except DamagedError as error:
        again = f"Make it again: {_command('resume', out)}"
        raise DamagedError(f"{error}. {again}") from error
    model = model_of(chain.system, chain.state, chain.tasks[-1])
    metadata = provenance(chain.config, chain.result)
    if compact:
        full = model
        model = model_of(chain.system, chain.state, chain.tasks[-1], compacted=True)
        metadata["compaction"] = compaction(full, model)
    save_export(to, model, metadata, force)
    return to, metadata


def print_compaction(found: Mapping[str, Any], console: Console) -> None:
    """Prints what a compact model saves, in a line each for size and latency."""
    units, parameters, size = (found[name] for name in ("units", "parameters", "bytes"))
    neurons = {n: sum(layers.values()) for n, layers in units.items()}
    if units["before"] == units["after"]:
        console.print(
            "Nothing was cut: the task reads every neuron by weights that are not zero, as it does "
            "in the models of methods that do not prune.",
            soft_wrap=True,
        )
    console.print(
        f"neurons {neurons['before']:,} → {neurons['after']:,}, parameters "
        f"{parameters['before']:,} → {parameters['after']:,}, {size['before'] / 1024:,.0f} → "
        f"{size['after'] / 1024:,.0f} KiB; logits differ by {found['difference']:.0e} at most",
        soft_wrap=True,
    )
    latency = found["latency"]
    times = ", ".join(
        f"{ms['before']:.3g} → {ms['after']:.3g} ms at batch {ms['batch']}" for ms in latency["ms"]
    )
    console.print(
        f"{times} (median of {latency['runs']}, one thread, {latency['cpu']})", soft_wrap=True
    )
