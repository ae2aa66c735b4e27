"""Two runs beside each other: which selections differ, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from clsearch.config import Config
from clsearch.files import ABOUT
from clsearch.folder import chains_of, open_chains, results_of, run_config, tasks_of
from clsearch.identity import without_places
from clsearch.messages import say
from clsearch.methods.base import Method
from clsearch.plugins import find
from clsearch.records import Candidate, Chain, Selection, TaskRecord, TaskResult
from clsearch.reselect import outcome_in_words

_SHOWN = ("trial_key", "hyperparameters", "validation_accuracy", "threshold", "thresholds",
          "accuracy", "sparsity", "margin", "best", "floor", "outcome", "reason")  # fmt: skip
"""What of a selection a comparison shows."""

_TRAINED = ("name", "model", "training", "scenario.incremental", "selection.thresholds", "methods")
"""Parts of a config that make a trial another one; of a method, all but what `_CHOSEN` names."""
_CHOSEN = ("grid", "margin", "fine_tune")


@dataclass(frozen=True)
class _Run:
    """What is compared of a run."""

    out: Path
    config: Config
    results: Mapping[tuple[Chain, int], TaskResult]
    tasks: Mapping[int, TaskRecord]
    unfinished: Mapping[Chain, int]

    @classmethod
    def read(cls, out: Path) -> _Run:
        config, results = run_config(out), results_of(out)
        tasks = tasks_of(out) if (out / ABOUT).exists() else ()
        by_place = {(r.selection.chain, r.selection.task): r for r in results}
        # Without search.json it ended before its first task.
        unfinished = open_chains(config, results, len(tasks) or 1)
        return cls(out, config, by_place, {t.number: t for t in tasks}, unfinished)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The config, field by field, without what changes no result."""
        data = self.config.model_dump(mode="json", exclude={"resources", "tracking"})
        data["scenario"] = without_places(data["scenario"])
        data["methods"] = {m.pop("label") or m["name"]: m for m in data["methods"]}
        return dict(_flat(data))

    def method(self, label: str) -> type[Method]:
        """The method of a label; raises `InputError` for one that is not known any more."""
        (name,) = (m.name for m in self.config.methods if m.chain_name == label)
        return find("clsearch.methods", Method, name, "methods.name")

    def why_none(self, place: tuple[Chain, int], name: str) -> str:
        """Why the run, `name` in words, has no selection for a chain of its own at a task."""
        chain, task = place
        ends = [r.selection for (c, _), r in self.results.items() if c == chain]
        for end in ends:
            if end.outcome != "selected":
                return f"the chain of {name} ended at task {end.task}: {outcome_in_words(end)}"
        if chain in self.unfinished:
            return f"{name} has not come to this task"
        return f"{name} has no task {task}: it is a sequence of {len(self.tasks)}"


def compare(a: Path | str, b: Path | str) -> dict[str, Any]:
    """Which selections of two runs differ, and why, as facts of both; JSON-able.

    `runs` says of each whether it is finished; `config` lists the fields that differ, `data` the
    tasks made from other data, `chains` those that one run alone has, and `selections` every task
    of the chains of both: what each selected, and where that differs, `why`. Raises `InputError`
    for a folder that is no run.
    """
    first, second = _Run.read(Path(a)), _Run.read(Path(b))
    changed = {
        name: [first.fields.get(name), second.fields.get(name)]
        for name in dict.fromkeys([*first.fields, *second.fields])
        if first.fields.get(name) != second.fields.get(name)
    }
    places = list(dict.fromkeys([*first.results, *second.results]))
    places.sort(key=lambda place: (str(place[0]), place[1]))
    chains = [set(chains_of(run.config)) for run in (first, second)]
    both = chains[0] & chains[1]
    return {
        "runs": {name: _about(run) for name, run in (("a", first), ("b", second))},
        "config": [{"field": f, "a": x, "b": y} for f, (x, y) in changed.items()],
        "data": list(_data(first, second)),
        "chains": {
            "a": sorted(str(c) for c in chains[0] - both),
            "b": sorted(str(c) for c in chains[1] - both),
        },
        "selections": [
            _selection(first, second, place, changed) for place in places if place[0] in both
        ],
    }


