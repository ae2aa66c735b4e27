"""The audit trail in MLflow, as the search sees it: nothing here waits for a server.

`MLflowTracker` writes each call into the outbox (`clsearch.outbox`) and returns; in a background
thread, or a process, `Delivery` turns entries into runs, metrics, artifacts and registered models.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from clsearch.addresses import SQLITE, database_of
from clsearch.courier import FINISH, Courier, Files, Ledger
from clsearch.delivery import Delivery
from clsearch.delivery_process import DeliveryProcess, refused
from clsearch.errors import InputError
from clsearch.files import file_sha256
from clsearch.identity import without_places
from clsearch.mlflow_places import not_mlflows
from clsearch.outbox import Outbox
from clsearch.records import TrialRecord, digest
from clsearch.redaction import holds_secret

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

SERVERS = ("http", "https", "databricks")
SCHEMES = (*SERVERS, "sqlite", "postgresql", "mysql", "mssql")
HTTP = "http://HOST:5000"
_BY_HTTP = "Put them into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
CREDENTIALS = {
    **dict.fromkeys(("http", "https"), _BY_HTTP),
    "postgresql": "Put them into PGUSER and PGPASSWORD, or the password into ~/.pgpass.",
}
"""Where names and passwords go, by scheme: an address stands in files and lists of processes."""
NAMED = re.compile(r"(^|[&;=])(user|username|uid|password|passwd|pwd|sslpassword)=", re.I)
"""Names and passwords in what follows the `?` of an address."""
STATUSES = ("FINISHED", "FAILED", "KILLED")


class MLflowTracker:
    """The `Tracker` that writes to MLflow: a database in `out`, or the server at `uri`.

    `system_metrics`: the load of this machine is sampled too, straight to MLflow. `apart`: MLflow's
    client is in a process of its own. Raises `InputError` for an address MLflow cannot use,
    `StoreError` for a database that is busy, and from every call if the outbox cannot be written.
    Environment variables of `SETTINGS` are set unless the user has set them.
    """

    def __init__(
        self,
        out: Path,
        uri: str | None = None,
        system_metrics: bool = False,
        apart: bool = False,
    ) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        out, store = out.resolve(), writable_store_of(out, uri)
        receiver = "local" if uri is None else f"server-{digest(uri)}"
        ledger = Ledger(out / "checkpoints" / "delivered" / f"{receiver}.txt")
        if uri is None and not (out / "mlflow.db").exists():
            ledger.clear()
        self._outbox = Outbox(out / "outbox")
        kind = DeliveryProcess if apart else Delivery
        self._delivery = kind(*store, system_metrics)
        self._courier = Courier(self._outbox, ledger, self._delivery, refused)
        self._search: dict[str, Any] = {}
        self._data: dict[int, dict[str, Any]] = {}
        self._joint: frozenset[str] = frozenset()
        self._trials: dict[tuple[str, int, int], list[str]] = {}
        """What was sent of a chain's trials at a task, until their selection is."""
        self._let_be = False
        """Whether the garbage collector leaves alone what there was after the first export."""
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
        names = [str(task["name"]) for task in info.tasks]
        self._search = {"name": info.name, "digest": info.digest, "tasks": names}
        self._data = _data_sets(info) if info.tasks else {}
        self._joint = info.joint
        self._delivery.watched = info.digest
        self._send("start", {"config": info.config, "tasks": list(info.tasks)})

    def trial(self, record: TrialRecord) -> None:
        """A finished trial."""
        body = {**record.to_json(), "data": self._used(record.method, record.task)}
        place = (record.method, record.seed, record.task)
        self._trials.setdefault(place, []).append(self._send("trial", body))

    def committed(self, commit: Committed) -> None:
        """A selection and the model it chose."""
        result = commit.result
        body = {
            "selection": result.selection.to_json(),
            "commit": result.commit,
            "test": result.test,
            "free": result.free,
            "memory_bytes": result.memory_bytes,
            "capacity": [layer.to_json() for layer in result.capacity],
            "transfer": result.transfer,
            "seeded_by": commit.seeded_by,
            "parent": commit.parent,
            "data": self._used(result.selection.method, result.selection.task),
            "metrics": commit.metrics,
            "model": commit.write is not None,
        }

        def files(folder: Path) -> dict[str, Path]:
            if commit.write is None:
                return {}
            commit.write(folder)
            self._freeze()
            figures = {f"figures/{path.name}": path for path in folder.glob("*.png")}
            return figures | {
                "model/data/model.pt2": folder / "model.pt2",
                "model/example.npy": folder / "example.npy",
            }

        chosen = result.selection
        trials = self._trials.pop((chosen.method, chosen.seed, chosen.task), [])
        self._send("committed", body, files, trials)

    def finish(self, figures: Sequence[Path], metrics: Mapping[str, float], status: str) -> None:
        """The end of the search. Raises `InputError` for a status MLflow does not know."""
        if status not in STATUSES:
            raise InputError("status", status, ", ".join(STATUSES))
        files = {f"report/{path.name}": path for path in figures}
        hashes = {name: file_sha256(path) for name, path in files.items()}
        self._send(FINISH, {"metrics": metrics, "status": status, "files": hashes}, lambda _: files)

    def close(self, timeout: float) -> int:
        """Delivers what it can within `timeout` seconds; returns how many entries still wait."""
        try:
            return self._courier.close(timeout)
        finally:
            self._delivery.close()
            if self._let_be:
                self._let_be = False
                gc.unfreeze()

    def _freeze(self) -> None:
        """Takes what the first export and the first figures have imported, and all before it, from
        the garbage collector until the search is over: it looks for the cycles that each export
        leaves when they are a quarter of what it last looked through, without this ten tasks
        later. If somebody else has told it what to leave alone, that stays as it is."""
        if not gc.get_freeze_count():
            self._let_be = True
            gc.collect()
            gc.freeze()
            gc.collect()  # of nothing, which is what the next quarter is of

    def _used(self, method: str, task: int) -> list[dict[str, Any]]:
        """The data a method trains on at a task: the task's own, or all so far."""
        first = 1 if method in self._joint else task
        return [self._data[n] for n in range(first, task + 1) if n in self._data]

    def _send(
        self, kind: str, body: object, files: Files | None = None, about: Sequence[str] = ()
    ) -> str:
        if not self._search:
            raise RuntimeError("MLflowTracker.start() comes before any other call")
        return self._courier.send(kind, {"search": self._search, "body": body}, files, about)


