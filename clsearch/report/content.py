"""What stands in a report, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from clsearch.metrics import average_accuracy, average_forgetting
from clsearch.report import (
    accuracy_figures,
    capacity_figures,
    hyper_figures,
    parallel_figure,
    trial_figures,
)
from clsearch.report.cost_tables import cost_sheet, failures_sheet
from clsearch.report.document import Document, Drawing, Section
from clsearch.report.outcome_tables import mean_std, result_sheet, task_sheets
from clsearch.report.setup_tables import honest, merged, methods_sheet, setup_sheet
from clsearch.report.source import Run, comparable, lines_of
from clsearch.report.tables import Sheet, ended_sheet, hyperparameter_sheet

_ALONG = (
    "Left: test accuracy averaged over the tasks learned so far, the last point being ACC. Right: "
    "how much of what each earlier task once reached is lost, on average; 0 is no forgetting. "
    "Bands are ± one standard deviation over seeds; a cross ends a chain early."
)
_BY_TASK = (
    "Left: test accuracy on each task after the last task learned. Right: the best accuracy the "
    "task ever had less that one; below 0, later tasks helped."
)
_MATRIX = (
    "Test accuracy on each task (across) after each task (down), mean over seeds. Read a column "
    "downwards to see a task being forgotten; the diagonal is each task just learned."
)
_NEEDED = (
    "Share of each layer's neurons that is left when pruned as far as the margin allows: what all "
    "tasks so far need, for a method that prunes; what the last task alone needs, for the others."
)
_ACCOUNT = (
    "Each bar is a layer after a task, in percent of its width then: neurons of earlier tasks that "
    "this task reads (reused) or does not read, those it took (new), and those left (free). As in "
    "CLNP, figures 3, 4b and 5b; mean over seeds."
)
_TRADEOFF = (
    "Every trial, a panel a task. Height: validation accuracy less the best of its task and seed; "
    "right: share of neurons pruned away. Within the band (the margin) trials are pruned as far as "
    "it allows, and the one furthest to the right is selected (star; a white one where it was "
    "fine-tuned after that, to the other star). Trials below the floor are not pruned; those on "
    "the lower edge lie lower still."
)
_SCAN = (
    "Validation accuracy, less the best, of each trial within the margin when neurons with a mean "
    "activation of at most θ are pruned. The star is the highest θ of the selected trial that "
    "stays above the floor (dashed), before any fine-tuning."
)
_CHOSEN = (
    "The value selected at each task, of those tried (grid lines, in their order). A line that "
    "moves says that no value found at one task would have done for all."
)
_PARALLEL = (
    "A line for each trial, from its task over its hyperparameters to its validation accuracy "
    "(unpruned, less the best of its task and seed; the lowest label also stands for all below) "
    "and its sparsity. Stars: selected. Failed trials end at their last hyperparameter."
)


def document(runs: Sequence[Run]) -> Document:
    """The report on these runs; they have labels."""
    groups = comparable(runs)
    sections = [_setup(runs)]
    if any(run.results for run in runs):
        sections += [
            Section("Result", sheets=[_of_runs(runs, result_sheet)]),
            _accuracy(groups),
            _tradeoffs(runs),
            _capacity(groups, runs),
            _hyperparameters(runs),
        ]
    sections.append(_cost(runs))
    failures = [s for s in (_of_runs(runs, failures_sheet), _of_runs(runs, _ended)) if s.rows]
    words = [] if failures else ["No trial failed, and no chain ended early."]
    sections.append(Section("Failures", words, failures))
    title = ", ".join(run.label for run in runs)
    return Document(title, _notes(runs, groups), sections)


def _of_runs(runs: Sequence[Run], sheet: Callable[[Run], Sheet]) -> Sheet:
    return merged(runs, [sheet(run) for run in runs])


def _ended(run: Run) -> Sheet:
    return ended_sheet(run.methods)


def _notes(runs: Sequence[Run], groups: Sequence[Sequence[Run]]) -> list[str]:
    notes = []
    for run in runs:
        if run.unfinished:
            where = f"{run.label}: " if len(runs) > 1 else ""
            more = run.stored - len(run.records)
            waiting = (
                f" {more:,} finished trials of its journal belong to a task that is not finished, "
                "or to an earlier grid, and are not shown."
            ) * (more > 0)
            chains = "; ".join(run.unfinished)
            notes.append(
                f"{where}This run is not finished. What is here is what there is so far ({chains})."
                f"{waiting} `clsearch resume` goes on with it."
            )
        if not run.results:
            where = run.label if len(runs) > 1 else "This run"
            notes.append(f"{where}: no task has been finished yet.")
    if len(groups) > 1:
        kinds = "; ".join(", ".join(run.label for run in group) for group in groups)
        notes.append(
            "These runs are of different sequences of tasks, so their accuracies cannot be "
            f"compared: {kinds}. Figures are drawn for each sequence alone; nothing is averaged "
            "over runs."
        )
    return notes


def _setup(runs: Sequence[Run]) -> Section:
    return Section(
        "What was run, and how it was tuned",
        [honest(runs)],
        [setup_sheet(runs), _of_runs(runs, methods_sheet)],
    )


def _shown(groups: Sequence[Sequence[Run]]) -> Iterator[tuple[str, str, Sequence[Run]]]:
    """Groups with results: the ending of their figures' names, their name in words, their runs."""
    for number, group in enumerate(groups, 1):
        done = [run for run in group if run.results]
        if done:
            labels = ", ".join(run.label for run in done)
            name = labels if len(done) < 3 else f"{len(done)} runs"
            yield f"_{number}" * (len(groups) > 1), name, done