def _about(run: _Run) -> dict[str, Any]:
    return {
        "folder": str(run.out),
        "name": run.config.name,
        "finished": not run.unfinished,
        "unfinished": {str(chain): tasks for chain, tasks in run.unfinished.items()},
    }


def _data(a: _Run, b: _Run) -> Iterator[dict[str, Any]]:
    """The tasks of both runs whose training or validation samples differ."""
    kept = ("source", "classes", "digest", "train", "validation", "test")
    for number in sorted(a.tasks.keys() & b.tasks.keys()):
        one, other = a.tasks[number], b.tasks[number]
        if one.digest != other.digest:
            parts = ({k: getattr(t, k) for k in kept} for t in (one, other))
            yield {"task": number, **dict(zip("ab", parts, strict=True))}


def _selection(
    a: _Run, b: _Run, place: tuple[Chain, int], changed: Mapping[str, Any]
) -> dict[str, Any]:
    """What both runs selected for a chain at a task, and why that differs."""
    chain, task = place
    found = a.results.get(place), b.results.get(place)
    shown = {name: None if r is None else _shown(r) for name, r in zip("ab", found, strict=True)}
    same = bool(found[0] and found[1]) and _model(found[0]) == _model(found[1])
    why = [] if same else list(_why(a, b, place, changed))
    return {"method": chain.method, "seed": chain.seed, "task": task, "same": same, **shown,
            "why": why}  # fmt: skip


def _model(result: TaskResult | None) -> tuple[Any, ...]:
    """What makes a selection the same one: the stored model, and what could be pruned of it; of a
    chain that ended, how and why."""
    if result is None:
        return ()
    s = result.selection
    return (result.commit, s.threshold, s.thresholds) if result.commit else (s.outcome, s.reason)


def _shown(result: TaskResult) -> dict[str, Any]:
    selection = result.selection
    shown = {name: getattr(selection, name) for name in _SHOWN}
    return {**shown, "commit": result.commit, "test_accuracy": (result.test or (None,))[-1]}


def _why(a: _Run, b: _Run, place: tuple[Chain, int], changed: Mapping[str, Any]) -> Iterator[str]:
    """The facts behind two selections that differ."""
    one, other = a.results.get(place), b.results.get(place)
    if one is None or other is None:
        run, name = (a, "A") if one is None else (b, "B")
        yield run.why_none(place, name)
        return
    x, y = one.selection, other.selection
    if x.margin != y.margin:
        yield f"the margin is {x.margin:g} in A and {y.margin:g} in B, in percentage points"
    yield from _trained_otherwise(a, b, place, changed)
    if x.best is not None and y.best is not None and x.best != y.best:
        yield f"the best trial reaches {_percent(x.best)} in A and {_percent(y.best)} in B"
    won = _won(x), _won(y)
    if one.commit and one.commit == other.commit:
        yield "the model is the same: its method removes nothing, whatever could be pruned"
    if won[0] and won[1] and won[0].hyperparameters == won[1].hyperparameters:
        yield from _same_winner(won[0], won[1])
        if len(x.rounds) != len(y.rounds):
            yield f"it was fine-tuned in {len(x.rounds)} rounds in A and in {len(y.rounds)} in B"
        return
    yield from _fate(x, y, "A", "B")
    yield from _fate(y, x, "B", "A")


def _trained_otherwise(
    a: _Run, b: _Run, place: tuple[Chain, int], changed: Mapping[str, Any]
) -> Iterator[str]:
    """Why the trials of a task are not the same in both runs."""
    chain, task = place
    kind = a.method(chain.method)
    alone = kind.independent or kind.uses_all_tasks
    before = None if alone else _parted(a, b, place)
    if before is not None:
        yield f"its trials started from other models: the selections differ since task {before}"
    parts = range(1 if kind.uses_all_tasks else task, task + 1)
    others = [str(each["task"]) for each in _data(a, b) if each["task"] in parts]
    if others:
        yield f"the data of task {', '.join(others)} is another: the digests of its samples differ"
    own = f"methods.{chain.method}."
    fields = [
        name
        for name in changed
        if name.startswith(_TRAINED)
        and (not name.startswith("methods.") or name.startswith(own))
        and name.removeprefix(own).partition(".")[0] not in _CHOSEN
    ]
    if fields:
        yield f"its trials were trained otherwise: {', '.join(fields)} differ"


