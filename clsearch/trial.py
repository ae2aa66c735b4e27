"""One pack, start to records. Knows neither Ray nor MLflow."""

from __future__ import annotations

import gc
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clsearch.config import Config
from clsearch.errors import DeviceLostError, StoreError
from clsearch.methods.base import ChainState, Context, Start
from clsearch.models.base import Params
from clsearch.protocols import FineTuneJob, Job
from clsearch.pruning.activity import mean_activity
from clsearch.pruning.scan import threshold_scan
from clsearch.records import TrialRecord
from clsearch.redaction import redacted
from clsearch.rng import generator
from clsearch.scenarios.base import TaskData
from clsearch.store import Store, TrainedModel, read_record, write_record
from clsearch.system import System, build_system
from clsearch.training.batch import PackData
from clsearch.training.loop import Trained, train_pack
from clsearch.training.step import Objective


def context_of(config: Config, seed: int, parts: Sequence[TaskData], shared_head: bool) -> Context:
    """What the method of a chain knows at a task. `parts` ends with the current task.

    Randomness is named by experiment, seed, task and stream: all methods and all trials share it.
    """
    task = parts[-1].task

    def stream(name: str) -> torch.Generator:
        return generator(config.name, seed, task.number, name)

    return Context(task, tuple(p.task for p in parts), shared_head, stream)


def start_on(start: Start, device: torch.device) -> Start:
    """A start's tensors on a device."""
    return replace(
        start,
        params=on_device(start.params, device),
        state=on_device(start.state, device),
        trainable=on_device(start.trainable, device),
        gates=on_device(start.gates, device),
        statistics=on_device(start.statistics, device),
    )


