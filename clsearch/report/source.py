"""The runs that a report is about, as they were read from their folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from clsearch.config import Config
from clsearch.records import Chain, TaskRecord, TaskResult, TrialRecord
from clsearch.report.tables import ChainView, by_method


@dataclass(frozen=True)
class Run:
    """One run: its config, its finished trials and its selections.

    `about` is its `search.json` (scenario, tasks, machine, versions), empty where it ended before
    that was written. `open` are the chains that have not come to their end, and how far each is.
    `stored` counts the trials in the journal of a run that is not finished, those of its unfinished
    task too. `label` names it in a report, `folder` is the name of its folder.
    """

    config: Config
    records: Sequence[TrialRecord]
    results: Sequence[TaskResult]
    about: Mapping[str, Any] = field(default_factory=dict)
    open: Mapping[Chain, int] = field(default_factory=dict)
    stored: int = 0
    folder: str = ""
    label: str = ""

    @property
    def tasks(self) -> tuple[TaskRecord, ...]:
        """What each task of the sequence is made from."""
        tasks: tuple[TaskRecord, ...] = self.about.get("tasks", ())
        return tasks

    @cached_property
    def methods(self) -> dict[str, list[ChainView]]:
        """The chains of each method by seed, in the config's order; methods without results left
        out."""
        found = by_method(self.results)
        return {
            m.chain_name: found[m.chain_name] for m in self.config.methods if m.chain_name in found
        }

    @cached_property
    def trials(self) -> dict[str, list[TrialRecord]]:
        """The finished trials of each method, in the config's order."""
        found: dict[str, list[TrialRecord]] = {m.chain_name: [] for m in self.config.methods}
        for record in sorted(self.records, key=lambda r: (r.task, r.seed, r.trial_key)):
            found.setdefault(record.method, []).append(record)
        return found

    @property
    def reached(self) -> int:
        """The last task that any chain has finished."""
        return max((r.selection.task for r in self.results), default=0)

    @property
    def unfinished(self) -> list[str]:
        """A line for each chain that has neither learned all tasks nor ended."""
        every = len(self.tasks) or "?"
        return [f"{c.method}, seed {c.seed}: {n} of {every} tasks" for c, n in self.open.items()]

    @property
    def sequence(self) -> dict[str, Any]:
        """The scenario, wherever its data lies and however many of its tasks are taken."""
        scenario = self.about.get("scenario")
        if scenario is None:  # it ended before that was written
            from clsearch.identity import without_places  # imports torch then

            scenario = without_places(self.config.scenario.model_dump(exclude_none=True))
        return {name: value for name, value in scenario.items() if name != "tasks"}


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs, each with a label of its own: its name; with its folder where names are equal, and
    a number where folders are too."""
    names = [run.config.name for run in runs]
    several = Counter(names)
    labels = [
        f"{name} ({run.folder})" if several[name] > 1 and run.folder else name
        for name, run in zip(names, runs, strict=True)
    ]
    found = []
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        number = f" {labels[: i + 1].count(label)}" if labels.count(label) > 1 else ""
        found.append(replace(run, label=label + number))
    return found


def comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups of the same sequence of tasks, or the beginning of the same."""
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if _same(run, group[0]):
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def _same(a: Run, b: Run) -> bool:
    ours, theirs = ([task.digest for task in run.tasks] for run in (a, b))
    common = min(len(ours), len(theirs))
    return a.sequence == b.sequence and ours[:common] == theirs[:common]


def lines_of(runs: Sequence[Run]) -> dict[str, list[ChainView]]:
    """The chains behind each line of a figure, by method; with the run where there are several."""
    if len(runs) == 1:
        return dict(runs[0].methods)
    return {f"{run.label}: {m}": chains for run in runs for m, chains in run.methods.items()}
