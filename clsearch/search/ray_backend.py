"""The searcher on Ray: what starts it, what workers do, and the way of the data to them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import os
import shutil
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from clsearch.config import Config, ResourcesConfig
from clsearch.errors import ClsearchError, InputError, StoreError
from clsearch.files import cores
from clsearch.protocols import ConsolidateJob, Ended, Job, LayerScanJob, Shown
from clsearch.records import TrialRecord
from clsearch.redaction import redacted
from clsearch.scenarios.base import TaskData
from clsearch.search import local
from clsearch.search._ray import (
    Node,
    authenticated,
    leave,
    own_signals,
    ray,
    ray_constants,
    services,
    stuck,
    tune,
)
from clsearch.search.head import HeadWatch
from clsearch.search.probe import asks_for_token, find
from clsearch.search.reach import not_asked, unreached
from clsearch.search.shipping import packed, place_here, shown_here, this_node, unpacked
from clsearch.search.slots import slots_of
from clsearch.search.tune_run import TuneRun, Work
from clsearch.store import Store


def _quiet() -> None:
    for name in ("ray", "ray.tune", "ray.data", "ray._private"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Not for a while alone: Tune runs beside the search, and filters belong to the whole process.
    warnings.filterwarnings("ignore", module=r"ray(\.|$)")


class RaySearcher:
    """Runs packs on a local Ray, or on a running cluster given by its address.

    `address` None starts a local Ray with `resources.workers` one-core workers; `auto` or
    HOST:PORT joins a cluster. Raises `InputError` for an address that does not answer or a device
    that is not there.
    """

    def __init__(self, resources: ResourcesConfig, address: str | None = None) -> None:
        self.address, self._folder = address, ""
        self._refs: dict[str, Any] = {}
        self._run: TuneRun | None = None
        self._watch: HeadWatch | None = None
        if stuck():
            raise ClsearchError("the Ray before did not end. Go on in a new process.")
        _quiet()
        local.sweep()
        try:
            if address is None:
                self._start_local(resources)
            else:
                _join(address)
            slots = slots_of(resources)
        except BaseException:
            self.close()
            raise
        self.device, self.memory, self.workers = slots.device, slots.memory, slots.workers
        self.bundle = slots.bundle

    def _start_local(self, resources: ResourcesConfig) -> None:
        # A folder of its own: Ray's default one belongs to whoever came first on this machine, and
        # is never emptied.
        self._folder = local.new_folder()
        try:
            with authenticated(local.new_token(self._folder)), _alone(), own_signals(starting=True):
                ray.init(
                    address="local",
                    num_cpus=resources.workers or cores(),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    configure_logging=True,
                    _system_config=dict(_UNTOLD),  # Ray writes into it
                    _temp_dir=f"{self._folder}/{local.RAY}",
                )
        except Exception as error:  # Ray raises a bare one where the machine is too busy
            said = " ".join(str(error).split())
            raise ClsearchError(f"Ray does not start: {said}. See `clsearch doctor`.") from error

    def begin(self, config: Config, store: Store) -> None:
        """See `clsearch.protocols.Searcher`."""
        self.end()
        trainable = tune.with_parameters(
            _train, config=config, store=store, device=self.device, origin=this_node()
        )
        bundles = tune.PlacementGroupFactory([self.bundle])
        self._run = TuneRun(tune.with_resources(trainable, bundles), self.workers)
        self._watch = HeadWatch(self._run.events.put)

    def submit(self, jobs: Sequence[Job], data: Mapping[int, TaskData]) -> None:
        """Takes jobs, which Tune is given as workers get free."""
        self._running.submit([self._work(job, data) for job in jobs])

    def _work(self, job: Job, data: Mapping[int, TaskData]) -> Work:
        """A job without tensors: Tune's thread pickles it, and torch, which then takes down the
        modes it traces a program with, has one stack of them for all threads."""
        shared = self._shared(job, data)
        if isinstance(job, ConsolidateJob):
            light = replace(job, tasks=(), shown=Shown())
            return Work(light, shared, ray.put((job.tasks, job.shown)))
        return Work(job, shared)

    def wait(self) -> TrialRecord | Ended:
        """See `clsearch.protocols.Searcher`."""
        return self._running.wait()

    @property
    def _running(self) -> TuneRun:
        if self._run is None:
            raise RuntimeError("no search has begun")
        return self._run

    def end(self) -> None:
        """Ends a search, whatever workers do."""
        if self._watch is not None:
            self._watch.end()
            self._watch = None
        if self._run is not None:
            self._run.end()
            self._run = None

    def _shared(self, job: Job, data: Mapping[int, TaskData]) -> dict[int, Any]:
        """References to the data of a job's tasks in Ray's shared memory, by number; what is put
        there stays as long as its task is at work."""
        at_work = {part.digest for part in data.values()}
        self._refs = {digest: ref for digest, ref in self._refs.items() if digest in at_work}
        for number in job.parts:
            part = data[number]
            if part.digest not in self._refs:
                self._refs[part.digest] = ray.put(packed(part))
        return {number: self._refs[data[number].digest] for number in job.parts}

    def try_out(self) -> str:
        """Runs one task on a worker; returns what it says of itself."""
        task = ray.remote(num_cpus=1)(lambda: f"a task ran in process {os.getpid()}")
        return str(ray.get(task.remote(), timeout=60))

    def close(self) -> None:
        """Stops a local Ray and deletes its folder, or leaves the cluster."""
        self.end()
        with own_signals(starting=False):
            leave()
            if self._folder:
                shutil.rmtree(self._folder, ignore_errors=True)


_UNTOLD = {"task_events_report_interval_ms": 0, "event_stats_print_interval_ms": 86_400_000}
"""A local Ray keeps no history of its tasks, 3 KB of each, and writes no page of its own statistics
into its logs every minute: nobody can ask it for these."""

_UNASKED = ("start_monitor", "start_log_monitor", "start_api_server")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A Ray that starts meanwhile listens on loopback alone, as it does by itself on macOS, and has
    no autoscaler, no forwarding of logs and no web server: here nothing asks them, and together
    they take five seconds of a core to start, and 280 MiB.

    On Linux, where they die with this process, its processes have a session of their own: a signal
    to all of a command, as `timeout` sends it, would else end them before the search that has to
    end well.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    popen = services.ConsolePopen
    if sys.platform.startswith("linux"):
        services.ConsolePopen = functools.partial(popen, start_new_session=True)
    methods = {name: getattr(Node, name) for name in _UNASKED}
    ray_constants.ENABLE_RAY_CLUSTER = False
    for name in methods:
        setattr(Node, name, lambda *args, **options: None)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, services.ConsolePopen = before, popen
        for name, method in methods.items():
            setattr(Node, name, method)


def _join(address: str) -> None:
    """Connects to a running cluster. Raises `InputError` where none answers, within seconds, and
    for a cluster without a token, which is not told ours, unless the user said that it may be one.
    """
    try:
        token, found = local.cluster_token(address), find(address)
        if not local.open_cluster() and not asks_for_token(found):
            raise not_asked(address)
        with authenticated(token), own_signals(starting=True):
            ray.init(address=found, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise unreached(address, error) from error


_WRITING = threading.Lock()


@functools.cache
def _close_journal_at_exit() -> None:
    """Once this process begins to exit, nothing more is written to the journal.

    Tune trains in a thread that goes on while the interpreter is taken down around it; what a
    trial then raises, or computes, is not its result. Exit waits for a write under way and takes
    the lock for good: the next one waits for the end of the process. Callbacks run last in, first
    out, and torch takes its operators down in that of `weakref.finalize`: it has to be in first.
    """
    weakref.finalize(Job, int)
    atexit.register(_WRITING.acquire)


class _WorkerStore(Store):
    """The store of a worker."""

    def write(self, kind: str, key: str, files: Mapping[str, bytes]) -> None:
        with _WRITING:
            super().write(kind, key, files)


def _train(
    setting: dict[str, Any],
    *,
    config: Config,
    store: Store,
    device: str,
    origin: str,
) -> None:
    """The trainable: one job, every record reported as it is finished. `origin`: the driver's
    node."""
    import torch

    from clsearch.jobs import run_job
    from clsearch.store import read_commit
    from clsearch.training.worker import end_with_python, prepare_worker
    from clsearch.trial import out_of_memory

    prepare_worker()
    end_with_python()
    _close_journal_at_exit()
    store = _WorkerStore(store.root)
    work: Work = setting["work"]
    job = work.job
    try:
        place = place_here(config, origin)
        parts = [unpacked(ray.get(work.data[number]), place) for number in job.parts]
        parent = None
        if job.parent is not None:
            commit = read_commit(store, job.parent)
            if commit is None:
                raise StoreError(f"the parent checkpoint {job.parent} is not in {store.root}")
            parent, _ = commit
        if isinstance(job, ConsolidateJob):
            tasks, shown = ray.get(work.rest)
            job = replace(job, tasks=tasks, shown=shown_here(shown, place))
        for record in run_job(config, job, parts, parent, store, torch.device(device)):
            tune.report({"record": json.dumps(record.to_json())})
        if isinstance(job, ConsolidateJob | LayerScanJob):
            tune.report({"kept": len(job.keys)})  # Tune prints a line where nothing is said
    except StoreError as error:
        tune.report({"store_error": str(error)})
    except InputError as error:
        said = error.field, error.value, error.allowed, error.step
        tune.report({"input_error": said})
    except Exception as error:
        if not isinstance(job, ConsolidateJob) or out_of_memory(error):
            raise  # a trial's own errors are in its record: this one is the worker's
        reason = redacted(f"{type(error).__name__}: {error}")
        tune.report({"failed": f"trial {job.keys[0]} cannot be consolidated: {reason}"})
