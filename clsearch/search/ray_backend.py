"""The searcher on Ray Tune.

One Tune run a task holds the packs of all chains; a pack is one Tune trial. Tune schedules,
retries packs whose worker died, and forgets: its own state goes to a temporary folder, the journal
is ours.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import os
import shutil
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from clsearch.config import Config, ResourcesConfig
from clsearch.errors import ClsearchError, InputError, StoreError
from clsearch.files import cores
from clsearch.protocols import Job, LayerScanJob
from clsearch.records import TrialRecord
from clsearch.redaction import redacted
from clsearch.scenarios.base import TaskData
from clsearch.search import local
from clsearch.search._ray import Node, authenticated, ray, ray_constants, tune
from clsearch.search.probe import probe
from clsearch.search.shipping import packed, place_here, this_node, unpacked
from clsearch.search.slots import slots_of
from clsearch.store import Store

RETRIES, ROUNDS = 1, 3
"""How often Tune starts a pack again when its worker dies, and in how many Tune runs it may.

Tune gives a pack up at once whose worker dies while it is handed from one pack to the next: that
is no fault of the pack, and it has another round.
"""


def _quiet() -> None:
    for name in ("ray", "ray.tune", "ray.data", "ray._private"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class RaySearcher:
    """Runs packs on a local Ray, or on a running cluster given by its address.

    `address` None starts a local Ray with `resources.workers` one-core workers; `auto` or
    HOST:PORT joins a cluster. Raises `InputError` for an address that does not answer or a device
    that is not there.
    """

    def __init__(self, resources: ResourcesConfig, address: str | None = None) -> None:
        self.address, self._folder = address, ""
        self._refs: dict[str, Any] = {}
        _quiet()
        try:
            with local.own_signals():
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
        local.sweep()
        self._folder = local.new_folder()
        try:
            with authenticated(local.new_token(self._folder)), _alone():
                ray.init(
                    address="local",
                    num_cpus=resources.workers or cores(),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    configure_logging=True,
                    _temp_dir=f"{self._folder}/{local.RAY}",
                )
        except Exception as error:  # Ray raises a bare one where the machine is too busy
            said = " ".join(str(error).split())
            raise ClsearchError(f"Ray does not start: {said}. See `clsearch doctor`.") from error

    def run(
        self,
        config: Config,
        jobs: Sequence[Job],
        data: Mapping[int, TaskData],
        store: Store,
        on_record: Callable[[TrialRecord], None],
    ) -> Mapping[str, str]:
        """Trains every job in one Tune run, and those lost to their workers in another; see
        `clsearch.protocols.Searcher`."""
        left, relay = list(jobs), _Relay(on_record)
        for _ in range(ROUNDS):
            relay.lost.clear()
            self._round(config, left, data, store, relay)
            left = [job for job in left if not relay.lost.keys().isdisjoint(job.keys)]
            if not left:
                break
        return relay.lost

    def _round(
        self,
        config: Config,
        jobs: Sequence[Job],
        data: Mapping[int, TaskData],
        store: Store,
        relay: _Relay,
    ) -> None:
        """One Tune run. Raises `ClsearchError` where it cannot go on."""
        folder = local.new_folder()
        trainable = tune.with_parameters(
            _train,
            config=config,
            store=store,
            device=self.device,
            data=self._shared(data),
            origin=this_node(),
        )
        tuner = tune.Tuner(
            tune.with_resources(trainable, tune.PlacementGroupFactory([self.bundle])),
            param_space={"job": tune.grid_search(list(jobs))},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="task",
                storage_path=folder,
                callbacks=[relay],
                verbose=0,
                stop=relay.should_stop,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tuner.fit()
        except (tune.TuneError, ray.exceptions.RayError, OSError) as error:
            said = " ".join(str(error).split())
            raise ClsearchError(f"Ray has stopped in task {jobs[0].task}: {said}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if relay.error:
            raise relay.error

    def _shared(self, data: Mapping[int, TaskData]) -> dict[int, Any]:
        """The tasks' data in Ray's shared memory, each put there once; references by number."""
        refs = {d: self._refs.get(d) for d in (part.digest for part in data.values())}
        self._refs = {
            part.digest: refs[part.digest] or ray.put(packed(part)) for part in data.values()
        }
        return {number: self._refs[part.digest] for number, part in data.items()}

    def try_out(self) -> str:
        """Runs one task on a worker; returns what it says of itself."""
        task = ray.remote(num_cpus=1)(lambda: f"a task ran in process {os.getpid()}")
        return str(ray.get(task.remote(), timeout=60))

    def close(self) -> None:
        """Stops a local Ray and deletes its folder, or leaves the cluster."""
        ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


_UNASKED = ("start_monitor", "start_log_monitor", "start_api_server")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A Ray that starts meanwhile listens on loopback alone, as it does by itself on macOS, and has
    no autoscaler, no forwarding of logs and no web server: here nothing asks them, and together
    they take five seconds of a core to start, and 280 MiB.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    methods = {name: getattr(Node, name) for name in _UNASKED}
    ray_constants.ENABLE_RAY_CLUSTER = False
    for name in methods:
        setattr(Node, name, lambda *args, **options: None)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        for name, method in methods.items():
            setattr(Node, name, method)


def _join(address: str) -> None:
    """Connects to a running cluster. Raises `InputError` where none answers, within seconds, and
    for a cluster without a token, unless the user said that it may be one."""
    allowed = "auto, or HOST:PORT of a running Ray cluster"
    try:
        if address != "auto":
            probe(address)
        with authenticated(local.cluster_token(address)):
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
            mode = ray.get(ray.remote(num_cpus=0)(_mode).remote(), timeout=60)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        said = " ".join(str(error).split())
        raise InputError("address", address, allowed, f"The reason: {said}") from error
    if mode != "token" and not local.open_cluster():
        allowed, step = "a cluster that asks for a token", "It was started without. "
        raise InputError("address", address, allowed, step + local.UNPROTECTED)


def _mode() -> str:
    """How Ray's processes on a node know each other: `token` or `disabled`."""
    return os.environ.get(local.MODE, "disabled").lower()


