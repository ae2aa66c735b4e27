"""A search as a job of a cluster: launched from here, followed from anywhere."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from clsearch.addresses import database_of
from clsearch.config import Config, parse_config
from clsearch.errors import MISSING, ClsearchError, InputError
from clsearch.messages import command, duration, printable, say
from clsearch.search.reach import SERVERS, check_server
from clsearch.yaml_reader import parse_yaml

if TYPE_CHECKING:
    from clsearch.driver import Options
    from clsearch.search.ray_jobs import JobServer, LaunchedJob

JOB = re.compile(r"clsearch-[A-Za-z0-9][A-Za-z0-9._-]{0,63}-[0-9a-f]{6}")
"""What the id of a launched search looks like. `./` before it makes it a folder's name."""

LINES = 5
"""The last lines of a search that its status shows."""


def is_job(name: str, address: str | None) -> bool:
    """Whether a command is about a launched search, not about a folder of this machine: by what
    the name looks like alone, whatever lies here. Raises `InputError` for one without its cluster.
    """
    if JOB.fullmatch(name) is None:
        return False
    if address is None:
        allowed = f"that of the cluster {name} was launched on; ./{name} would be a folder here"
        raise InputError("address", MISSING, allowed)
    return True


def launch(config: Config, out: Path, options: Options, console: Console) -> None:
    """Has the cluster at `options.address` search a config, and prints the job's id and how to
    follow it.

    `out`, and the folders that the config and the options name, are the cluster's. Raises
    `InputError` before anything is submitted.
    """
    config = _checked(config, str(out), options)
    _submit(_server(options.address), config, str(out), console)


def resume(name: str, options: Options, console: Console) -> None:
    """Launches a search that has ended once more, in the same folder: it trains what is missing.

    Raises `InputError` for one that is at work.
    """
    server = _server(options.address)
    job = _known(server, name)
    if not job.over:
        step = f"It is at work. {_command('stop', name, server)} stops it."
        raise InputError("JOB", name, "a search that has ended", step)
    try:
        told = dict(parse_yaml(job.config.encode(), name, "JOB"))
    except (InputError, ValueError, TypeError) as error:
        step = f"Its config cannot be read. Launch it again, with --out {job.out}."
        raise InputError("JOB", name, "a search that clsearch launched", step) from error
    _submit(server, _checked(parse_config(told), job.out, options), job.out, console)


def _checked(config: Config, out: str, options: Options) -> Config:
    """The config with the options, as far as it can be checked without the cluster's data. Raises
    `InputError`, also for a folder that is not named from the root, or from a home, on, and for a
    database that is not named from the root on."""
    from clsearch.system import check_without_data

    config = options.apply(config)
    check_without_data(config)
    scenario = config.scenario.options
    root = "scenario.root" if options.data is None else "data"
    places = {"out": out, root: scenario.get("root"), "scenario.cache": scenario.get("cache")}
    for field, place in places.items():
        if place and not str(place).startswith("/" if field == "out" else ("/", "~/")):
            raise InputError(field, place, "an absolute path, of a folder on the cluster")
    uri = config.tracking.uri or ""
    if (database := database_of(uri)) and not database.is_absolute():
        raise InputError("tracking.uri", uri, "an absolute path, of a file on the cluster")
    if ".." in PurePosixPath(out).parts:  # what that is there, only the cluster knows
        raise InputError("out", out, "an absolute path without `..`")
    return config


def _submit(server: JobServer, config: Config, out: str, console: Console) -> None:
    """Submits a search; prints its id, and how to follow it. Raises `InputError` where another one
    is at work in the same folder."""
    for job in server.jobs().values():
        if not job.over and _place(job.out) == _place(out):
            step = f"{job.id} is at work in it."
            raise InputError("out", out, "a folder that no other search is writing to", step)
    text = yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False)
    name = f"clsearch-{config.name}-{secrets.token_hex(3)}"
    try:
        server.submit(name, config.name, out, text)
    except InputError:
        raise
    except ClsearchError as error:
        asked = _command("status", name, server)
        raise ClsearchError(f"{error} It may be at work all the same. To see: {asked}") from error
    say(console, name)
    verbs = {"How far it is": "status", "What it says": "logs", "Stop it": "stop"}
    for what, verb in verbs.items():
        say(console, f"{what + ':':20}{_command(verb, name, server)}")


