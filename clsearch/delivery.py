"""From entries of the outbox to what stands in MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clsearch.audit import (
    SEPARATOR,
    Points,
    chain_tags,
    flat,
    name_of,
    outcome_points,
    percent,
    place_of,
    selection_points,
    slug,
    tags_of,
    trial_name,
    trial_points,
    within_margin,
    words,
)
from clsearch.courier import FINISH
from clsearch.exports.mlmodel import write_mlmodel
from clsearch.mlflow_runs import NAME, NOTE, Monitor, Run, SearchRuns
from clsearch.notes import (
    MOST_COMPARED,
    Around,
    Link,
    TaskRow,
    compare_link,
    experiment_note,
    lost_note,
    run_link,
    search_note,
    selection_note,
    version_link,
    view_link,
    with_next,
)
from clsearch.views import (
    PLACE,
    base_views,
    links,
    methods_shown,
    trials_key,
    trials_view,
)


class Delivery:
    """Writes outbox entries to MLflow. Delivering one twice is the same as delivering it once."""

    def __init__(self, uri: str, artifacts: str | None, system_metrics: bool = False) -> None:
        self._uri, self._artifacts = uri, artifacts
        self._searches: dict[str, _Search] = {}
        self._monitor = Monitor(uri) if system_metrics else None
        self.watched = ""
        """The digest of the search at work here: what waits of others has no samples."""

    def __call__(self, content: Mapping[str, Any], files: Path) -> None:
        """Delivers an entry. Raises whatever MLflow raises; what was known is then forgotten, so
        that the next attempt looks at the server first, and completes what it finds."""
        at, which = int(content["time"] * 1000), content["search"]
        try:
            if which["digest"] not in self._searches:
                runs = SearchRuns(self._uri, self._artifacts, which["name"], which["digest"])
                self._searches[which["digest"]] = _Search(runs, which["tasks"])
            search = self._searches[which["digest"]]
            if content["kind"] == FINISH:
                self.close()
            elif self._monitor is not None and which["digest"] == self.watched:
                self._monitor.watch(search.parent(at))
            search.deliver(content["kind"], content["body"], files, at)
        except BaseException:
            self._searches.clear()
            raise

    def close(self) -> None:
        """Ends the samples of the driver's machine."""
        if self._monitor is not None:
            self._monitor.stop()


