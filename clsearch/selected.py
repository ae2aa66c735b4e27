"""The selected models of a run, opened from its output folder and written to files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsearch.config import Config
from clsearch.errors import DamagedError, InputError, unknown
from clsearch.exports.compacted import compaction
from clsearch.exports.files import check_target, provenance, save_export
from clsearch.exports.standalone import model_of
from clsearch.files import check_writable
from clsearch.folder import command, open_store, results_of, run_config
from clsearch.methods.base import ChainState
from clsearch.records import TaskResult
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


def open_selected(out: Path, method: str, task: int, seed: int | None = None) -> SelectedChain:
    """What a run selected for a method (its label) at a task; `seed` by default its first.

    Raises `InputError` for what the run has not, `DamagedError` for a checkpoint that is missing
    or not what was stored.
    """
    config = run_config(out)
    labels = [m.chain_name for m in config.methods]
    if method not in labels:
        raise unknown("method", method, labels)
    seed = config.seeds[0] if seed is None else seed
    if seed not in config.seeds:
        raise unknown("seed", seed, map(str, config.seeds))
    own = {
        r.selection.task: r
        for r in results_of(out)
        if (r.selection.method, r.selection.seed) == (method, seed) and r.commit
    }
    if task not in own:
        there = ", ".join(map(str, own)) or "none so far"
        raise InputError("task", task, f"a task with a selected model of {method}: {there}")
    result = own[task]
    commit = str(result.commit)
    again = f"Make it again: {command('resume', out)}"
    try:
        stored = read_commit(open_store(out), commit)
    except DamagedError as error:
        raise DamagedError(f"{error}. {again}") from error
    if stored is None:
        raise DamagedError(f"the checkpoint {commit} is missing. {again}")
    tasks = build_scenario(config).tasks[:task]
    state = stored[0]
    system = build_system(config, labels.index(method), tasks[-1].shape).of(state.state)
    return SelectedChain(config, system, tasks, state, result)


def export(
    out: Path | str,
    method: str,
    task: int,
    to: Path | str,
    *,
    seed: int | None = None,
    compact: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Writes the model that a run selected for a method at a task to a file; returns what the file
    says of itself.

    `compact`: only the neurons that the task needs, and what that saves. Raises `InputError` for
    what the run has not and for files that exist, unless `force`.
    """
    out, to = Path(out), Path(to)
    run_config(out)
    check_writable(to, force)
    check_target(to, force)
    chain = open_selected(out, method, task, seed)
    model = model_of(chain.system, chain.state, chain.tasks[-1])
    metadata = provenance(chain.config, chain.result)
    if compact:
        full = model
        model = model_of(chain.system, chain.state, chain.tasks[-1], compacted=True)
        metadata["compaction"] = compaction(full, model)
    save_export(to, model, metadata, force)
    return metadata
