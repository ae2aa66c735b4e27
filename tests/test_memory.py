"""Packs that do not fit into memory, on a processor and, where there is one, on a GPU; and what a
process gives back of it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers import tiny_config, tiny_tasks
from torch import Tensor

from clsearch.config import Config
from clsearch.errors import DeviceLostError
from clsearch.memory import free_memory, machine_memory
from clsearch.methods.base import State
from clsearch.methods.finetune import Finetune
from clsearch.protocols import Job
from clsearch.records import Chain, TrialRecord
from clsearch.search.plan import pack_size
from clsearch.store import Store, TrainedModel, read_trained
from clsearch.trial import Bench, run_pack

CPU = torch.device("cpu")
RATES = [0.01, 0.02, 0.03, 0.04, 0.05]


def job(rates: list[float]) -> Job:
    keys = tuple(f"rate-{rate:g}" for rate in rates)
    place = (Chain("finetune", 0), 0, 1, None, (1,), True)
    return Job(*place, keys, tuple({"lr": rate} for rate in rates))


class Greedy(Finetune):
    """Asks for a petabyte wherever more than `fits` members are trained together."""

    name: ClassVar[str] = "greedy"
    fits: ClassVar[int] = 2

    def running(self, stack: Mapping[str, Tensor]) -> State:
        members = len(next(iter(stack.values())))
        torch.empty(1 << 50 if members > self.fits else 1)
        return {}

    def after_step(self, *parts: Any) -> None:
        """There only so that `running` is asked for."""


def greedy(config: Config, job: Job, *rest: Any) -> Bench:
    bench = Bench.set_up(config, job, *rest)
    method = Greedy(bench.system.method.options, bench.system.backbone)
    return replace(bench, system=replace(bench.system, method=method))


def trained(store: Store, rates: list[float], set_up: Any = Bench.set_up) -> list[TrialRecord]:
    parts = tiny_tasks(1, shared=True)
    found = run_pack(tiny_config(), job(rates), parts, None, store, CPU, set_up)
    return sorted(found, key=lambda record: record.trial_key)


def same(a: TrainedModel, b: TrainedModel) -> bool:
    return all(torch.equal(a.params[name], b.params[name]) for name in a.params)


def test_a_pack_that_does_not_fit_is_halved_and_every_member_is_what_it_would_be(
    tmp_path: Path,
) -> None:
    whole, halved = Store(str(tmp_path / "whole")), Store(str(tmp_path / "halved"))
    expected, found = trained(whole, RATES), trained(halved, RATES, greedy)
    assert [r.pack_size for r in expected] == [5] * 5
    assert [r.pack_size for r in found] == [2, 2, 1, 2, 2]  # 5 → 3 + 2, and 3 → 2 + 1
    for a, b in zip(expected, found, strict=True):
        assert (a.status, b.status) == ("COMPLETE", "COMPLETE")
        assert a.scan == b.scan
        assert same(read_trained(whole, a.trial_key), read_trained(halved, b.trial_key))


def test_what_had_finished_before_memory_ran_out_is_kept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (before,) = trained(store, RATES[1:2])
    found = trained(store, RATES, greedy)
    assert found[1] == before
    assert [r.pack_size for r in found] == [2, 1, 2, 2, 2]  # 4 were left


def test_a_single_trial_that_does_not_fit_is_lost_and_not_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Greedy, "fits", 0)
    found = trained(Store(str(tmp_path)), RATES[:2], greedy)
    assert [(r.status, r.lost) for r in found] == [("FAILED", True)] * 2
    assert all("memory" in r.reason for r in found)


def test_a_lost_gpu_is_no_trials_fault(tmp_path: Path) -> None:
    """CUDA then refuses all that its process asks for: nothing is blamed on a trial, or written."""
    for error in (
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"),
    ):

        def lost(*setting: Any, error: Exception = error) -> Bench:
            raise error

        store = Store(str(tmp_path))
        with pytest.raises(DeviceLostError, match="CUDA error"):
            trained(store, RATES[:2], lost)
        assert store.count("trials") == 0

    def full(*setting: Any) -> Bench:
        raise torch.AcceleratorError("CUDA error: out of memory")

    assert [r.lost for r in trained(store, RATES[:2], full)] == [True, True]


# A GPU's

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
WIDE: dict[str, Any] = {"model": {"name": "mlp", "hidden": [4000, 4000]}}


@cuda
def test_a_pack_that_a_gpu_has_no_room_for_is_halved(tmp_path: Path) -> None:
    """16 members of 16 million weights, five tensors each and what a step needs, are over 6 GB; the
    process is given 3."""
    config, device = tiny_config(**WIDE), torch.device("cuda")
    total = torch.cuda.mem_get_info()[1]
    rates = [0.0001 * (1 + i) for i in range(16)]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((3 << 30) / total)
    try:
        store = Store(str(tmp_path))
        found = list(run_pack(config, job(rates), tiny_tasks(1, True), None, store, device))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(found) == 16
    assert {r.status for r in found} == {"COMPLETE"}
    assert {r.pack_size for r in found} <= {1, 2, 4, 8}
    assert torch.cuda.memory_allocated() < 1 << 30


@cuda
@pytest.mark.parametrize(
    "model",
    [
        {"name": "mlp", "hidden": [256, 256]},
        {"name": "mlp", "hidden": [2000, 2000]},
        {"name": "clnp_narrow"},
    ],
    ids=["small", "big", "narrow"],
)
def test_a_pack_of_the_size_that_is_planned_fits_into_what_was_counted_on(
    model: dict[str, Any], tmp_path: Path
) -> None:
    """The plan counts on half of what a pack may take: twice the budget is never passed."""
    batch, memory = 256, 2 << 30
    config = tiny_config(model=model, training={"epochs": 1, "batch_size": batch})
    task = tiny_tasks(1, True, samples=512)[0]
    shape = (1, 28, 28)
    images = [torch.randint(0, 256, (len(s.labels), *shape), dtype=torch.uint8)
              for s in (task.train, task.validation)]  # fmt: skip
    train, validation = (
        replace(s, inputs=i) for s, i in zip((task.train, task.validation), images, strict=True)
    )
    part = replace(task, task=replace(task.task, shape=shape), train=train, validation=validation)
    device = torch.device("cuda")
    bench = Bench.set_up(config, job(RATES[:1]), [part], None, device)
    size = pack_size(bench.system.backbone, "auto", "cuda", batch, memory)
    rates = [0.0001 * (1 + i) for i in range(size)]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    store = Store(str(tmp_path))
    found = list(run_pack(config, job(rates), [part], None, store, device))
    peak = torch.cuda.max_memory_reserved()
    print(f"{model}: {size} members, {peak / 2**20:.0f} MiB")
    assert [r.pack_size for r in found] == [size] * size
    assert peak < memory


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no malloc of glibc here")
def test_what_is_freed_between_what_is_in_use_is_given_back() -> None:
    """glibc keeps it: a driver would grow by the pages of each task's tables."""
    code = """
import os
from pathlib import Path
from clsearch.memory import give_back, machine_memory

def own() -> int:
    said = Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]
    return int(said) << 10

parts = [os.urandom(600) for _ in range(200_000)]
kept, full = parts[::1000], own()
del parts
give_back()
assert own() < full - (80 << 20), (full, own())
assert full < machine_memory()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_memory_is_that_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is used of it counts without the files that can be dropped."""
    whole = machine_memory()
    older = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    newer = ("memory.max", "memory.current", "inactive_file")
    for names in (older, newer):
        folder = tmp_path / names[0]
        folder.mkdir()
        groups = ((str(tmp_path / "none"), *newer), (str(folder), *names))
        monkeypatch.setattr("clsearch.memory._GROUPS", groups)
        (folder / names[1]).write_text("700\n")
        (folder / "memory.stat").write_text(f"anon 600\n{names[2]} 50\nother 9\n")
        for said, expected in {"max\n": whole, "1000\n": 1000, f"{2**63}\n": whole}.items():
            (folder / names[0]).write_text(said)
            assert machine_memory() == expected
            assert 0 < free_memory() < whole
        (folder / names[0]).write_text("1000\n")
        assert free_memory() == 350