class _Search:
    """What is written of one search. `tasks` are their names."""

    def __init__(self, runs: SearchRuns, tasks: list[str]) -> None:
        self._runs, self._tasks = runs, tasks
        self._hypers: dict[str, dict[str, None]] = {}
        for run in runs.runs.values():
            if run.tags["clsearch.kind"] == "trial":
                self._know(run.tags["clsearch.method"], run.params)

    def deliver(self, kind: str, body: Mapping[str, Any], files: Path, at: int) -> None:
        kinds = {
            "start": self._start,
            "trial": self._trial,
            "committed": self._committed,
            FINISH: self._finish,
        }
        kinds[kind](body, files, at)

    def parent(self, at: int, reopen: bool = True) -> Run:
        """The run of the search."""
        digest = self._runs.digest
        run = self._runs.run(digest, f"search {digest[:8]}", None, tags_of("search"), at)
        if reopen and run.status != "RUNNING":
            self._runs.reopen(run)
            self._runs.log(run, at, tags={"clsearch.status": "RUNNING"})
        return run

    def _start(self, body: Mapping[str, Any], files: Path, at: int) -> None:
        run = self.parent(at)
        self._runs.log(run, at, params=flat(body["config"]))
        self._runs.text(run, body["config"], "config.json")
        self._runs.text(run, body["tasks"], "tasks.json")
        # MLflow's UI then shows what belongs to training, not to language models.
        self._runs.tag_experiment({"mlflow.experimentKind": "custom_model_development"})
        self._show()
        self._describe(at)

    def _trial(self, body: Mapping[str, Any], files: Path, at: int) -> None:
        lasted = int((body["duration"] or 0) * 1000)
        began = int((body["started"] or 0) * 1000) or at - lasted
        key, place = body["trial_key"], self._place(body)
        task = self._task(body, began)
        selected = task.tags.get("clsearch.chosen") == key
        tags = tags_of("trial", place, key, body["status"], selected) | {
            "clsearch.device": body["device"] or "unknown",
            "clsearch.host": body["host"] or "unknown",
            "clsearch.pack_size": str(body["pack_size"]),
            "clsearch.reason": body["reason"] or "none",
            "clsearch.fine_tuned": body["fine_tuned"] or "none",
        }
        name = trial_name(place, body, selected)
        run = self._runs.run(self._key(body, key), name, task, tags, began)
        points, params = trial_points(body), place | body["hyperparameters"]
        self._know(body["method"], params)
        self._runs.log(run, began + lasted, points=points, params=params, tags=tags)
        if body["data"]:
            self._runs.inputs(run, body["data"])
        self._runs.end(run, "FAILED" if body["status"] == "FAILED" else "FINISHED", began + lasted)

    def _committed(self, body: Mapping[str, Any], files: Path, at: int) -> None:
        chosen = body["selection"]
        task = self._task(chosen, at)
        self._runs.recall(self._key(chosen))
        tags = {
            "clsearch.chosen": chosen["trial_key"] or "none",
            "clsearch.outcome": chosen["outcome"],
            "clsearch.reason": chosen["reason"] or "none",
            "clsearch.hyperparameters": words(chosen["hyperparameters"], " ") or chosen["outcome"],
            "clsearch.commit": body["commit"] or "none",
            "clsearch.seeded_by": body["seeded_by"] or "none",
            "clsearch.parent_commit": body["parent"] or "none",
            "clsearch.transfer": str(body["transfer"]).lower(),
            "clsearch.status": "FAILED" if chosen["outcome"] == "failed" else "COMPLETE",
        }
        points = selection_points({**body, "tasks": len(self._tasks)})
        self._runs.log(task, at, points=points, tags=tags)
        self._runs.text(task, chosen, "selection.json")
        self._runs.files(task, files / "figures", "figures")
        if body["data"]:
            self._runs.inputs(task, body["data"])
        self._mark(chosen)
        model, number = self._model(chosen), chosen["task"]
        version = self._register(model, task, body, files / "model", at) if body["model"] else None
        # Where the chain ends here, no model stands for this task or a later one any more.
        self._runs.drop_aliases(model, number + bool(version), others=version is not None)
        self._tell(task, body, version, at)
        self._runs.end(task, "FAILED" if chosen["outcome"] == "failed" else "FINISHED", at)
        # The one selected has been told of this task.
        self._runs.settle(chosen["method"], str(chosen["seed"]), number)
        self._show()
        self._describe(at)

    def _finish(self, body: Mapping[str, Any], files: Path, at: int) -> None:
        parent = self.parent(at, reopen=False)
        points: Points = [(name, percent(value), 0) for name, value in body["metrics"].items()]
        self._runs.log(parent, at, points=points, tags={"clsearch.status": body["status"]})
        self._runs.files(parent, files / "report", "report")
        for run in self._runs.runs.values():
            if run.status == "RUNNING" or run is parent:
                self._runs.end(run, body["status"], at)

    # Runs and their names

    def _key(self, at_task: Mapping[str, Any], trial: str | None = None) -> str:
        place = f"{at_task['method']}/{at_task['seed']}/{at_task['task']}"
        return "/".join([self._runs.digest, place, *([trial] if trial else [])])

    def _place(self, at_task: Mapping[str, Any]) -> dict[str, str]:
        return place_of(at_task, len(self._tasks))

    def _task(self, at_task: Mapping[str, Any], at: int) -> Run:
        """The run of a chain at a task, to which `at_task` (a trial or a selection) belongs."""
        key, place = self._key(at_task), self._place(at_task)
        parent, tags = self.parent(at), tags_of("task", place)
        # A trial of an earlier search in this folder began before this one did.
        run = self._runs.run(key, name_of(place), parent, tags, max(at, parent.began))
        self._link_next(at_task, self._link(run), at)
        self._runs.log(run, at, params=place)
        return run

    def _beside(self, chosen: Mapping[str, Any], by: int) -> Run | None:
        """The run of the same chain at an earlier or later task."""
        return self._runs.runs.get(self._key({**chosen, "task": chosen["task"] + by}))

    def _link(self, run: Run) -> Link:
        return run_link(run.tags[NAME], self._runs.experiment, run.id)

    # Descriptions

    def _link_next(self, at_task: Mapping[str, Any], link: Link, at: int) -> None:
        """Says of the task before that this one has begun: on its run, its trial and its model."""
        before = self._beside(at_task, -1)
        if before is None or NOTE not in before.tags:
            return
        told = with_next(before.tags[NOTE], link)
        if told == before.tags[NOTE]:
            return
        earlier = {**at_task, "task": at_task["task"] - 1}
        trial = self._runs.runs.get(self._key(earlier, before.tags["clsearch.chosen"]))
        if _model_of(before) is not None:
            model, version = (before.tags[name] for name in NO_MODEL)
            self._runs.describe_version(model, version, told)
        for run in (trial, before):  # the last one says that all of it is done
            if run is not None:
                self._runs.log(run, at, tags={NOTE: told})

    def _trials(self, chosen: Mapping[str, Any]) -> dict[str, Run]:
        """The runs of the trials of a chain at a task, by trial key."""
        prefix, known = self._key(chosen) + "/", self._runs.runs.items()
        return {key.removeprefix(prefix): run for key, run in known if key.startswith(prefix)}

    def _around(self, task: Run, chosen: Mapping[str, Any], version: Any) -> Around:
        """What the description of a selection links to."""
        runs, experiment = self._trials(chosen), self._runs.experiment
        inside = [c["trial_key"] for c in within_margin(chosen)][:MOST_COMPARED]
        ids = [runs[key].id for key in inside if key in runs]
        compare = [compare_link("compare them", experiment, ids)] if len(ids) > 1 else []
        every, key = f"all trials of {chosen['method']}", trials_key(chosen["method"])
        compare.append(view_link(every, experiment, key, "CHART"))
        before, after = (self._beside(chosen, by) for by in (-1, 1))
        return Around(
            task=self._link(task),
            trials={key: self._link(run) for key, run in runs.items()},
            model=version and version_link(version.name, version.version),
            before=self._link(before) if before else None,
            before_model=_model_of(before) if before else None,
            after=self._link(after) if after else None,
            compare=tuple(compare),
        )

    def _tell(self, task: Run, body: Mapping[str, Any], version: Any, at: int) -> None:
        """Describes a selection: on its run, its trial, its model and the trials that lost."""
        chosen = body["selection"]
        around = self._around(task, chosen, version)
        note = selection_note(body, around)
        model = NO_MODEL
        if version is not None:
            model = dict(zip(NO_MODEL, (version.name, str(version.version)), strict=True))
            self._runs.describe_version(version.name, str(version.version), note)
        self._runs.log(task, at, tags={NOTE: note, **model})
        won = chosen["trial_key"]
        selected = str(around.trials.get(won, won or "nothing"))
        candidates = {c["trial_key"]: c for c in chosen["candidates"]}
        made = {done["trial_key"]: done for done in chosen["rounds"]}
        for key, run in self._trials(chosen).items():
            seen = candidates.get(key)
            tags = {NOTE: note, **model}
            if key != won:
                told = seen or made.get(key) or {"why": "it is no candidate any more"}
                tags = {NOTE: lost_note(told, selected, around.task), **NO_MODEL}
            if seen is not None:
                tags["clsearch.why"] = seen["why"]
                tags["clsearch.within_margin"] = str(seen["accuracy"] is not None).lower()
            outcome = chosen if key == won else seen
            points: Points = [("margin", chosen["margin"], 0)]
            if outcome is not None:
                points += outcome_points(outcome, chosen["best"], chosen["layers"])
            self._runs.log(run, at, points=points, tags=tags)

    def _mark(self, chosen: Mapping[str, Any]) -> None:
        """Tags and names the chosen trial of a task as selected, and no other."""
        won = self._key(chosen, chosen["trial_key"] or "none")
        suffix = SEPARATOR + "selected"
        for key, run in self._runs.runs.items():
            selected = str(key == won).lower()
            if (
                key.startswith(self._key(chosen) + "/")
                and run.tags["clsearch.selected"] != selected
            ):
                name = run.tags[NAME].removesuffix(suffix) + (suffix if key == won else "")
                self._runs.rename(run, name)
                self._runs.log(run, 0, tags={"clsearch.selected": selected})

    def _know(self, method: str, params: Iterable[str]) -> None:
        names = self._hypers.setdefault(method, {})
        names |= dict.fromkeys(name for name in params if name not in PLACE)

    def _methods(self) -> dict[str, list[str]]:
        """The hyperparameters of each method whose trials are known."""
        return {method: sorted(names) for method, names in sorted(self._hypers.items())}

    def _show(self) -> None:
        """Saves the views of the experiment, with a column for each hyperparameter."""
        methods, digest = self._methods(), self._runs.digest
        every = sorted({name for names in methods.values() for name in names})
        views = base_views(digest, every)
        for method, names in methods.items():
            views |= trials_view(digest, method, names)
        self._save(views)

    def _save(self, views: Mapping[str, str]) -> None:
        """Saves views, and has the description of the experiment link to all there are: as long as
        it is the one written here, not a person's own."""
        known = self._runs.experiment_tags
        told, new = (
            experiment_note(self._runs.name, links(self._runs.experiment, methods_shown(tags)))
            for tags in (known, {**known, **views})
        )
        note = {NOTE: new} if known.get(NOTE, told) == told else {}
        self._runs.tag_experiment({**note, **views})

    def _describe(self, at: int) -> None:
        """Describes the search: what it selected so far."""
        rows = [
            TaskRow(
                self._link(run),
                run.tags["clsearch.outcome"],
                run.tags["clsearch.hyperparameters"],
                run.metrics,
            )
            for run in sorted(
                (run for run in self._runs.runs.values() if "clsearch.outcome" in run.tags),
                key=_order,
            )
        ]
        views = links(self._runs.experiment, self._methods())
        note = search_note(self._runs.digest, self._tasks, rows, views)
        self._runs.log(self.parent(at, reopen=False), at, tags={NOTE: note})

    # Models

    def _model(self, chosen: Mapping[str, Any]) -> str:
        """The name of a chain's registered model."""
        return slug(f"{self._runs.name}.{chosen['method']}.seed-{chosen['seed']}")

    def _register(self, name: str, run: Run, body: Mapping[str, Any], folder: Path, at: int) -> Any:
        """Makes the selected model a version of the chain's registered model, with its alias.

        `latest` is no alias: MLflow keeps the word for the newest version, which is the same.
        """
        chosen, runs = body["selection"], self._runs
        place = self._place(chosen)
        key = f"{self._key(chosen)}/{body['commit']}"
        runs.describe_model(
            name,
            f"The models that the search `{runs.name}` selected for {chosen['method']}, seed "
            f"{chosen['seed']}: a version for each task, the latest of task N with the alias "
            f"`task-N`. The newest version, `models:/{name}/latest`, came last: it is that of the "
            "last task so far, unless an earlier one had to be sent again.",
        )
        found = runs.version(name, key)
        if found is None:
            tags = {**chain_tags(place), "clsearch.key": key, "clsearch.search": runs.digest}
            tags["clsearch.trial_key"] = chosen["trial_key"]
            params = chosen["hyperparameters"]
            model_name = slug(SHORT.format(**place)).replace(".", "-")
            logged = runs.logged_model(run, key, model_name, params, chain_tags(place))
            write_mlmodel(folder, run.id, logged.model_id, at)
            logged = runs.upload(run, logged.model_id, folder)
            found = runs.add_version(name, logged, run, tags, "")
        runs.alias(name, f"task-{chosen['task']}", found.version)
        return found


SHORT = "{method}-seed-{seed}-task-{task}"
"""The name of a model in MLflow's list of logged models."""


NO_MODEL = {"clsearch.model": "none", "clsearch.model_version": "none"}
"""The tags of a run that became no model version. A run may have been another's winner before."""


def _model_of(run: Run) -> Link | None:
    """The model version that a selection became."""
    model, version = (run.tags.get(name, none) for name, none in NO_MODEL.items())
    return None if version == "none" else version_link(model, version)


def _order(run: Run) -> tuple[str, int, str]:
    """Seeds as numbers: 2 before 10."""
    method, seed, task = (run.tags[f"clsearch.{name}"] for name in PLACE)
    return method, int(seed), task
