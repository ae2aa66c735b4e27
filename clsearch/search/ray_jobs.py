"""Searches as jobs of a cluster: handed to its job server, and followed there."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from clsearch.addresses import is_loopback
from clsearch.errors import ClsearchError, InputError
from clsearch.search import local
from clsearch.search._ray import authenticated, job_client, ray, ray_constants, raylet
from clsearch.search.probe import asks_for_token, find, is_here, stderr_closed
from clsearch.search.reach import (
    SERVERS,
    TIMEOUT,
    TUNNEL,
    check_asks,
    not_asked,
    unreached,
    unserved,
    within,
)

T = TypeVar("T")

CONFIG = "CLSEARCH_CONFIG"
"""The variable of a job that holds the config of its search."""

LONGEST = 60_000
"""Characters of a config that fit into the variables of a job, quotes and all."""

ANSWER = 60.0
"""Seconds that an answer of the job server may take as a whole."""

AGENT = (
    " Does another Ray on that host hold the port of its agent? `ray start --head"
    " --dashboard-agent-listen-port=PORT` gives it another."
)

STOP_WITHIN = 60
"""Seconds that a search has, once it is told to stop, before Ray kills it."""

ABSENT = (
    "clsearch is not on the PATH of Ray's processes on the head. Install it there, and start Ray "
    "by PATH=VENV/bin:$PATH ray start, as cluster.yaml does."
)
_NOT_FOUND = 127

_FAILURES = (OSError, RuntimeError, ValueError, ray.exceptions.RayError)
_ODD = (KeyError, TypeError, AttributeError)
"""What Ray's client raises where an answer is none of Ray's."""


@dataclass(frozen=True)
class LaunchedJob:
    """A search on a cluster as its job server knows it.

    `status` is PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED, `reason` why it failed where it was
    not the search that did, `code` its exit code; times are in seconds since 1970. `config` is the
    YAML it was launched with, `command` what runs on the head.
    """

    id: str
    status: str
    name: str
    out: str
    command: str
    config: str
    started: float
    ended: float | None = None
    code: int | None = None
    reason: str = ""

    @property
    def over(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class JobServer:
    """The job server of a running cluster, asked with the cluster's token, or knowingly without.

    `address` is that of its dashboard (http://HOST:PORT), or of the cluster (`auto`, HOST:PORT),
    which says where its dashboard is. Raises `InputError` within seconds where none answers, and
    for a cluster without a token unless the user said that it may be one.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        token = local.cluster_token(address)
        self._url = address.rstrip("/")
        if "://" not in address:
            self._url = _dashboard(address, token)
        check_asks(self._url, address)  # whoever looked at the address before
        # Ray's client would take the variables before the address that it is given.
        named = dict.fromkeys(("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"))
        try:
            with authenticated(token), local.environment(named):
                within(2 * TIMEOUT, self._connect)
        except ray.exceptions.AuthenticationError as error:
            raise _refused(address) from error
        except (*_FAILURES, *_ODD) as error:
            raise unserved(self._url, address, error) from error

    def _connect(self) -> None:
        self._client = _client()(self._url)

    def _ask(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except (*_FAILURES, *_ODD) as error:
            said = " ".join(str(error).split()).rstrip(".")
            hint = AGENT if "No available agent" in said else ""
            what = f"the job server at {self._url} failed, or gave no answer: {said}.{hint}"
            raise ClsearchError(what) from error

    def _soon(self, act: Callable[[], T]) -> T:
        """The same of what is one answer, however slowly it comes."""
        return self._ask(lambda: within(ANSWER, act))

    def submit(self, job: str, name: str, out: str, config: str) -> None:
        """Has the cluster search a config, YAML, in the folder `out` of its own, as a job of this
        id. Raises `InputError` for a config that is too long to go along."""
        if len(json.dumps(config)) > LONGEST:
            allowed = f"a config of at most {LONGEST} characters"
            step = "Copy it to the head, and give it to `clsearch run` there, with --address auto."
            raise InputError("config", f"{len(config)} characters", allowed, step)
        told = {CONFIG: config, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WITHIN)}
        command = shlex.join(["clsearch", "run", "/dev/stdin", "--out", out, "--address", "auto"])
        mode = f"{local.MODE}=disabled " if local.open_cluster() else ""
        installed = f"command -v clsearch >/dev/null || exit {_NOT_FOUND}"
        self._soon(
            lambda: self._client.submit_job(
                submission_id=job,
                entrypoint=f"{installed}; printenv {CONFIG} | {mode}{command}",
                entrypoint_num_cpus=0,
                runtime_env={"env_vars": told},
                metadata={"name": name, "out": out, "command": command},
            )
        )

    def jobs(self) -> dict[str, LaunchedJob]:
        """The searches that were launched on the cluster, by their ids, the latest last."""
        found = self._soon(lambda: [_launched(job) for job in self._client.list_jobs()])
        return {job.id: job for job in sorted(filter(None, found), key=lambda job: job.started)}

    def stop(self, job: str) -> None:
        """Tells a search to stop, as Ctrl-C does."""
        self._soon(lambda: self._client.stop_job(job))

    def log(self, job: str) -> str:
        """All that a search has said so far."""
        return str(self._soon(lambda: self._client.get_job_logs(job)))

    def follow(self, job: str) -> Iterator[str]:
        """What a search has said, and what it says from now on, until it ends."""
        from aiohttp import ClientError

        lines = self._client.tail_job_logs(job)

        async def following() -> str:
            return str(await anext(lines))

        with asyncio.Runner() as runner:  # whatever ends it, its end ends what waits for a line
            while True:
                try:
                    yield self._ask(lambda: runner.run(following()))
                except StopAsyncIteration:
                    return
                except ClientError as error:
                    raise ClsearchError(f"the log of {job} broke off: {error}") from error


def _client() -> type[Any]:
    """Ray's client, with a time limit: by itself it waits for ever."""
    kind = job_client()

    def request(self: Any, method: str, endpoint: str, **options: Any) -> Any:
        # Straight to whom was asked whether he asks for the token, and nowhere else.
        told = {"proxies": dict.fromkeys(("http", "https"), ""), "allow_redirects": False}
        return kind._do_request(self, method, endpoint, timeout=TIMEOUT * 6, **told, **options)

    return type("Client", (kind,), {"_do_request": request})


def _launched(details: Any) -> LaunchedJob | None:
    """A job as Ray describes it; None for one that is no search of ours."""
    about, told = details.metadata or {}, (details.runtime_env or {}).get("env_vars") or {}
    if not details.submission_id or not {"name", "out", "command"} <= about.keys():
        return None
    reason = ""
    if details.driver_exit_code == _NOT_FOUND:
        reason = ABSENT
    elif details.driver_exit_code is None and details.status.value == "FAILED":
        reason = " ".join(str(details.message or "").split())
    return LaunchedJob(
        details.submission_id,
        details.status.value,
        about["name"],
        about["out"],
        about["command"],
        str(told.get(CONFIG, "")),
        (details.start_time or 0) / 1000,
        details.end_time and details.end_time / 1000,
        details.driver_exit_code,
        reason,
    )


def _refused(address: str) -> InputError:
    step = f"It refuses the token of {local.TOKEN} or ~/.ray/auth_token."
    return InputError("address", address, "a cluster whose token is known here", step)


def _dashboard(address: str, token: dict[str, str | None]) -> str:
    """Where the dashboard of the cluster at `auto` or HOST:PORT is. Raises `InputError`."""
    try:
        found = find(address)
        if not local.open_cluster() and not asks_for_token(found):
            raise not_asked(address)
        with authenticated(token), stderr_closed():
            client = raylet.GcsClient(address=found)  # type: ignore[attr-defined]
            said = client.internal_kv_get(
                ray_constants.DASHBOARD_ADDRESS.encode(),
                ray_constants.KV_NAMESPACE_DASHBOARD,
                timeout=TIMEOUT,
            )
    except ray.exceptions.AuthenticationError as error:
        raise _refused(address) from error
    except _FAILURES as error:
        raise unreached(address, error, SERVERS) from error
    if not said:
        how = "`ray start --head --include-dashboard=true`, with ray[default] installed"
        step = f"It has no dashboard. Start its head by {how}."
        raise InputError("address", address, "a cluster with a job server", step)
    shown = str(said.decode())
    if is_loopback(shown.rpartition(":")[0]) and not is_here(found):
        step = f"Its dashboard is on its head's loopback, out of reach from here. {TUNNEL}"
        raise InputError("address", address, "http://HOST:PORT of its dashboard", step)
    return f"http://{shown}"
