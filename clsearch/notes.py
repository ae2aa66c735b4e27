"""The descriptions in MLflow: what was chosen and why, in Markdown, with links that its UI follows.

Pure: what is known of runs and selections in, text out. A link is the part of an address after the
`#`, so that it works wherever the server is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from clsearch.audit import SEPARATOR, test_accuracies, within_margin, words

MOST_ROWS, MOST_COMPARED = 12, 12
"""Candidates in a table and on one page: a description has room for 5000 characters."""
NEXT = "Next task"
GAP = "&ensp;"
"""A space at the end of a cell: MLflow sets the cells of a table side by side without one."""
TRAINING = "workflowType=machine_learning"
"""Has MLflow's UI show what belongs to training: with it a description stands first on a page."""
ROOM = 4400
"""Characters of the table of a search; what follows it has room too."""
SELECTED = "tags.\"clsearch.selected\" = 'true'"
"""The filter that finds the selected trials."""


def of_search(digest: str) -> str:
    """The filter that finds the runs of a search."""
    return f"tags.\"clsearch.search\" = '{digest}'"


@dataclass(frozen=True)
class Link:
    """A run or a model version by the name it has and where it is."""

    name: str
    to: str

    def __str__(self) -> str:
        return f"[{self.name}]({self.to})"


@dataclass(frozen=True)
class Around:
    """What a selection is connected with: each a link, or nothing where there is none.

    `trials` are the runs of its candidates by trial key, `compare` are pages that compare them.
    """

    task: Link
    trials: Mapping[str, Link]
    model: Link | None = None
    before: Link | None = None
    before_model: Link | None = None
    after: Link | None = None
    compare: tuple[Link, ...] = ()


def run_link(name: str, experiment: str, run: str) -> Link:
    return Link(name, f"#/experiments/{experiment}/runs/{run}?{TRAINING}")


def version_link(model: str, version: str) -> Link:
    return Link(f"{model}, version {version}", f"#/models/{model}/versions/{version}")


def view_link(name: str, experiment: str, key: str, mode: str = "") -> Link:
    """A saved view; `mode` CHART opens its charts."""
    where = f"#/experiments/{experiment}/runs?viewStateShareKey={key}&{TRAINING}"
    return Link(name, where + (f"&compareRunsMode={mode}" if mode else ""))


def compare_link(name: str, experiment: str, runs: Sequence[str]) -> Link:
    """The page that compares runs: parallel coordinates, scatter plot, parameters and metrics."""
    listed, of = (
        quote(json.dumps(list(ids), separators=(",", ":"))) for ids in (runs, [experiment])
    )
    return Link(name, f"#/compare-runs?runs={listed}&experiments={of}")


def table_row(cells: Sequence[str]) -> str:
    return "| " + f"{GAP}| ".join(cells) + " |"


def selection_note(body: Mapping[str, Any], around: Around) -> str:
    """What was chosen at a task and why, what else was within the margin, what it cost, what
    capacity is left, what it started from and what started from it."""
    chosen = body["selection"]
    place = f"{chosen['method']}{SEPARATOR}seed {chosen['seed']}{SEPARATOR}task {chosen['task']}"
    if chosen["trial_key"] is None:
        said = f"{place}: nothing was chosen ({chosen['outcome']}). {chosen['reason']}"
        return "\n\n".join([said, *_candidates(chosen, around)])
    hyper = words(chosen["hyperparameters"], ", ") or "no hyperparameters"
    facts = {
        "Trial": _trial(chosen["trial_key"], around),
        "Model": str(around.model or ""),  # no alias: a later search may give it to its model
        "Cost in accuracy": _cost(chosen),
        "Test accuracy": _test(body),
        "Capacity left": _capacity(chosen, body),
        "Started from": _started(body, around),
        NEXT: str(around.after or "none so far"),
        "All of this task": str(around.task),
    }
    rows = [table_row(fact) for fact in facts.items() if fact[1]]
    parts = [
        f"{place}: {hyper}",  # plain: the list of a model's versions shows Markdown as it is
        f"**Why:** {chosen['reason']}.",
        "\n".join(["| | |", "|---|---|", *rows]),
    ]
    for i, done in enumerate(chosen["rounds"], start=1):
        parts.append(
            f"Round {i} of fine-tuning: {_trial(done['trial_key'], around)}, {done['why']}."
        )
    if body["transfer"]:
        parts.append(
            "Last-layer transfer: the last hidden layer had no free neurons left, so that the "
            "output layer alone was learned."
        )
    return "\n\n".join([*parts, *_candidates(chosen, around)])


def with_next(note: str, after: Link) -> str:
    """The description of a selection, once the next task has begun."""
    return re.sub(rf"\| {NEXT}{GAP}\| .* \|", table_row((NEXT, str(after))), note)


def _cost(chosen: Mapping[str, Any]) -> str:
    given = 100 * (chosen["best"] - chosen["accuracy"])
    what = f"{given:.2f} points given up" if given >= 0 else f"none: {-given:.2f} points above best"
    return (
        f"{what}, of a margin of {chosen['margin']:g}: validation {100 * chosen['accuracy']:.2f} % "
        f"pruned, best {100 * chosen['best']:.2f} %, floor {100 * chosen['floor']:.2f} %"
    )


def _test(body: Mapping[str, Any]) -> str:
    said = {"test_accuracy": "on this task", "average_test_accuracy": "over the tasks so far"}
    found = test_accuracies(body)
    return ", ".join(f"{100 * a:.2f} % {said[name]}" for name, a in found.items())


