"""The selected models of a run, opened from its output folder and written to files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clsearch.config import Config
from clsearch.errors import DamagedError, InputError, unknown
from clsearch.exports.compacted import compaction
from clsearch.exports.files import check_folder, check_target, made, replace_folder, save_export
from clsearch.exports.formats.base import formats
from clsearch.exports.index import entry, files_of, write_index
from clsearch.exports.provenance import provenance
from clsearch.exports.standalone import model_of
from clsearch.files import check_parent
from clsearch.folder import (
    chain_of,
    open_chains,
    open_store,
    results_of,
    run_config,
    tasks_of,
)
from clsearch.messages import command
from clsearch.methods.base import ChainState
from clsearch.records import NOT_STATED, Chain, TaskRecord, TaskResult
from clsearch.scenarios.base import Task
from clsearch.store import read_commit
from clsearch.system import System, build_scenario, build_system


@dataclass(frozen=True)
class SelectedChain:
    """A chain after its latest task, `tasks[-1]`, as the search selected it.

    `system` holds its method and backbone, `state` its parameters and what it remembers, `result`
    the selection and its test accuracies.
    """

    config: Config
    system: System
    tasks: tuple[Task, ...]
    state: ChainState
    result: TaskResult


class _Run:
    """An output folder whose selected models are opened; its data is read once."""

    def __init__(self, out: Path) -> None:
        self.out, self.config = out, run_config(out)
        self.results = results_of(out)

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        return build_scenario(self.config, download=False).tasks

    @cached_property
    def records(self) -> tuple[TaskRecord, ...]:
        return tasks_of(self.out)

    @property
    def unfinished(self) -> dict[Chain, int]:
        return open_chains(self.config, self.results, len(self.records))

    def selected(self, method: str, task: int, seed: int | None) -> TaskResult:
        """Raises `InputError` for what the run has not."""
        chain = chain_of(self.config, method, seed)
        own = [r for r in self.results if r.selection.chain == chain]
        for result in own:
            if result.selection.task == task and result.commit:
                return result
        there = ", ".join(str(r.selection.task) for r in own if r.commit) or "none so far"
        allowed = f"a task with a selected model of {chain}: {there}"
        raise InputError("task", task, allowed, self.why_not(own))

    def why_not(self, own: list[TaskResult]) -> str:
        """Why a chain has no more tasks than these."""
        for result in own:
            s = result.selection
            if s.outcome != "selected":
                return f"The chain ended at task {s.task}: {s.outcome}, {s.reason}."
        if not self.results or self.unfinished:
            return f"The run is not finished. Go on with: {command('resume', self.out)}"
        return ""

    def opened(self, result: TaskResult) -> SelectedChain:
        """Raises `DamagedError` for a checkpoint that is missing or not what was stored."""
        commit, s = str(result.commit), result.selection
        again = f"Make it again: {command('resume', self.out)}"
        try:
            stored = read_commit(open_store(self.out), commit)
        except DamagedError as error:
            raise DamagedError(f"{error}. {again}") from error
        if stored is None:
            raise DamagedError(f"the checkpoint {commit} is missing. {again}")
        tasks, state = self.tasks[: s.task], stored[0]
        index = [m.chain_name for m in self.config.methods].index(s.method)
        system = build_system(self.config, index, tasks[-1].shape).of(state.state)
        return SelectedChain(self.config, system, tasks, state, result)

    def write(
        self, result: TaskResult, to: Path, compact: bool, licence: str, force: bool = False
    ) -> dict[str, Any]:
        """Writes a selected model and returns what the file says of itself."""
        chain = self.opened(result)
        model = model_of(chain.system, chain.state, chain.tasks[-1])
        about = provenance(self.config, chain.system.method, self.records, result, licence)
        if compact:
            full = model
            model = model_of(chain.system, chain.state, chain.tasks[-1], compacted=True)
            about["compaction"] = compaction(full, model)
        return save_export(to, model, about, force)


def open_selected(out: Path, method: str, task: int, seed: int | None = None) -> SelectedChain:
    """What a run selected for a method (its label) at a task; `seed` by default its first.

    Raises `InputError` for what the run has not, `DamagedError` for a checkpoint that is missing
    or not what was stored.
    """
    run = _Run(out)
    return run.opened(run.selected(method, task, seed))


def _check_licence(licence: str) -> None:
    if not licence.strip():
        raise InputError("licence", licence, f"words; without any it is {NOT_STATED!r}")


def export(
    out: Path | str,
    method: str,
    task: int,
    to: Path | str,
    *,
    seed: int | None = None,
    compact: bool = False,
    licence: str = NOT_STATED,
    force: bool = False,
) -> dict[str, Any]:
    """Writes the model that a run selected for a method at a task; returns what it says of itself.

    The suffix of `to` says the format: `.pt2`, `.onnx`, `.safetensors`, or `.mlflow`, a folder.
    `compact`: only the neurons that the task needs, and what that saves. `licence` is that of the
    model. Raises `InputError` for what the run has not, for a model that the format cannot take,
    and for files that exist, unless `force`; a failure leaves nothing.
    """
    run, to = _Run(Path(out)), Path(to)
    _check_licence(licence)
    check_parent(to)
    check_target(to, force)
    return run.write(run.selected(method, task, seed), to, compact, licence, force)


def export_all(
    out: Path | str,
    to: Path | str,
    *,
    format: str = "pt2",
    compact: bool = False,
    licence: str = NOT_STATED,
    force: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Writes every model that a run selected into a new folder, and an index; returns the index.

    A model's path is `METHOD/seed-S/task-T.FORMAT`; `index.json` and `index.md` list them. Of a run
    that is not finished it takes what is there, and the index says so. `note` is told of each
    model. Raises `InputError` and leaves nothing as `export` does; a folder in the way is replaced
    with `force`, if it holds exported models and nothing else.
    """
    run, to = _Run(Path(out)), Path(to)
    if format not in formats():
        raise unknown("format", format, formats())
    _check_licence(licence)
    check_parent(to)
    check_folder(to, files_of(to), force)
    there = [result for result in run.results if result.commit]
    if not there:
        allowed = "a run with selected models"
        raise InputError("DIR", str(run.out), allowed, run.why_not(run.results))
    with made(to.parent, to.name) as (place,):
        entries = []
        for result in there:
            s = result.selection
            name = f"{s.method}/seed-{s.seed}/task-{s.task}.{format}"
            about = run.write(result, place / name, compact, licence)
            entries.append(entry(place, name, about))
            note(f"{name}: test accuracy {100 * about['metrics']['test_accuracy']:.2f} %")
        index = write_index(place, run.config.name, run.unfinished, entries)
        replace_folder(place, to)
    return index