def _parted(a: _Run, b: _Run, place: tuple[Chain, int]) -> int | None:
    """The first task before this one at which a chain's models differ."""
    chain, task = place
    for number in range(1, task):
        one, other = a.results.get((chain, number)), b.results.get((chain, number))
        if one is None or other is None or one.commit != other.commit:
            return number
    return None


def _won(selection: Selection) -> Candidate | None:
    """The candidate that was chosen, before it was fine-tuned."""
    return next((c for c in selection.candidates if c.chosen), None)


def _same_winner(one: Candidate, other: Candidate) -> Iterator[str]:
    """Why the same hyperparameters gave another model."""
    if one.validation_accuracy != other.validation_accuracy:
        accuracies = (_percent(c.validation_accuracy) for c in (one, other))
        yield "the same hyperparameters reach {} in A and {} in B".format(*accuracies)
    if (one.threshold, one.thresholds) != (other.threshold, other.thresholds):
        yield f"the highest threshold is {_theta(one)} in A and {_theta(other)} in B"


def _fate(winner: Selection, there: Selection, here: str, other: str) -> Iterator[str]:
    """What became of one run's winner in the other run."""
    won = _won(winner)
    if won is None:
        yield f"{here} selected nothing: {winner.reason}"
        return
    hypers = " ".join(f"{n}={v:g}" for n, v in won.hyperparameters.items())
    same = [c for c in there.candidates if c.hyperparameters == won.hyperparameters]
    if not same:
        yield f"{here}'s {hypers} is not among the trials of {other}"
        return
    seen = same[0]
    if seen.trial_key != won.trial_key and seen.validation_accuracy is not None:
        accuracy, own = (_percent(c.validation_accuracy) for c in (seen, won))
        yield f"{here}'s {hypers} reaches {accuracy} in {other}, {own} in {here}: {seen.why}"
    else:
        yield f"{here}'s {hypers} lost in {other}: {seen.why}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.2f} %"


def _theta(candidate: Candidate) -> str:
    if candidate.threshold is None:
        return "none"
    return "θ " + ", ".join(f"{t:.4g}" for t in candidate.thresholds or (candidate.threshold,))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested sections, by dotted names; lists are leaves."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def print_comparison(found: Mapping[str, Any], console: Console) -> None:
    """Prints what two runs differ in, and every task whose selections differ with the reasons."""
    for name, run in found["runs"].items():
        missing = ", ".join(f"{c} has {n} tasks" for c, n in run["unfinished"].items())
        state = f"not finished: {missing} so far" if missing else "finished"
        say(console, f"{name.upper()}: {run['name']} in {run['folder']}, {state}")
    for each in found["config"]:
        say(console, f"config {each['field']}: {each['a']} in A, {each['b']} in B")
    for each in found["data"]:
        say(
            console,
            f"data of task {each['task']}: " + " | ".join(_data_in_words(each[x]) for x in "ab"),
        )
    for name, chains in found["chains"].items():
        if chains:
            say(console, f"in {name.upper()} alone: {', '.join(chains)}")
    for each in found["selections"]:
        place = f"task {each['task']} {each['method']}/seed-{each['seed']}"
        if each["same"]:
            a = each["a"]
            model = f"the same model, {a['trial_key']}"
            say(console, f"{place}: " + (model if a["commit"] else f"both ended: {_in_words(a)}"))
            continue
        say(console, f"{place}: differs")
        for x in "ab":
            say(console, f"    {x.upper()}: {_in_words(each[x])}")
        for reason in each["why"]:
            say(console, f"    - {reason}")
    others = sum(not each["same"] for each in found["selections"])
    say(console, f"{others} of {len(found['selections'])} selections differ.")


def _in_words(shown: Mapping[str, Any] | None) -> str:
    if shown is None:
        return "nothing"
    selection = Selection("", 0, 0, **{name: shown[name] for name in _SHOWN})
    tested = shown["test_accuracy"]
    return outcome_in_words(selection) + ("" if tested is None else f" · test {_percent(tested)}")


def _data_in_words(data: Mapping[str, Any]) -> str:
    sizes = "+".join(str(data[part]) for part in ("train", "validation", "test"))
    return f"{data['source']} {sizes} samples, digest {data['digest'][:8]}"
