"""What was run and how it was tuned, as tables."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from clsearch.config import MethodConfig
from clsearch.records import TrialRecord
from clsearch.report.source import Run
from clsearch.report.tables import Sheet, number

HONEST = (
    "Hyperparameters, thresholds and models were selected on validation data of the task at hand; "
    "test data was opened for models already selected, and by nothing else."
)
UNLABELLED = (
    " Except that methods with `source: test-inputs` measured importance on test images, without "
    "their labels."
)
_PROTOCOLS = {
    "current_task": "current_task: the whole grid is searched at every task",
    "first_task": "first_task: the grid is searched at task 1, and what was selected there is kept",
}


def honest(runs: Sequence[Run]) -> str:
    """That selection saw validation data alone, and what the exception is where there is one."""
    seen = any("test-inputs" in str(m.options) for run in runs for m in run.config.methods)
    return HONEST + UNLABELLED * seen


def merged(runs: Sequence[Run], sheets: Sequence[Sheet]) -> Sheet:
    """The same table of several runs as one, with a column that names the run; equal lines of their
    notes are said once."""
    first = sheets[0]
    if len(runs) == 1:
        return first
    rows = tuple(
        (run.label, *row) for run, sheet in zip(runs, sheets, strict=True) for row in sheet.rows
    )
    notes = dict.fromkeys(line for sheet in sheets for line in sheet.note.splitlines())
    text = frozenset({0, *(i + 1 for i in first.text)})
    return Sheet(first.title, ("run", *first.header), rows, text, "\n".join(notes))


def setup_sheet(runs: Sequence[Run]) -> Sheet:
    """Each run in a column: its tasks, network, search and machines."""
    columns = [_facts(run) for run in runs]
    rows = tuple((name, *(column[name] for column in columns)) for name in columns[0])
    several = len(runs) > 1
    header = ("", *(run.label for run in runs)) if several else ("what", "in this run")
    return Sheet("What was run", header, rows, frozenset(range(len(runs) + 1)))


def _facts(run: Run) -> dict[str, str]:
    config = run.config
    names = [str(task["name"]) for task in run.tasks]
    training = config.training.model_dump(exclude_none=True, exclude_defaults=False)
    selection = config.selection.model_dump()
    return {
        "experiment": config.name + (f", in folder {run.folder}" if run.folder else ""),
        "scenario": _named(run.config.scenario.name, run.sequence),
        "tasks": f"{len(names)}: {_some(names)}" if names else "not recorded",
        "samples of a task": _samples(run.tasks),
        "network": _named(config.model.name, config.model.options),
        "training": _options(training),
        "search": _PROTOCOLS[config.search.protocol],
        "selection": f"the sparsest model within {config.selection.margin:g} percentage points of "
        f"the best validation accuracy; {selection['thresholds']} thresholds scanned at most"
        + (", then one for each layer" if selection["per_layer"] else ""),
        "seeds": ", ".join(map(str, config.seeds)),
        "trials": _trials(run.records),
        "machines": _machines(run),
        "versions": _options(run.about.get("versions", {})).replace("=", " ") or "not recorded",
    }


def _named(name: str, options: Mapping[str, Any]) -> str:
    said = _options({k: v for k, v in options.items() if k != "name"})
    return f"{name} ({said})" if said else name


def _options(options: Mapping[str, Any]) -> str:
    """Options as `name=value`, those without a value left out."""
    return ", ".join(f"{k}={_value(v)}" for k, v in options.items() if v not in (None, {}, []))


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return f"({_options(value)})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return str(value)


def _some(names: Sequence[str], most: int = 6) -> str:
    """The names; the first and the last of many."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 2])}, …, {names[-1]}"


def _samples(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Training, validation and test samples of the tasks, as ranges where they differ."""
    if not tasks:
        return "not recorded"
    said = []
    for part, name in (("train", "training"), ("validation", "validation"), ("test", "test")):
        counts = [int(task[part]) for task in tasks]
        ends = dict.fromkeys((min(counts), max(counts)))
        said.append(f"{'-'.join(f'{c:,}' for c in ends)} {name}")
    classes = [len(task["classes"]) for task in tasks]
    ends = dict.fromkeys((min(classes), max(classes)))
    return f"{', '.join(said)}; {'-'.join(map(str, ends))} classes"


def _trials(records: Sequence[TrialRecord]) -> str:
    counts = Counter(r.status.lower() for r in records)
    said = [f"{counts[s]:,} {s}" for s in ("complete", "pruned", "failed") if counts[s]]
    tuned = sum(bool(r.fine_tuned) for r in records)
    said += [f"{tuned:,} of them fine-tuned after pruning"] if tuned else []
    return f"{len(records):,}" + (f" ({', '.join(said)})" if said else "")


def _machines(run: Run) -> str:
    """Where trials were trained, and what the search was driven from."""
    places = Counter((r.host, r.device) for r in run.records if r.host)
    said = [f"{n:,} trials on {host} ({device})" for (host, device), n in sorted(places.items())]
    machine = run.about.get("machine", {})
    if machine:
        cores, plural = machine["cores"], "s" * (machine["cores"] != 1)
        said.append(f"driven from {machine['host']}: {machine['cpu']}, {cores} core{plural}")
    return "; ".join(said) or "not recorded"


def methods_sheet(run: Run) -> Sheet:
    """Each method with its options and the values tried of each hyperparameter."""
    rows = []
    for method in run.config.methods:
        grid = [r for r in run.trials[method.chain_name] if not r.fine_tuned]
        rows.append(
            (
                method.chain_name,
                _named(method.name, method.options),
                ", ".join(_named(p.name, p.options) for p in method.regularizers) or "-",
                _tried(grid),
                _trials_a_task(grid),
                f"{run.config.margin_of(method):g}",
                _tuning(method),
            )
        )
    header = ("method", "what it is", "regularisers", "values tried", "trials a task",
              "margin", "fine-tuning")  # fmt: skip
    note = (
        "Trials a task are of one seed; the margin is in percentage points of validation accuracy."
    )
    return Sheet("Methods", header, tuple(rows), frozenset({0, 1, 2, 3, 6}), note)


def _tried(records: Sequence[TrialRecord]) -> str:
    values: dict[str, set[float]] = {}
    for record in records:
        for name, value in record.hyperparameters.items():
            values.setdefault(name, set()).add(value)
    said = []
    for name in sorted(values):
        found = sorted(values[name])
        if len(found) <= 5:
            said.append(f"{name}: {', '.join(map(number, found))}")
        else:
            said.append(f"{name}: {len(found)} from {number(found[0])} to {number(found[-1])}")
    return "; ".join(said) or "-"


def _trials_a_task(records: Sequence[TrialRecord]) -> str:
    counts = Counter((r.seed, r.task) for r in records).values()
    if not counts:
        return "-"
    least, most, usual = min(counts), max(counts), statistics.mode(counts)
    return str(usual) if least == most else f"{least}-{most}"


def _tuning(method: MethodConfig) -> str:
    if method.fine_tune is None:
        return "-"
    return _options(method.fine_tune.model_dump(exclude_none=True))
