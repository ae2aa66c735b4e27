"""The selected chain of a run at a task, opened from its output folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clsearch.config import Config
from clsearch.errors import DamagedError, InputError, unknown
from clsearch.folder import open_store, results_of, run_config
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
    stored = read_commit(open_store(out), commit)
    if stored is None:
        raise DamagedError(f"the checkpoint {commit} is missing")
    tasks = build_scenario(config).tasks[:task]
    state = stored[0]
    system = build_system(config, labels.index(method), tasks[-1].shape).of(state.state)
    return SelectedChain(config, system, tasks, state, result)