def _accuracy(groups: Sequence[Sequence[Run]]) -> Section:
    sheets: list[Sheet] = []
    drawings: list[Drawing] = []
    for ending, name, group in _shown(groups):
        lines, tasks = lines_of(group), max(run.reached for run in group)
        tables = task_sheets(lines, tasks)
        sheets += [replace(t, title=f"{t.title}, {name}") for t in tables] if ending else tables
        final = "; ".join(
            f"{label} {mean_std(average_accuracy(c.matrix) for c in chains)} %, forgetting "
            f"{mean_std(average_forgetting(c.matrix) for c in chains)}"
            for label, chains in lines.items()
        )
        of = f" of {name}" if ending else ""
        for kind, draw, alt, caption in (
            ("accuracy", accuracy_figures.along,
             f"Lines of average accuracy and average forgetting after each task{of}. In the end: "
             f"{final}.", _ALONG),
            ("accuracy_by_task", accuracy_figures.by_task,
             f"Lines of the accuracy on each task in the end and of its forgetting{of}; the "
             "numbers stand in the tables above.", _BY_TASK),
            ("accuracy_matrix", accuracy_figures.matrices,
             f"Heat maps of test accuracy, a method each{of}: {', '.join(lines)}.", _MATRIX),
        ):  # fmt: skip
            drawn = partial(draw, lines, tasks, name)
            drawings.append(Drawing(kind + ending, alt, caption, drawn))
    return Section("Accuracy and forgetting, on test data", (), sheets, drawings)


def _each(runs: Sequence[Run]) -> Iterator[tuple[str, str, Run, str]]:
    """Methods of all runs: the ending of their figures' names, their name in words, the run and the
    method."""
    for number, run in enumerate(runs, 1):
        for method, chains in run.methods.items():
            ending = f"_{method}" if len(runs) == 1 else f"_run{number}_{method}"
            seeds = f", {len(chains)} seeds" if len(chains) > 1 else ""
            yield ending, f"{run.label}, {method}{seeds}", run, method