class _Relay(tune.Callback):  # type: ignore[misc]
    """Hands what workers report to the driver. Never raises into Tune's loop."""

    def __init__(self, on_record: Callable[[TrialRecord], None]) -> None:
        self.on_record, self.lost = on_record, dict[str, str]()
        self.error: ClsearchError | None = None

    def __reduce__(self) -> tuple[type[_Relay], tuple[Any, ...]]:
        """Tune pickles its settings for a restore that is never used: a relay to nobody."""
        return _Relay, (print,)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        try:
            if "store_error" in result:
                self.error = StoreError(result["store_error"])
            elif "record" in result:
                self.on_record(TrialRecord.from_json(json.loads(result["record"])))
        except ClsearchError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - an exception here would mark the trial ERROR
            self.error = ClsearchError(f"progress could not be reported: {error!r}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        text = str(trial.get_error() or "")
        reason = "its worker died again and again"
        if "RayTaskError" in text:  # it lived, and raised outside of any trial
            reason = redacted(f"its worker cannot train: {text.strip().splitlines()[-1]}")
        self.lost |= dict.fromkeys(trial.config["job"].keys, reason)

    def should_stop(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Tune asks after every report: once records cannot be written, nothing goes on."""
        return self.error is not None


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
    data: dict[int, Any],
    origin: str,
) -> None:
    """The trainable: one job, every record reported as it is finished. `origin`: the driver's
    node."""
    import torch

    from clsearch.jobs import run_job
    from clsearch.store import read_commit
    from clsearch.training.worker import prepare_worker

    prepare_worker()
    _close_journal_at_exit()
    store = _WorkerStore(store.root)
    job: Job = setting["job"]
    try:
        place = place_here(config, origin)
        parts = [unpacked(ray.get(data[number]), place) for number in job.parts]
        parent = None
        if job.parent is not None:
            commit = read_commit(store, job.parent)
            if commit is None:
                raise StoreError(f"the parent checkpoint {job.parent} is not in {store.root}")
            parent, _ = commit
        for record in run_job(config, job, parts, parent, store, torch.device(device)):
            tune.report({"record": json.dumps(record.to_json())})
        if isinstance(job, LayerScanJob):
            tune.report({"pruned": len(job.keys)})  # Tune prints a line where nothing is said
    except StoreError as error:
        tune.report({"store_error": str(error)})
