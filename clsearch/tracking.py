"""The audit trail in MLflow: the only module that imports it, and only in a background thread.

`MLflowTracker` writes each call into the outbox (`clsearch.outbox`) and returns; `Delivery` turns
entries into runs, metrics, artifacts and registered models. MLflow gives runs random ids, so every
run carries the tag `clsearch.key`, its identity: a replayed entry finds its run again by it. Times
come from the entry, never from the clock, so that metrics logged twice are the same metrics.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from clsearch.audit import (
    Points,
    chain_tags,
    flat,
    selection_points,
    slug,
    story,
    tags_of,
    trial_points,
    word,
    words,
)
from clsearch.errors import DamagedError, InputError
from clsearch.exports.mlmodel import write_mlmodel
from clsearch.files import program_path
from clsearch.outbox import FINISH, Courier, Ledger, Outbox, sha256
from clsearch.records import TrialRecord, digest

if TYPE_CHECKING:
    from clsearch.protocols import Committed, SearchInfo, Tracker

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # A request that timed out may have been served, and only a look at the server tells: the
    # client must not repeat it by itself (the courier does, after looking).
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""Environment of MLflow, set unless the user has set it."""

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
STATUSES = ("FINISHED", "FAILED", "KILLED")
MOST_METRICS, MOST_OTHERS = 800, 100
"""Metrics, and parameters or tags, in one request. MLflow takes 1000 things in all."""
LONGEST = 5000
"""Characters of a tag or a parameter. MLflow takes 8000 and 6000."""
REFUSALS = {
    *("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"),
    *("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "RESOURCE_CONFLICT", "NOT_IMPLEMENTED"),
}
"""MLflow's error codes that blame the request, not the server or the credentials."""
NOTE = "mlflow.note.content"
"""The tag MLflow shows as a run's description."""
PASSING = (401, 403, 404, 407, 408, 425, 429)
"""HTTP statuses in the 400s that may go away without another request."""


class MLflowTracker:
    """The `Tracker` that writes to MLflow: a database in `out`, or the server at `uri`.

    Raises `InputError` for an address MLflow cannot use, and every call `StoreError` if the outbox
    cannot be written. Environment variables of `SETTINGS` are set unless the user has set them.
    """

    def __init__(self, out: Path, uri: str | None = None) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        out = out.resolve()
        if uri is not None and re.split(r"[:+]", uri)[0] not in SCHEMES:
            raise InputError(
                "tracking.uri", uri, "an address that starts with " + ", ".join(SCHEMES)
            )
        if uri is not None and "://" in uri and re.match(r"[^/]*//[^/]*@", uri):
            step = "Put them into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            shown = re.sub("//[^/@]*@", "//…@", uri)
            raise InputError("tracking.uri", shown, "an address without name and password", step)
        if uri is not None and uri.startswith("http") and not urlsplit(uri).hostname:
            raise InputError("tracking.uri", uri, "an address with a host, like http://HOST:5000")
        receiver = "local" if uri is None else f"server-{digest(re.sub('//[^/@]*@', '//', uri))}"
        ledger = Ledger(out / "checkpoints" / "delivered" / f"{receiver}.txt")
        if uri is None and not (out / "mlflow.db").exists():
            ledger.clear()
        self._outbox = Outbox(out / "outbox")
        self._delivery = Delivery(*store_of(out, uri))
        self._courier = Courier(self._outbox, ledger, self._delivery, refused)
        self._search: dict[str, str] = {}
        if len(self._outbox):
            self._courier.wake()

    @property
    def problem(self) -> str:
        """Why the latest attempt to deliver failed; empty after a success."""
        return self._courier.problem

    @property
    def rejected(self) -> list[Path]:
        """Entries MLflow refused for good, each a file that holds the reason."""
        return self._outbox.rejected()

    def start(self, info: SearchInfo) -> None:
        """Names the search; before any other call."""
        self._search = {"name": info.name, "digest": info.digest}
        self._send("start", {"config": info.config, "tasks": list(info.tasks)})

    def trial(self, record: TrialRecord) -> None:
        """A finished trial."""
        self._send("trial", record.to_json())

    def committed(self, commit: Committed) -> None:
        """A selection and the model it chose."""
        result, folder = commit.result, commit.model_files
        files = {}
        if folder is not None:
            files = {
                "model/data/model.pt2": folder / "model.pt2",
                "model/example.npy": folder / "example.npy",
            }
        body = {
            "selection": result.selection.to_json(),
            "commit": result.commit,
            "test": result.test,
            "free": result.free,
            "capacity": [layer.to_json() for layer in result.capacity],
            "transfer": result.transfer,
            "seeded_by": commit.seeded_by,
            "metrics": commit.metrics,
            "model": folder is not None,
        }
        self._send("committed", body, files)

    def finish(self, figures: Sequence[Path], metrics: Mapping[str, float], status: str) -> None:
        """The end of the search. Raises `InputError` for a status MLflow does not know."""
        if status not in STATUSES:
            raise InputError("status", status, ", ".join(STATUSES))
        files = {f"report/{path.name}": path for path in figures}
        hashes = {name: sha256(path) for name, path in files.items()}
        self._send(FINISH, {"metrics": metrics, "status": status, "files": hashes}, files)

    def close(self, timeout: float) -> int:
        """Delivers what it can within `timeout` seconds; returns how many entries still wait."""
        return self._courier.close(timeout)

    def _send(self, kind: str, body: object, files: Mapping[str, Path] | None = None) -> None:
        if not self._search:
            raise RuntimeError("MLflowTracker.start() comes before any other call")
        self._courier.send(kind, {"search": self._search, "body": body}, files)


@dataclass
class _Run:
    """What is known of a run in MLflow."""

    id: str
    status: str = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)