def _place(out: str) -> PurePosixPath:
    """The folder; two slashes in front are one."""
    return PurePosixPath("/" + out.lstrip("/"))


def print_status(name: str, address: str | None, console: Console) -> None:
    """Prints whether a launched search is at work or how it ended, and the last it said."""
    server = _server(address)
    job = _known(server, name)
    say(console, f"{name}: {_state(job)}")
    say(console, f"{job.name} in {job.out} on the cluster: {job.command}")
    for line in _said(server.log(name))[-LINES:]:
        say(console, f"  {line}")
    _say_how_to_go_on(job, server, console)


def print_log(name: str, address: str, follow: bool, console: Console) -> None:
    """Prints what a launched search has said; with `follow`, goes on until it ends."""
    server = _server(address)
    _known(server, name)
    parts = server.follow(name) if follow else [server.log(name)]
    for part in parts:
        console.out(printable(part), end="", highlight=False)


def stop(name: str, address: str, console: Console) -> None:
    """Stops a launched search as Ctrl-C does, and waits for its end. Raises `ClsearchError` where
    it does not come."""
    server = _server(address)
    from clsearch.search.ray_jobs import STOP_WITHIN  # with Ray

    job = _known(server, name)
    if job.over:
        say(console, f"{name} is not at work: {_state(job)}")
        return
    server.stop(name)
    end = time.monotonic() + STOP_WITHIN + 30
    while not (job := _known(server, name)).over:
        if time.monotonic() > end:
            raise ClsearchError(f"{name} was told to stop and is still at work in {job.out}")
        time.sleep(0.5)
    say(console, f"{name} {_state(job)}. Finished trials are kept in {job.out}.")
    _say_how_to_go_on(job, server, console)


def _say_how_to_go_on(job: LaunchedJob, server: JobServer, console: Console) -> None:
    """Nothing of one that is at work or has found all; one that was refused has a config that the
    same search would be refused with again."""
    if job.code == InputError.exit_code:
        step = f"Mend what it says, and launch the config again, with --out {job.out}. "
        say(console, f"{step}If the config is right: {_command('resume', job.id, server)}")
    elif job.status in ("STOPPED", "FAILED"):
        say(console, f"Go on with: {_command('resume', job.id, server)}")


def _server(address: str | None) -> JobServer:
    """The job server of the cluster that the command line names. Raises `InputError`."""
    if address is None:
        raise InputError("address", MISSING, SERVERS)
    check_server(address)  # before Ray is imported
    from clsearch.search.ray_jobs import JobServer

    return JobServer(address)


def _known(server: JobServer, name: str) -> LaunchedJob:
    """A launched search by its id. Raises `InputError` that lists those there are."""
    jobs = server.jobs()
    if name not in jobs:
        known = ", ".join(jobs) or "none: nothing was launched on this cluster since it started"
        raise InputError("JOB", name, f"the id of a search launched there ({known})")
    return jobs[name]


def _command(verb: str, name: str, server: JobServer) -> str:
    return command(verb, name, "--address", server.address)


ENDS: Mapping[int, str] = {
    InputError.exit_code: "was refused",
    130: "was interrupted",
    137: "was killed",
}
"""How a search ended that did not just fail, by its exit code."""


def _state(job: LaunchedJob) -> str:
    """Whether a search is at work, or how it ended and when, in words."""
    spent = duration((job.ended or time.time()) - job.started)
    if not job.over:
        return f"{'at work' if job.status == 'RUNNING' else 'about to start'} for {spent}"
    if job.status == "SUCCEEDED":
        return f"finished after {spent}"
    if job.status == "STOPPED":
        return f"was stopped after {spent}"
    if job.reason:
        return f"failed after {spent}: {job.reason}"
    how = ENDS.get(job.code or 0, "failed")
    return f"{how} after {spent} (exit code {job.code})"


def _said(log: str) -> list[str]:
    """The lines of a log that the search itself has said."""
    _, _, own = log.partition("\nRunning entrypoint ")
    return [line for line in own.splitlines()[1:] if line.strip()]