def _tradeoffs(runs: Sequence[Run]) -> Section:
    drawings = []
    for ending, name, run, method in _each(runs):
        chains = run.methods[method]
        known = trial_figures.by_place(run.trials[method])
        chosen = "; ".join(
            f"task {s.task} seed {s.seed}: accuracy {100 * (s.accuracy or 0):.1f} %, sparsity "
            f"{100 * (s.sparsity or 0):.0f} %"
            for chain in chains
            for s in [chain.last]
            if s
        )
        drawings += [
            Drawing(
                f"tradeoff{ending}",
                f"Accuracy against sparsity of every trial of {name}, a panel a task; selected "
                f"last: {chosen or 'nothing'}.",
                f"{name}. {_TRADEOFF}",
                partial(trial_figures.tradeoff, chains, name),
            ),
            Drawing(
                f"scan{ending}",
                f"Accuracy over the pruning threshold θ of the trials of {name} within the "
                "margin, a panel a task.",
                f"{name}. {_SCAN}",
                partial(trial_figures.scan, chains, known, name),
            ),
        ]
    title = "What every trial gives up for sparsity, on validation data"
    return Section(title, (), (), drawings)


def _capacity(groups: Sequence[Sequence[Run]], runs: Sequence[Run]) -> Section:
    drawings = []
    for ending, name, group in _shown(groups):
        for part, (own, of) in enumerate(_of_one_network(group, name), 1):
            lines, tasks = lines_of(own), max(run.reached for run in own)
            if len(group) > 1 and len(own) == 1:
                lines = {f"{own[0].label}: {m}": c for m, c in lines.items()}
            alt = f"Lines of the share of neurons needed in each layer after each task: {of}."
            number = f"_{part}" * (part > 1)
            draw = partial(capacity_figures.needed, lines, tasks, of)
            drawings.append(Drawing(f"capacity{ending}{number}", alt, _NEEDED, draw))
    for ending, name, run, method in _each(runs):
        chains = run.methods[method]
        accounts = [r.capacity for chain in chains for r in chain.results if r.capacity]
        if accounts:
            used = ", ".join(f"{c.layer} {c.used} of {c.units}" for c in accounts[-1])
            alt = (
                f"Bars of used, reused and free neurons by layer and task of {name}; last: {used}."
            )
            draw = partial(capacity_figures.account, chains, name)
            drawings.append(Drawing(f"capacity{ending}", alt, f"{name}. {_ACCOUNT}", draw))
    return Section("Capacity", (), (), drawings)


def _of_one_network(group: Sequence[Run], name: str) -> list[tuple[list[Run], str]]:
    """The runs by their layers: those of one network share a figure."""
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in group:
        layers = next((r.selection.layers for r in run.results if r.selection.free), ())
        found.setdefault(layers, []).append(run)
    return [
        (own, ", ".join(r.label for r in own) if len(found) > 1 else name) for own in found.values()
    ]


def _hyperparameters(runs: Sequence[Run]) -> Section:
    drawings = []
    for ending, name, run, method in _each(runs):
        chains = run.methods[method]
        if not hyper_figures.tried(chains):
            continue
        drawings += [
            Drawing(
                f"hyperparameters{ending}",
                f"Hyperparameters selected at each task, {name}; the values stand in the table "
                "above.",
                f"{name}. {_CHOSEN}",
                partial(hyper_figures.selected, chains, name),
            ),
            Drawing(
                f"parallel{ending}",
                f"Parallel coordinates of every trial of {name}: task, hyperparameters, accuracy, "
                "sparsity.",
                f"{name}. {_PARALLEL}",
                partial(parallel_figure.parallel, chains, name),
            ),
        ]
    sheet = _of_runs(runs, lambda run: hyperparameter_sheet(run.methods))
    return Section("Hyperparameters", (), [sheet], drawings)


def _cost(runs: Sequence[Run]) -> Section:
    return Section("Cost", (), [_of_runs(runs, cost_sheet)])