def _capacity(chosen: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    """Free neurons of each layer: of the account where there is one, else within the margin."""
    if body["capacity"]:
        layers = [(c["layer"], c["free"], c["units"]) for c in body["capacity"]]
        about = "no task so far needs them"
    else:
        layers = list(zip(chosen["layers"], chosen["free"], chosen["units"], strict=True))
        about = "free within the margin; the method removes nothing"
    said = ", ".join(f"{layer} {free} of {units}" for layer, free, units in layers)
    return f"{said} neurons ({about})" if said else ""


def _started(body: Mapping[str, Any], around: Around) -> str:
    if body["parent"] is None:
        return "scratch"
    if around.before is None:
        return f"commit `{body['parent']}`"
    model = f"{around.before_model}, " if around.before_model else ""
    return f"{model}selected at {around.before} (commit `{body['parent']}`)"


def _trial(key: str, around: Around) -> str:
    return str(around.trials.get(key, f"trial `{key}`"))


def _candidates(chosen: Mapping[str, Any], around: Around) -> list[str]:
    """The table of the candidates within the margin, and a line on the others."""
    inside, every = within_margin(chosen), chosen["candidates"]
    if not every:
        return []
    lines = []
    if inside:
        pages = "".join(f" · {page}" for page in around.compare)
        lines = [f"**Within the margin: {len(inside)} of {len(every)} trials**{pages}"]
        head = table_row(("trial", "validation %", "pruned %", "sparsity %", "free", ""))
        rows = [_row(c, around) for c in inside[:MOST_ROWS]]
        lines.append("\n".join([head, "|---|---|---|---|---|---|", *rows]))
    if len(inside) > MOST_ROWS:
        lines.append(f"And {len(inside) - MOST_ROWS} more, in `selection.json`.")
    lost = [c for c in every if c["accuracy"] is None]
    failed = sum(c["status"] == "FAILED" for c in lost)
    below = [c["validation_accuracy"] for c in lost if c["status"] == "COMPLETE"]
    best = max((a for a in below if a is not None), default=None)
    said = [] if best is None else [f"{len(below)} below the floor, best {100 * best:.2f} %"]
    said += [f"{failed} failed"] * bool(failed)
    if said:
        lines.append(f"Not within it: {'; '.join(said)}. `selection.json` has the reason of each.")
    return lines


def _row(c: Mapping[str, Any], around: Around) -> str:
    hyper = words(c["hyperparameters"], " ") or c["trial_key"][:8]
    link = around.trials.get(c["trial_key"])
    name = str(Link(hyper, link.to)) if link else hyper
    numbers = (c["validation_accuracy"], c["accuracy"], c["sparsity"])
    cells = [f"{100 * x:.2f}" for x in numbers]
    why = "**selected**" if c["chosen"] else c["why"]
    return table_row((name, *cells, str(sum(c["free"])), why))


def lost_note(candidate: Mapping[str, Any], selected: str, task: Link) -> str:
    """On a trial that is not the selected one: a candidate, or what a round of fine-tuning made."""
    if candidate.get("chosen") or candidate.get("kept"):
        return f"Selected at {task}: {candidate['why']}.\n\nThen fine-tuned to {selected}."
    return f"Not selected at {task}: {candidate['why']}.\n\nSelected: {selected}."


@dataclass(frozen=True)
class TaskRow:
    """What the table of a search says of a chain at a task; accuracies and sparsity in percent."""

    task: Link
    outcome: str
    hyperparameters: str
    metrics: Mapping[str, float]


COLUMNS = {
    "pruned %": ("pruned_accuracy", "{:.2f}"),
    "given up": ("accuracy_cost", "{:.2f}"),
    "sparsity %": ("sparsity", "{:.1f}"),
    "free": ("free", "{:.0f}"),
    "test %": ("test_accuracy", "{:.2f}"),
    "test so far %": ("average_test_accuracy", "{:.2f}"),
}
"""Columns of the table of a search: their metric and its format."""


def search_note(
    digest: str, tasks: Sequence[str], rows: Sequence[TaskRow], views: Sequence[Link]
) -> str:
    """What a search is, where to look, and what it selected so far."""
    parts = [
        f"Search `{digest}` over {len(tasks)} tasks: {', '.join(tasks)}.",
        "Views, of the latest search: " + " · ".join(map(str, views)) + ".",
        f"Runs of this one: `{of_search(digest)}`, with `AND {SELECTED}` its selected trials.",
        "Accuracies and sparsity are in %, what is given up and the margin in percentage points, "
        "`free` in neurons. `pruned` is validation accuracy after pruning within the margin.",
    ]
    lines = [table_row(("selected at", "hyperparameters", *COLUMNS))]
    lines.append("|---" * (2 + len(COLUMNS)) + "|")
    length = sum(map(len, parts)) + sum(map(len, lines))
    for i, row in enumerate(rows):
        cells = [
            form.format(row.metrics[name]) if name in row.metrics else ""
            for name, form in COLUMNS.values()
        ]
        said = row.hyperparameters if row.outcome == "selected" else row.outcome
        line = table_row((str(row.task), said, *cells))
        length += len(line) + 1
        if length > ROOM:
            parts_after = f"And {len(rows) - i} more: see the views."
            return "\n\n".join([*parts, "\n".join(lines), parts_after])
        lines.append(line)
    return "\n\n".join([*parts, "\n".join(lines)] if rows else parts)


def experiment_note(name: str, views: Sequence[Link]) -> str:
    """What an experiment of clsearch is, and how to look at it."""
    return "\n\n".join(
        [
            f"`{name}`: searches by clsearch. A run for each search; beneath it one for each chain "
            "(method and seed) and task, with what was selected and why; beneath that, its trials.",
            "Views: " + " · ".join(map(str, views)) + ".",
            f"The selected trials: `{SELECTED}`.",
        ]
    )
