"""The searcher on Ray: what starts it, what workers do, and the way of the data to them."""

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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clsearch.config import Config, ResourcesConfig
from clsearch.data._stored import StoredImages
from clsearch.data.base import Samples
from clsearch.errors import ClsearchError, InputError, StoreError
from clsearch.files import cores
from clsearch.protocols import Ended, Job, LayerScanJob
from clsearch.records import TrialRecord
from clsearch.scenarios.base import Task, TaskData
from clsearch.search import local
from clsearch.search._ray import ray, ray_constants, raylet, tune
from clsearch.search.probe import probe
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
        _quiet()
        try:
            with local.own_signals():
                if address is None:
                    self._start_local(resources)
                else:
                    _join(address)
            self._look(resources)
        except BaseException:
            self.close()
            raise

    def _look(self, resources: ResourcesConfig) -> None:
        """What a pack takes, and how many of them fit at a time."""
        total = ray.cluster_resources()
        gpus = total.get("GPU", 0.0)
        if resources.device == "cuda" and not gpus:
            raise InputError("resources.device", "cuda", "cpu, or auto: Ray sees no GPU here")
        self.device = "cuda" if gpus and resources.device != "cpu" else "cpu"
        self.bundle, self.memory = {"CPU": 1.0}, None
        if self.device == "cuda":
            self.bundle["GPU"] = resources.gpus
            asked = ray.remote(num_cpus=1, num_gpus=resources.gpus)(_gpu_memory).remote()
            self.memory = int(ray.get(asked) * resources.gpus)
        self.workers = max(
            1, int(min(total.get(k, 0.0) / v + 1e-9 for k, v in self.bundle.items()))
        )

    def _start_local(self, resources: ResourcesConfig) -> None:
        # A folder of its own: Ray's default one belongs to whoever came first on this machine, and
        # is never emptied.
        local.sweep()
        self._folder = local.new_folder()
        try:
            with _authenticated(local.new_token(self._folder)), _on_loopback():
                ray.init(
                    address="local",
                    num_cpus=resources.workers or cores(),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    configure_logging=True,
                    _temp_dir=self._folder,
                )
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            said = " ".join(str(error).split())
            raise ClsearchError(f"Ray does not start: {said}. See `clsearch doctor`.") from error

    def begin(self, config: Config, store: Store) -> None:
        """See `clsearch.protocols.Searcher`."""
        self.end()
        trainable = tune.with_parameters(_train, config=config, store=store, device=self.device)
        bundles = tune.PlacementGroupFactory([self.bundle])
        self._run = TuneRun(tune.with_resources(trainable, bundles), self.workers)

    def submit(self, jobs: Sequence[Job], data: Mapping[int, TaskData]) -> None:
        """Takes jobs, which Tune is given as workers get free."""
        self._running.submit([Work(job, self._shared(job, data)) for job in jobs])

    def wait(self) -> TrialRecord | Ended:
        """See `clsearch.protocols.Searcher`."""
        return self._running.wait()

    @property
    def _running(self) -> TuneRun:
        if self._run is None:
            raise RuntimeError("no search has begun")
        return self._run

    @property
    def idle(self) -> bool:
        """Whether workers have nothing to do."""
        return self._running.idle

    def end(self) -> None:
        """Ends a search, whatever workers do."""
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
                self._refs[part.digest] = ray.put(_pack_data(part))
        return {number: self._refs[data[number].digest] for number in job.parts}

    def try_out(self) -> str:
        """Runs one task on a worker; returns what it says of itself."""
        task = ray.remote(num_cpus=1)(lambda: f"a task ran in process {os.getpid()}")
        return str(ray.get(task.remote(), timeout=60))

    def close(self) -> None:
        """Stops a local Ray and deletes its folder, or leaves the cluster."""
        self.end()
        ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


def _gpu_memory() -> int:
    """Bytes of the GPU that a worker is given."""
    import torch

    return int(torch.cuda.mem_get_info()[1])


@contextlib.contextmanager
def _authenticated(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Ray's processes that start meanwhile, and this one from now on, use this token.

    Ray remembers mode and token of the cluster that the process had before.
    """
    with local.environment(variables):
        raylet.Config.initialize("")  # type: ignore[attr-defined]
        raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]
        yield


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that starts meanwhile listens on loopback alone, as it does by itself on macOS."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _join(address: str) -> None:
    """Connects to a running cluster. Raises `InputError` where none answers, within seconds, and
    for a cluster without a token, unless the user said that it may be one."""
    allowed = "auto, or HOST:PORT of a running Ray cluster"
    try:
        if address != "auto":
            probe(address)
        with _authenticated(local.cluster_token(address)):
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


PackedData = dict[str, Any]


def _pack_data(part: TaskData) -> PackedData:
    """A task's data as numpy arrays, which Ray shares between workers without copies; images in a
    file stay there, and every worker reads its batches."""
    return {
        "task": part.task,
        "digest": part.digest,
        "images": [
            i if isinstance(i, StoredImages) else i.numpy()
            for i in (part.train.inputs, part.validation.inputs)
        ],
        "labels": [part.train.labels.numpy(), part.validation.labels.numpy()],
        "numbers": [
            None if i is None else i.numpy() for i in (part.train.image, part.validation.image)
        ],
    }


def _unpack_data(packed: PackedData) -> TaskData:
    """Tensors over Ray's shared memory: read-only, and only ever read.

    Raises `StoreError` where a file of images is not on this host.
    """
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        images = [
            i.checked() if isinstance(i, StoredImages) else torch.from_numpy(i)
            for i in packed["images"]
        ]
        labels = [torch.from_numpy(a) for a in packed["labels"]]
        numbers = [None if a is None else torch.from_numpy(a) for a in packed["numbers"]]
    task: Task = packed["task"]
    train, validation = map(Samples, images, labels, numbers)
    return TaskData(task, train, validation, packed["digest"])


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


class WorkerStore(Store):
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
) -> None:
    """The trainable: one job, every record reported as it is finished."""
    import torch

    from clsearch.jobs import run_job
    from clsearch.store import read_commit
    from clsearch.training.worker import prepare_worker

    prepare_worker()
    _close_journal_at_exit()
    store = WorkerStore(store.root)
    work: Work = setting["work"]
    job = work.job
    try:
        parts = [_unpack_data(ray.get(work.data[number])) for number in job.parts]
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
