"""The saved views of an experiment: the table of runs with the right filter, columns and charts.

They show one search: the latest that wrote them. Another is shown with its digest in the filter.

MLflow's UI keeps a view as a tag of the experiment, in JSON; `clsearch ui` opens one, the menu
"Views" has them all. A UI that does not know them shows its own table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clsearch.audit import OUTCOME, slug
from clsearch.notes import SELECTED, Link, of_search, view_link

PREFIX = "mlflow.sharedViewState."
SELECTED_KEY, SELECTIONS_KEY = "clsearch-selected", "clsearch-selections"
TRIALS_OF = "Trials of "
PLACE = ("method", "seed", "task")
TESTED = ("test_accuracy", "average_test_accuracy")


def trials_key(method: str) -> str:
    return f"clsearch-trials-{slug(method)}"


def base_views(search: str, hyper: Sequence[str]) -> dict[str, str]:
    """The views of what a search selected, as tags: its digest, and the hyperparameters of all
    methods."""
    query = f"{SELECTED} AND {of_search(search)}"
    columns, order = (*PLACE, *hyper), "params.`task`"
    selected = _view("Selected models", query, order, columns, ("margin", *OUTCOME), PLACE, ())
    names = ("clsearch.hyperparameters",)
    metrics = ("margin", *OUTCOME[1:4], "candidates_within_margin", *TESTED)
    query = f"tags.\"clsearch.kind\" = 'task' AND {of_search(search)}"
    chosen = _view("Selections by task", query, "params.`task`", (), metrics, PLACE, names)
    return {PREFIX + SELECTED_KEY: selected, PREFIX + SELECTIONS_KEY: chosen}


def trials_view(search: str, method: str, hyper: Sequence[str]) -> dict[str, str]:
    """The view of a method's trials in a search, as a tag. One for each method: MLflow leaves a run
    without one of the parameters out of its parallel coordinates."""
    kinds = f"tags.\"clsearch.kind\" = 'trial' AND tags.\"clsearch.method\" = '{method}'"
    query = f"{kinds} AND {of_search(search)}"
    columns = ("task", *hyper)
    tags = ("clsearch.selected", "clsearch.within_margin", "clsearch.why")
    name = TRIALS_OF + method
    return {
        PREFIX + trials_key(method): _view(
            name, query, "params.`task`", columns, ("margin", *OUTCOME), columns, tags
        )
    }


def links(experiment: str, methods: Iterable[str]) -> list[Link]:
    """To the saved views: of what was selected, and of the trials of these methods."""
    found = [
        view_link("selected models", experiment, SELECTED_KEY),
        view_link("selections by task, with test accuracy", experiment, SELECTIONS_KEY),
    ]
    return found + [
        view_link(f"trials of {method}", experiment, trials_key(method), "CHART")
        for method in methods
    ]


def methods_shown(tags: Mapping[str, str]) -> list[str]:
    """The methods whose trials have a view among the tags of an experiment."""
    views = sorted(key for key in tags if key.startswith(PREFIX + trials_key("")))
    return [json.loads(tags[key])["name"].removeprefix(TRIALS_OF) for key in views]


def _view(
    name: str,
    query: str,
    order: str,
    params: Sequence[str],
    metrics: Sequence[str],
    axes: Sequence[str],
    tags: Sequence[str],
) -> str:
    """A view as MLflow's UI stores it. Sorted by a parameter, its list of runs is flat."""
    section = "clsearch"
    shown = {"selectedParams": list(axes), "selectedMetrics": ["sparsity", "validation_accuracy"]}
    parallel = _chart("PARALLEL", section, **shown, showAllRuns=False)
    x, y = ({"key": key, "type": "METRIC"} for key in ("sparsity", "pruned_accuracy"))
    state = {
        "searchFilter": query,
        "orderByKey": order,
        "orderByAsc": True,
        "selectedColumns": [
            *(f"params.`{key}`" for key in params),
            *(f"metrics.`{key}`" for key in metrics),
            *(f"tags.`{key}`" for key in tags),
        ],
        "compareRunCharts": [parallel, _chart("SCATTER", section, xaxis=x, yaxis=y)],
        "compareRunSections": [
            {"uuid": section, "name": "Trade-off", "display": True, "isReordered": False,
             "deleted": False, "isGenerated": False, "columns": 2, "cardHeight": 460}
        ],
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
    }  # fmt: skip
    # The UI sorts views by these times; they must not differ when the same view is written again.
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def _chart(kind: str, section: str, **more: Any) -> Mapping[str, Any]:
    return {
        "uuid": f"{section}-{kind.lower()}",
        "type": kind,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        **more,
    }
