"""What a worker does with a job: train a pack, prune trials layer by layer, fine-tune one, or
consolidate it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from clsearch.config import Config
from clsearch.consolidation import consolidate_trial
from clsearch.methods.base import ChainState
from clsearch.protocols import ConsolidateJob, FineTuneJob, Job, LayerScanJob
from clsearch.pruning.layers import layer_thresholds
from clsearch.records import LayerPruning, TrialRecord
from clsearch.scenarios.base import TaskData
from clsearch.store import Store, read_record, read_trained, write_pruning
from clsearch.trial import Bench, on_device, run_pack, start_on


def run_job(
    config: Config,
    job: Job,
    parts: Sequence[TaskData],
    parent: ChainState | None,
    store: Store,
    device: torch.device,
) -> Iterator[TrialRecord]:
    """Does a job and yields the trials it finished; what it finds is stored when it is yielded.

    Raises `StoreError` when that cannot be done, `DamagedError` for a trial to go on from, and
    `InputError` where options turn out not to fit the data.
    """
    if isinstance(job, LayerScanJob):
        _prune_by_layer(Bench.set_up(config, job, parts, parent, device), job, store)
    elif isinstance(job, ConsolidateJob):
        consolidate_trial(config, job, parts, parent, store)
    elif isinstance(job, FineTuneJob):
        set_up = partial(_fine_tuning, store)
        yield from run_pack(config, job, parts, parent, store, device, set_up)
    else:
        yield from run_pack(config, job, parts, parent, store, device)


def _prune_by_layer(bench: Bench, job: LayerScanJob, store: Store) -> None:
    """Looks for each trial's own threshold of every layer; a trial stays at the one found for the
    network where another order of sums tips a sample, and it falls below the floor."""
    backbone, method, start = bench.system.backbone, bench.system.method, bench.start
    for key, place, theta in zip(job.keys, job.places, job.starts, strict=True):
        trained = read_trained(store, key)
        pruning = layer_thresholds(
            backbone,
            on_device(trained.params, bench.device),
            bench.data.readout,
            start.gates,
            method.prunable(start.state),
            trained.activity,
            bench.data.validation,
            theta,
            job.floor,
            bench.config.selection.thresholds,
            backbone.evaluation_batch,
        )
        if pruning is None:
            record = read_record(store, key)
            (point,) = [p for p in record.scan if p.threshold == theta] if record else []
            pruning = LayerPruning((theta,) * len(point.free), point.accuracy, point.free)
        write_pruning(store, place, pruning)


def _fine_tuning(
    store: Store,
    config: Config,
    job: Job,
    parts: Sequence[TaskData],
    parent: ChainState | None,
    device: torch.device,
) -> Bench:
    """What is left of a trial after pruning, to be trained on (CLNP §2.2, §3.2)."""
    assert isinstance(job, FineTuneJob)
    bench, number = Bench.set_up(config, job, parts, parent, device), job.round
    trained, context = read_trained(store, job.trial), bench.context
    params = on_device(trained.params, device)
    method = bench.system.method
    start = method.pruned(bench.start, params, trained.activity, job.thresholds, context)

    def stream(name: str) -> torch.Generator:
        return context.generator(f"fine-tune-{number}-{name}")

    training = config.training.model_copy(update={"epochs": job.epochs})
    return replace(
        bench,
        config=config.model_copy(update={"training": training}),
        context=replace(context, generator=stream),
        start=start_on(start, device),
    )
