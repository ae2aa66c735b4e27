"""The one module that imports MLflow: the runs, models and data sets of a search.

MLflow gives runs random ids, so every run carries the tag `clsearch.key`, its identity: what is
logged twice finds its run again by it. Times are given, never read from the clock, so that metrics
logged twice are the same metrics. Every method raises whatever MLflow raises.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from clsearch.addresses import database_of
from clsearch.audit import Points, word
from clsearch.errors import DamagedError
from clsearch.files import entry_folder, replaced
from clsearch.mlflow_places import model_place, put_right, run_place

MOST_METRICS, MOST_OTHERS = 800, 100
"""Metrics, and parameters or tags, in one request. MLflow takes 1000 things in all."""
LONGEST = 5000
"""Characters of a parameter, a tag or a description. MLflow takes 6000, 8000 and 5000."""
NOTE, NAME, PARENT = "mlflow.note.content", "mlflow.runName", "mlflow.parentRunId"
"""The tags that MLflow shows as a run's description and name, and that nest it."""
PASSING = (401, 403, 404, 407, 408, 425, 429)
"""HTTP statuses in the 400s that may go away without another request."""
REFUSALS = {
    *("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"),
    *("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "RESOURCE_CONFLICT", "NOT_IMPLEMENTED"),
}
"""MLflow's error codes that blame the request, not the server or the credentials."""


def refused(error: Exception) -> bool:
    """Whether an entry failed for a reason of its own, which another attempt cannot change."""
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        status = getattr(getattr(error, "response", None), "status_code", 0)
        return 400 <= status < 500 and status not in PASSING
    broken = (DamagedError, FileNotFoundError, LookupError, TypeError, ValueError)
    return isinstance(error, broken) or getattr(error, "error_code", "") in REFUSALS


@dataclass
class Run:
    """What is known of a run in MLflow; of its metrics the latest values."""

    id: str
    status: str = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    began: int = 0
    """In milliseconds."""


class Monitor:
    """Samples of the driver's machine on a run: MLflow's own system metrics, in its own thread."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._at_work: Any = None

    def watch(self, run: Run) -> None:
        """Begins with the first call; a run watched before is continued where it ended."""
        if self._at_work is None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            # A server that goes away ends the samples, not the search.
            for name in ("system_metrics.system_metrics_monitor", "utils.autologging_utils"):
                logging.getLogger(f"mlflow.{name}").setLevel(logging.CRITICAL)
            self._at_work = SystemMetricsMonitor(
                run.id, resume_logging=True, tracking_uri=self._uri
            )
            self._at_work.start()

    def stop(self) -> None:
        """Waits for its thread: at most as long as a request may take."""
        if self._at_work is not None:
            self._at_work.finish()
            self._at_work = None


class SearchRuns:
    """A search in MLflow: its experiment and its runs by `clsearch.key`. `artifacts` is the address
    of files where the database is an output folder's own, else None. Read once, then kept up to
    date here, all but what is settled: of that only the ids are kept, and a run that is asked for
    after all is read again."""

    def __init__(self, uri: str, artifacts: str | None, name: str, digest: str) -> None:
        database = database_of(uri)
        if artifacts is not None and database is not None:
            _make(database)
            put_right(uri, artifacts, name)
        self.client, self.artifacts = _connect(uri), artifacts
        self.name, self.digest = name, digest
        found = self.client.get_experiment_by_name(name)
        if found is None:
            number = self.client.create_experiment(name, artifacts)
            found = self.client.get_experiment(number)
        elif found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        self.experiment: str = found.experiment_id
        self.experiment_tags: dict[str, str] = dict(found.tags)
        self.runs: dict[str, Run] = self._load()
        self._settled: dict[str, dict[str, str]] = {}
        """Ids by trial, by the key of the run of their task."""

    def _load(self) -> dict[str, Run]:
        """The runs of a search by key. Of two with one key (a request that timed out and was
        served all the same) the fuller stays, the other is deleted."""
        query = f"tags.`clsearch.search` = '{self.digest}'"
        found: list[Any] = []
        token: str | None = ""
        while token is not None:
            page = self.client.search_runs(
                [self.experiment], query, max_results=200, page_token=token or None
            )
            found, token = [*found, *page], page.token or None
        runs: dict[str, Run] = {}
        for run in sorted(found, key=lambda run: (-len(run.data.metrics), run.info.run_id)):
            key = run.data.tags["clsearch.key"]
            if key in runs:
                self.client.delete_run(run.info.run_id)
                continue
            runs[key] = _read(run)
        return runs

    def settle(self, method: str, seed: str, task: int) -> None:
        """Nothing more is expected of a chain's trials before a task. A long search would keep a
        page of text of each in memory."""
        for key, run in list(self.runs.items()):
            tags = run.tags
            if tags["clsearch.kind"] != "trial" or run.status == "RUNNING":
                continue
            chain = tags["clsearch.method"], tags["clsearch.seed"]
            if chain == (method, seed) and int(tags["clsearch.task"]) < task:
                at_task, _, trial = key.rpartition("/")
                self._settled.setdefault(at_task, {})[trial] = self.runs.pop(key).id

    def recall(self, at_task: str) -> None:
        """Reads again what is settled of the task with this key: it is selected once more."""
        for trial, number in self._settled.pop(at_task, {}).items():
            self.runs[f"{at_task}/{trial}"] = _read(self.client.get_run(number))

    def run(
        self, key: str, name: str, parent: Run | None, tags: Mapping[str, str], began: int
    ) -> Run:
        """The run of a key; created where there is none. `began` is in milliseconds."""
        at_task, _, trial = key.rpartition("/")
        if trial in self._settled.get(at_task, {}):
            number = self._settled[at_task].pop(trial)
            self.runs[key] = _read(self.client.get_run(number))
        if key in self.runs:
            return self.runs[key]
        every = {**tags, "clsearch.search": self.digest, "clsearch.key": key}
        every |= {"mlflow.source.name": "clsearch", "mlflow.source.type": "LOCAL"}
        if parent is not None:
            every[PARENT] = parent.id
        every = {k: v[:LONGEST] for k, v in every.items()}
        created = self.client.create_run(self.experiment, began, every, name)
        self.runs[key] = Run(created.info.run_id, tags=every | {NAME: name}, began=began)
        return self.runs[key]

    def log(
        self,
        run: Run,
        at: int,
        *,
        points: Points = (),  # type: ignore[assignment]
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Logs what the run does not have yet; metrics it has are recognised by MLflow."""
        from mlflow.entities import Metric, Param, RunTag

        new_tags = {k: v[:LONGEST] for k, v in (tags or {}).items()}
        new_tags = {k: v for k, v in new_tags.items() if run.tags.get(k) != v}
        new_params = {k: word(v)[:LONGEST] for k, v in (params or {}).items()}
        new_params = {k: v for k, v in new_params.items() if k not in run.params}
        t = [RunTag(k, v) for k, v in new_tags.items()]
        p = [Param(k, v) for k, v in new_params.items()]
        m = [
            Metric(re.sub(r"[^\w\-./ ]", "_", name), float(value), at, step)
            for name, value, step in points
            if value is not None and math.isfinite(value)
        ]
        for i in range(max(-(-len(m) // MOST_METRICS), -(-max(len(p), len(t)) // MOST_OTHERS))):
            some, few = (slice(i * n, (i + 1) * n) for n in (MOST_METRICS, MOST_OTHERS))
            self.client.log_batch(run.id, m[some], p[few], t[few])
        run.tags.update(new_tags)
        run.params.update(new_params)
        run.metrics.update({metric.key: metric.value for metric in m})

    def rename(self, run: Run, name: str) -> None:
        if run.tags.get(NAME) != name:
            self.client.update_run(run.id, name=name)
            run.tags[NAME] = name

    def reopen(self, run: Run) -> None:
        if run.status != "RUNNING":
            self.client.update_run(run.id, "RUNNING")
            run.status = "RUNNING"

    def end(self, run: Run, status: str, at: int) -> None:
        if run.status != status:
            self.client.set_terminated(run.id, status, at)
            run.status = status

    def text(self, run: Run, value: object, name: str) -> None:
        """Logs a value as a JSON file."""
        with entry_folder() as folder:
            Path(folder, name).write_text(json.dumps(value, indent=2, allow_nan=False))
            self.files(run, Path(folder))

    def files(self, run: Run, folder: Path, name: str | None = None) -> None:
        """Logs the files of a folder, where it exists."""
        if not folder.is_dir():
            return
        if self.artifacts is not None:
            _copy(run_place(self.artifacts, run.id), folder, name)
        else:
            self.client.log_artifacts(run.id, str(folder), name)

    def inputs(self, run: Run, sets: Sequence[Mapping[str, Any]]) -> None:
        """Logs the data a run trains on and is selected on, by task; data sets a run has are
        recognised."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        parts = (("train", "training"), ("validation", "validation"))
        for data, (part, context) in product(sets, parts):
            profile = {"samples": data[part], "classes": data["classes"]}
            dataset = Dataset(
                name=f"{data['name']} {part}",
                digest=data["digest"],
                source_type="clsearch",
                source=json.dumps(data["source"]),
                profile=json.dumps(profile),
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        self.client.log_inputs(run.id, inputs)

    def tag_experiment(self, tags: Mapping[str, str]) -> None:
        """Sets the tags of the experiment that are not so yet."""
        for key, value in tags.items():
            if self.experiment_tags.get(key) != value:
                self.client.set_experiment_tag(self.experiment, key, value)
                self.experiment_tags[key] = value

    def version(self, model: str, key: str) -> Any | None:
        """The version of a registered model with this `clsearch.key`."""
        query = f"name = '{model}' and tags.`clsearch.key` = '{key}'"
        found = self.client.search_model_versions(query)
        return found[0] if found else None

    def describe_model(self, model: str, about: str) -> None:
        """Makes sure that there is a registered model."""
        if not self.client.search_registered_models(f"name = '{model}'"):
            self.client.create_registered_model(model, description=about[:LONGEST])

    def logged_model(
        self, run: Run, key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> Any:
        """MLflow's record of a model: the one an earlier attempt made, or a new one."""
        query = f"tags.`clsearch.key` = '{key}'"
        found = self.client.search_logged_models([self.experiment], query)
        if found:
            return found[0]
        texts = {k: word(v) for k, v in params.items()}
        every = {**tags, "clsearch.key": key}
        return self.client.create_logged_model(
            self.experiment, name, run.id, every, texts, "clsearch"
        )

    def upload(self, run: Run, model_id: str, folder: Path) -> Any:
        """The files of a model: the program as it was exported.

        `mlflow.pytorch.log_model` would load and trace it again (five times slower) and works
        through a global active run.
        """
        from mlflow.entities import LoggedModelOutput

        if self.artifacts is not None:
            _copy(model_place(self.artifacts, model_id), folder, None)
        else:
            self.client.log_model_artifacts(model_id, str(folder))
        outputs = self.client.get_run(run.id).outputs
        if model_id not in [output.model_id for output in outputs.model_outputs]:
            self.client.log_outputs(run.id, [LoggedModelOutput(model_id, 0)])
        return self.client.finalize_logged_model(model_id, "READY")

    def add_version(
        self, model: str, logged: Any, run: Run, tags: Mapping[str, str], about: str
    ) -> Any:
        """A new version of a registered model, from MLflow's record of the model."""
        place, id_ = logged.artifact_location, logged.model_id
        if self.artifacts is not None:
            place = model_place(self.artifacts, id_)
        about = about[:LONGEST]
        return self.client.create_model_version(
            model, place, run.id, dict(tags), None, about, 0, id_
        )

    def describe_version(self, model: str, version: str, about: str) -> None:
        self.client.update_model_version(model, version, about[:LONGEST])

    def alias(self, model: str, name: str, version: str) -> None:
        self.client.set_registered_model_alias(model, name, version)

    def drop_aliases(self, model: str, first: int, others: bool) -> None:
        """Removes the aliases `task-N` of a registered model, where there is one, from the task
        `first` on; with `others` only those of models that another search selected."""
        for found in self.client.search_registered_models(f"name = '{model}'"):
            for name, version in found.aliases.items():
                number = re.fullmatch(r"task-(\d+)", name)
                if number is None or int(number[1]) < first:
                    continue
                tags = self.client.get_model_version(model, str(version)).tags
                if not (others and tags.get("clsearch.search") == self.digest):
                    self.client.delete_registered_model_alias(model, name)


def _read(run: Any) -> Run:
    """What is known of a run that MLflow has."""
    data, info = run.data, run.info
    known = dict(data.tags), dict(data.params), dict(data.metrics)
    return Run(info.run_id, info.status, *known, began=info.start_time)


def _copy(place: str, folder: Path, name: str | None) -> None:
    """Copies files to an address in an output folder, which is not asked of its database: that may
    have come with the folder from elsewhere, and name any."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(place).log_artifacts(str(folder), name)


def _make(database: Path) -> None:
    """Makes an output folder's database where there is none, beside its place first: MLflow makes
    the tables in many steps, and can use none that was killed on the way."""
    from mlflow.store.db import utils

    if database.exists():
        return
    for left in database.parent.glob(f".{database.name}.*"):
        left.unlink(missing_ok=True)
    with replaced(database) as stream:
        engine = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{stream.name}")
        try:
            utils._initialize_tables(engine)  # as `mlflow db upgrade` does
        finally:
            engine.dispose()
        for ending in ("-journal", "-wal"):  # of another that was deleted
            Path(f"{database}{ending}").unlink(missing_ok=True)


def _connect(uri: str) -> Any:
    """The MLflow client; creates the database of another place if it does not exist yet."""
    from mlflow import MlflowClient

    # A busy database is tried again: its traceback does not belong on the terminal.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)