def _data_sets(info: SearchInfo) -> dict[int, dict[str, Any]]:
    """What each task trains on and is selected on; nothing of its test samples."""
    source = without_places(info.config["scenario"])
    found = {}
    for task in info.tasks:
        parts = {name: task[name] for name in ("name", "digest", "train", "validation")}
        found[task["number"]] = {**parts, "classes": len(task["classes"]), "source": source}
    return found


def store_of(out: Path, uri: str | None, field: str = "out") -> tuple[str, str | None]:
    """The tracking address of an output folder, and where its artifacts go (None: MLflow's).
    Raises `InputError` for an address MLflow cannot use, or that names a user, and, under `field`,
    for a folder whose path is none within an address."""
    if uri is not None:
        check_uri(uri)
        return uri, None
    if re.search("[?%]", str(out.resolve())):
        step = "They mean something else in the address of MLflow's database. Give it another name."
        raise InputError(field, str(out), "a folder without ? and % in its path", step)
    return f"{SQLITE}{out.resolve() / 'mlflow.db'}", (out.resolve() / "artifacts").as_uri()


def writable_store_of(out: Path, uri: str | None) -> tuple[str, str | None]:
    """`store_of` for who writes there. Raises `InputError` for a database of something else too,
    `StoreError` for one that is busy."""
    store, artifacts = store_of(out, uri)
    database = database_of(store) if artifacts is None else None
    if database is not None and database.is_file() and (wrong := not_mlflows(database)):
        step = f"{database} {wrong}. Name a file that is not there yet: MLflow makes it."
        raise InputError("tracking.uri", store, "a database of MLflow's", step)
    return store, artifacts


def is_server(uri: str | None) -> bool:
    """Whether the address is that of MLflow itself, which then has a UI; else of a database."""
    return uri is not None and scheme(uri) in SERVERS


def scheme(uri: str) -> str:
    return re.split(r"[:+]", uri)[0]


def _host(uri: str) -> str | None:
    try:
        return urlsplit(uri).hostname
    except ValueError:  # half an address of IPv6
        return None


def check_uri(uri: str) -> None:
    """Raises `InputError` for an address MLflow cannot use, or that names a user."""
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise InputError("tracking.uri", uri, "an address in UTF-8") from error
    shown = re.sub(r"([?#;]).*", r"\1…", re.sub("//.*@", "//…@", uri))
    if scheme(uri) not in SCHEMES:
        raise InputError("tracking.uri", shown, "an address that starts with " + ", ".join(SCHEMES))
    # SQLAlchemy takes any character but @ as part of a password.
    user = r"[^/]*//[^/]*@" if is_server(uri) else r"[^/]*//[^/:@]*(:[^@]*)?@"
    rest = unquote("".join(re.split(r"(?=[?#])", uri, maxsplit=1)[1:]))
    secret = not is_server(uri) and holds_secret(rest)
    if re.match(user, uri) or NAMED.search(rest[1:]) or secret:
        step = CREDENTIALS.get(scheme(uri), f"Give the address of a server ({HTTP}) that has them.")
        raise InputError("tracking.uri", shown, "an address without name and password", step)
    if scheme(uri) in ("http", "https") and re.search("[?#;]", uri):
        step = "MLflow has no place for it. A token belongs into MLFLOW_TRACKING_TOKEN."
        raise InputError("tracking.uri", shown, "an address of a server without ?…, ;… or #…", step)
    if scheme(uri) == "sqlite" and not re.fullmatch(f"{SQLITE}[^?%]+", uri):
        allowed = f"{SQLITE}PATH of a database, without ? and % in it"
        raise InputError("tracking.uri", shown, allowed)
    if scheme(uri) in ("http", "https") and not _host(uri):
        raise InputError("tracking.uri", uri, f"an address with a host, like {HTTP}")


if TYPE_CHECKING:
    _conforms: type[Tracker] = MLflowTracker