@dataclass
class _Search:
    """A search in MLflow: its experiment and its runs by `clsearch.key`."""

    name: str
    digest: str
    experiment: str
    runs: dict[str, _Run]


class Delivery:
    """Writes outbox entries to MLflow. Delivering one twice is the same as delivering it once."""

    def __init__(self, uri: str, artifacts: str | None) -> None:
        self._uri, self._artifacts = uri, artifacts
        self._client: Any = None
        self._searches: dict[str, _Search] = {}

    def __call__(self, content: Mapping[str, Any], files: Path) -> None:
        """Delivers an entry. Raises whatever MLflow raises; what was known is then forgotten, so
        that the next attempt looks at the server first."""
        kinds = {
            "start": self._start,
            "trial": self._trial,
            "committed": self._committed,
            FINISH: self._finish,
        }
        at = int(content["time"] * 1000)
        try:
            kinds[content["kind"]](self._open(content["search"]), content["body"], files, at)
        except BaseException:
            self._searches.clear()
            raise

    def _start(self, search: _Search, body: Mapping[str, Any], files: Path, at: int) -> None:
        run = self._parent(search, at)
        names = "\n".join(f"{t.get('number', '')}. {t.get('name', '')}" for t in body["tasks"])
        note = f"Search `{search.digest}` over {len(body['tasks'])} tasks.\n\n{names}"
        self._log(run, [], at, {} if run.params else flat(body["config"]), {NOTE: note})
        self._text(run, body["config"], "config.json")
        self._text(run, body["tasks"], "tasks.json")

    def _trial(self, search: _Search, body: Mapping[str, Any], files: Path, at: int) -> None:
        lasted = int((body["duration"] or 0) * 1000)
        began = int((body["started"] or 0) * 1000) or at - lasted
        key, hyper = body["trial_key"], body["hyperparameters"]
        task = self._task(search, body, began)
        selected = task.tags.get("clsearch.chosen") == key
        tags = tags_of("trial", body, key, body["status"], selected) | {
            "clsearch.device": body["device"] or "unknown",
            "clsearch.host": body["host"] or "unknown",
            "clsearch.pack_size": str(body["pack_size"]),
            "clsearch.reason": body["reason"] or "none",
            "clsearch.fine_tuned": body["fine_tuned"] or "none",
        }
        name = f"trial {key[:4]}… {words(hyper, ' ')}".rstrip()
        run = self._run(search, _key(search, body, key), name, task, tags, began=began)
        self._log(run, trial_points(body), began + lasted, hyper, tags)
        self._end(run, "FAILED" if body["status"] == "FAILED" else "FINISHED", began + lasted)

    def _committed(self, search: _Search, body: Mapping[str, Any], files: Path, at: int) -> None:
        chosen = body["selection"]
        task = self._task(search, chosen, at)
        key = chosen["trial_key"] or "none"
        tags = {
            "clsearch.chosen": key,
            "clsearch.outcome": chosen["outcome"],
            "clsearch.reason": chosen["reason"] or "none",
            "clsearch.seeded_by": body["seeded_by"] or "none",
            "clsearch.transfer": str(body.get("transfer", False)).lower(),
            "clsearch.status": "FAILED" if chosen["outcome"] == "failed" else "COMPLETE",
            NOTE: story(body),
        }
        tags |= {f"clsearch.hyper.{k}": word(v) for k, v in chosen["hyperparameters"].items()}
        self._log(task, selection_points(body), at, {}, tags)
        self._mark(search, _key(search, chosen), _key(search, chosen, key))
        self._text(task, chosen, "selection.json")
        if body["model"]:
            self._register(search, task, body, files / "model", at)
        self._end(task, "FAILED" if chosen["outcome"] == "failed" else "FINISHED", at)

    def _mark(self, search: _Search, task: str, chosen: str) -> None:
        """Tags the chosen trial of a task as selected, and no other."""
        for key, run in search.runs.items():
            selected = str(key == chosen).lower()
            if key.startswith(f"{task}/") and run.tags["clsearch.selected"] != selected:
                self._log(run, [], 0, {}, {"clsearch.selected": selected})

    def _finish(self, search: _Search, body: Mapping[str, Any], files: Path, at: int) -> None:
        parent = self._parent(search, at, reopen=False)
        points: Points = [(name, value, 0) for name, value in body["metrics"].items()]
        self._log(parent, points, at, {}, {"clsearch.status": body["status"]})
        if (files / "report").is_dir():
            self._client.log_artifacts(parent.id, str(files / "report"), "report")
        for run in search.runs.values():
            if run.status == "RUNNING" or run is parent:
                self._end(run, body["status"], at)

    def _open(self, search: Mapping[str, str]) -> _Search:
        """The search as MLflow knows it: read once, then kept up to date here."""
        if search["digest"] in self._searches:
            return self._searches[search["digest"]]
        if self._client is None:
            self._client = _connect(self._uri)
        experiment = self._client.get_experiment_by_name(search["name"])
        if experiment is None:
            number = self._client.create_experiment(search["name"], self._artifacts)
        else:
            number = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                self._client.restore_experiment(number)
        known = _Search(search["name"], search["digest"], number, {})
        known.runs.update(self._load(known))
        self._searches[known.digest] = known
        return known

    def _load(self, search: _Search) -> dict[str, _Run]:
        """The runs of a search by key. Of two with one key (a request that timed out and was
        served all the same) the fuller stays, the other is deleted."""
        query = f"tags.`clsearch.search` = '{search.digest}'"
        found: list[Any] = []
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs(
                [search.experiment], query, max_results=200, page_token=token or None
            )
            found, token = [*found, *page], page.token or None
        runs: dict[str, _Run] = {}
        for run in sorted(found, key=lambda run: (-len(run.data.metrics), run.info.run_id)):
            key = run.data.tags["clsearch.key"]
            if key in runs:
                self._client.delete_run(run.info.run_id)
                continue
            params = set(run.data.params)
            runs[key] = _Run(run.info.run_id, run.info.status, dict(run.data.tags), params)
        return runs

    def _parent(self, search: _Search, at: int, reopen: bool = True) -> _Run:
        run = self._run(
            search, search.digest, f"search {search.digest[:8]}", None, tags_of("search"), began=at
        )
        if reopen and run.status != "RUNNING":
            self._client.update_run(run.id, "RUNNING")
            run.status = "RUNNING"
            self._log(run, [], at, {}, {"clsearch.status": "RUNNING"})
        return run

    def _task(self, search: _Search, at_task: Mapping[str, Any], at: int) -> _Run:
        """The run of a chain at a task, to which `at_task` (a trial or a selection) belongs."""
        name = f"{at_task['method']} · seed {at_task['seed']} · task {at_task['task']}"
        parent = self._parent(search, at)
        return self._run(
            search, _key(search, at_task), name, parent, tags_of("task", at_task), began=at
        )

    def _run(
        self,
        search: _Search,
        key: str,
        name: str,
        parent: _Run | None,
        tags: Mapping[str, str],
        *,
        began: int,
    ) -> _Run:
        if key in search.runs:
            return search.runs[key]
        every = {**tags, "clsearch.search": search.digest, "clsearch.key": key}
        every |= {"mlflow.source.name": "clsearch", "mlflow.source.type": "LOCAL"}
        if parent is not None:
            every["mlflow.parentRunId"] = parent.id
        every = {k: v[:LONGEST] for k, v in every.items()}
        created = self._client.create_run(search.experiment, began, every, name)
        search.runs[key] = _Run(created.info.run_id, "RUNNING", every)
        return search.runs[key]

    def _log(
        self,
        run: _Run,
        points: Points,
        at: int,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        """Logs what the run does not have yet; metrics it has are recognised by MLflow."""
        from mlflow.entities import Metric, Param, RunTag

        new_tags = {k: v[:LONGEST] for k, v in tags.items() if run.tags.get(k) != v[:LONGEST]}
        t = [RunTag(k, v) for k, v in new_tags.items()]
        p = [Param(k, word(v)[:LONGEST]) for k, v in params.items() if k not in run.params]
        m = [
            Metric(re.sub(r"[^\w\-./ ]", "_", name), float(value), at, step)
            for name, value, step in points
            if value is not None and math.isfinite(value)
        ]
        for i in range(max(-(-len(m) // MOST_METRICS), -(-max(len(p), len(t)) // MOST_OTHERS))):
            some, few = (slice(i * n, (i + 1) * n) for n in (MOST_METRICS, MOST_OTHERS))
            self._client.log_batch(run.id, m[some], p[few], t[few])
        run.tags.update(new_tags)
        run.params.update(params)

    def _end(self, run: _Run, status: str, at: int) -> None:
        if run.status != status:
            self._client.set_terminated(run.id, status, at)
            run.status = status

    def _text(self, run: _Run, value: object, name: str) -> None:
        self._client.log_text(run.id, json.dumps(value, indent=2, allow_nan=False), name)

    def _register(
        self, search: _Search, run: _Run, body: Mapping[str, Any], folder: Path, at: int
    ) -> None:
        """Makes the selected model a version of the chain's registered model, with its alias."""
        chosen = body["selection"]
        name = slug(f"{search.name}.{chosen['method']}.seed-{chosen['seed']}")
        key = f"{_key(search, chosen)}/{body['commit']}"
        if not self._client.search_registered_models(f"name = '{name}'"):
            about = f"Models selected by the search `{search.name}`, one version a task."
            self._client.create_registered_model(name, description=about)
        versions = self._client.search_model_versions(f"name = '{name}'")
        found = [v.version for v in versions if v.tags.get("clsearch.key") == key]
        if not found:
            model = self._log_model(search, run, body, key)
            write_mlmodel(folder, run.id, model.model_id, at)
            model = self._upload(run, model.model_id, folder)
            tags = {**chain_tags(chosen), "clsearch.key": key, "clsearch.search": search.digest}
            tags["clsearch.trial_key"] = chosen["trial_key"]
            created = self._client.create_model_version(
                name, model.artifact_location, run.id, tags, None, story(body), 0, model.model_id
            )
            found = [created.version]
        self._client.set_registered_model_alias(name, f"task-{chosen['task']}", found[0])

    def _log_model(self, search: _Search, run: _Run, body: Mapping[str, Any], key: str) -> Any:
        """MLflow's record of a selected model: the one an earlier attempt made, or a new one."""
        query = f"tags.`clsearch.key` = '{key}'"
        found = self._client.search_logged_models([search.experiment], query)
        if found:
            return found[0]
        chosen = body["selection"]
        name = f"{chosen['method']}-seed-{chosen['seed']}-task-{chosen['task']}"
        params = {k: word(v) for k, v in chosen["hyperparameters"].items()}
        tags = {**chain_tags(chosen), "clsearch.key": key}
        return self._client.create_logged_model(
            search.experiment, slug(name).replace(".", "-"), run.id, tags, params, "clsearch"
        )

    def _upload(self, run: _Run, model_id: str, folder: Path) -> Any:
        """The files of a model: the program as it was exported.

        `mlflow.pytorch.log_model` would load and trace it again (five times slower) and works
        through a global active run.
        """
        from mlflow.entities import LoggedModelOutput

        self._client.log_model_artifacts(model_id, str(folder))
        outputs = self._client.get_run(run.id).outputs
        if model_id not in [output.model_id for output in outputs.model_outputs]:
            self._client.log_outputs(run.id, [LoggedModelOutput(model_id, 0)])
        return self._client.finalize_logged_model(model_id, "READY")


def _connect(uri: str) -> Any:
    """The MLflow client; creates the database if it does not exist yet."""
    from mlflow import MlflowClient

    # A busy database is tried again: its traceback does not belong on the terminal.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def refused(error: Exception) -> bool:
    """Whether an entry failed for a reason of its own, which another attempt cannot change."""
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        status = getattr(getattr(error, "response", None), "status_code", 0)
        return 400 <= status < 500 and status not in PASSING
    broken = (DamagedError, FileNotFoundError, LookupError, TypeError, ValueError)
    return isinstance(error, broken) or getattr(error, "error_code", "") in REFUSALS


def store_of(out: Path, uri: str | None) -> tuple[str, str | None]:
    """The tracking address of an output folder, and where its artifacts go (None: MLflow's)."""
    if uri is not None:
        return uri, None
    return f"sqlite:///{out.resolve() / 'mlflow.db'}", (out.resolve() / "artifacts").as_uri()


def ui_command(out: Path, uri: str | None = None) -> str:
    """The shell command that opens the MLflow UI for this output folder."""
    if uri is not None and uri.startswith("http"):
        return f"{shlex.quote(sys.executable)} -m webbrowser {shlex.quote(uri)}"
    store = shlex.quote(store_of(out, uri)[0])
    program = "mlflow" if shutil.which("mlflow") else shlex.quote(program_path("mlflow"))
    server = f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {program} server --workers 1"
    return f"{server} --backend-store-uri {store}"


def _key(search: _Search, at_task: Mapping[str, Any], trial: str | None = None) -> str:
    key = f"{search.digest}/{at_task['method']}/{at_task['seed']}/{at_task['task']}"
    return key if trial is None else f"{key}/{trial}"


if TYPE_CHECKING:
    _conforms: type[Tracker] = MLflowTracker