def on_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Named tensors on a device."""
    return {name: value.to(device) for name, value in tensors.items()}


def device_name(device: torch.device) -> str:
    """`cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


@dataclass(frozen=True)
class Bench:
    """Everything a pack needs beside its hyperparameters, on its device."""

    config: Config
    system: System
    context: Context
    start: Start
    regularizer_state: dict[str, Tensor]
    data: PackData
    device: torch.device

    @classmethod
    def set_up(
        cls,
        config: Config,
        job: Job,
        parts: Sequence[TaskData],
        parent: ChainState | None,
        device: torch.device,
    ) -> Bench:
        """Builds the method and its start. Raises `DepletedError` where nothing can be learned."""
        context = context_of(config, job.chain.seed, parts, job.shared_head)
        built = build_system(config, job.method, parts[-1].task.shape)
        system, start = built.begin(parent, context)
        start = start_on(start, device)
        regularizer_state = on_device(parent.regularizer_state if parent else {}, device)
        return cls(
            config, system, context, start, regularizer_state, PackData.of(parts, device), device
        )


SetUp = Callable[
    [Config, Job, Sequence[TaskData], ChainState | None, torch.device],
    Bench,
]
"""What a pack is trained on, for a job."""


def run_pack(
    config: Config,
    job: Job,
    parts: Sequence[TaskData],
    parent: ChainState | None,
    store: Store,
    device: torch.device,
    set_up: SetUp = Bench.set_up,
) -> Iterator[TrialRecord]:
    """Trains the members of a job; each finished trial is in the journal when it is yielded.

    Members that are in the journal already (their pack's worker died after them) are yielded and
    not trained again. A member that fails ends FAILED with the reason. Where the pack as a whole
    raises, its members are trained one by one, so that only those at fault fail; where it did not
    fit into memory, in two halves, and these in halves again. Raises `StoreError` when a record
    cannot be written: that is no trial's fault.
    """
    finished = {key: read_record(store, key) for key in job.keys}
    yield from filter(None, finished.values())
    rest = _some(job, [i for i, key in enumerate(job.keys) if finished[key] is None])
    if not rest.keys:
        return
    try:
        yield from _members(set_up(config, rest, parts, parent, device), rest, store)
        return
    except StoreError:
        raise
    except Exception as error:
        if device_lost(error):
            raise DeviceLostError(f"{type(error).__name__}: {error}") from error
        if len(rest.keys) == 1:
            yield _failed(rest, error, store)
            return
        size = math.ceil(len(rest.keys) / 2) if out_of_memory(error) else 1
    # What the pack held hangs on its error, and is free only now.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    for i in range(0, len(rest.keys), size):
        part = _some(rest, range(i, min(i + size, len(rest.keys))))
        yield from run_pack(config, part, parts, parent, store, device, set_up)


def _some(job: Job, members: Sequence[int]) -> Job:
    """A job with some of its members."""
    return replace(
        job,
        keys=tuple(job.keys[i] for i in members),
        hypers=tuple(job.hypers[i] for i in members),
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, a GPU's or the machine's: torch's allocator on a CPU says so in words
    alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in said or "CUDA error: out of memory" in said
    )


def device_lost(error: BaseException) -> bool:
    """Whether the GPU has failed, or a kernel on it: CUDA then refuses all that the process asks
    for from there on."""
    if out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and "CUDA error" in str(error)
    )


def _members(bench: Bench, job: Job, store: Store) -> Iterator[TrialRecord]:
    """Trains a pack and writes each member's record as it ends."""
    system = bench.system
    objective = Objective(
        system.backbone,
        system.method,
        system.regularizers,
        bench.start,
        bench.data.readout,
        bench.regularizer_state,
    )
    begun, clock = time.time(), time.perf_counter()
    stream: Callable[[str], torch.Generator] = bench.context.generator
    for trained in train_pack(objective, job.hypers, bench.data, bench.config.training, stream):
        record, state = _record(bench, job, trained)
        took = time.perf_counter() - clock
        record = replace(record, duration=took / len(job.keys), started=begun)
        write_record(store, record, state)
        yield record


def _blank(job: Job, member: int) -> TrialRecord:
    return TrialRecord(
        trial_key=job.keys[member],
        method=job.chain.method,
        seed=job.chain.seed,
        task=job.task,
        hyperparameters=dict(job.hypers[member]),
        status="FAILED",
        host=platform.node(),
        pack_size=len(job.keys),
        fine_tuned=job.trial if isinstance(job, FineTuneJob) else "",
    )


def _failed(job: Job, error: Exception, store: Store) -> TrialRecord:
    """The record of the only member of a job, which raised."""
    lost = out_of_memory(error)
    reason = redacted(f"{type(error).__name__}: {error}")
    record = replace(_blank(job, 0), reason=reason, started=time.time(), lost=lost)
    write_record(store, record, None)
    return record


def _record(bench: Bench, job: Job, trained: Trained) -> tuple[TrialRecord, TrainedModel | None]:
    """The record of a trained member, its threshold scan included, and what is stored beside it."""
    backbone, method, start = bench.system.backbone, bench.system.method, bench.start
    layers = backbone.unit_layers
    record = replace(
        _blank(job, trained.member),
        reason=trained.reason,
        layers=tuple(u.name for u in layers),
        units=tuple(u.units for u in layers),
        free=tuple(0 for _ in layers),
        curve=tuple(trained.curve),
        epochs=len(trained.curve),
        device=device_name(bench.device),
    )
    if trained.params is None:
        return record, None
    params: Params = {**start.params, **trained.params}
    size = backbone.evaluation_batch
    activity = mean_activity(backbone, params, bench.data.train, start.gates, size)
    scan = threshold_scan(
        backbone,
        params,
        bench.data.readout,
        start.gates,
        method.prunable(start.state),
        activity,
        bench.data.validation,
        bench.config.selection.thresholds,
        size,
    )
    record = replace(
        record,
        status="COMPLETE",
        validation_accuracy=trained.accuracy,
        drift=method.drift(params, start.state),
        scan=scan,
    )
    return record, TrainedModel(params, dict(activity), trained.running)
