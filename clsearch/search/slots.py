"""What a pack takes of a cluster, and how many of them fit at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from clsearch.config import ResourcesConfig
from clsearch.errors import ClsearchError, InputError
from clsearch.search._ray import ray

TYPE, NODE = "accelerator_type:", "node:"
"""How Ray names what a node has beside numbers: the type of its GPUs, and its own address."""
BIT = 0.001
"""Of such a thing: what binds a task to it, and takes nothing away."""
PATIENCE = 120.0
"""Seconds that the cluster has to look at one GPU of each type."""

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Slots:
    """Where packs train, cpu or cuda; what Ray sets aside for each; the bytes of a GPU's memory
    that each can count on, wherever it trains (None on a CPU); how many train at a time."""

    device: str
    bundle: dict[str, float]
    memory: int | None
    workers: int


def gpu_memory() -> int | str:
    """Bytes of the GPU that a worker is given, or why torch cannot use it."""
    import torch

    try:
        return int(torch.cuda.mem_get_info()[1])
    except (RuntimeError, AssertionError) as error:  # the last: torch without CUDA
        return " ".join(str(error).split())


def slots_of(resources: ResourcesConfig, probe: Callable[[], int | str] = gpu_memory) -> Slots:
    """What the Ray that this process is in has for packs.

    The smallest GPU bounds the memory of a pack: `probe` is asked once for each type of GPU, on a
    node that has it. Raises `InputError` for a device or a type that is not there, and for a GPU
    that torch cannot use; `ClsearchError` where no GPU gets free to look at.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpu = [node for node in nodes if node.get("GPU")]
    bundle = {"CPU": 1.0}
    if resources.device == "cpu" or (resources.device == "auto" and not with_gpu):
        if resources.accelerator is not None:
            raise _no_type(resources.accelerator, [])
        return Slots("cpu", bundle, None, _fitting(bundle, nodes))
    if not with_gpu:
        raise InputError("resources.device", "cuda", "cpu, or auto: Ray sees no GPU here")
    bundle["GPU"] = resources.gpus
    kinds = {_kind(node) for node in with_gpu}
    if resources.accelerator is not None:
        wanted = TYPE + resources.accelerator
        if wanted not in kinds:
            raise _no_type(resources.accelerator, kinds)
        bundle[wanted], kinds = BIT, {wanted}
    memory = int(min(_memories(bundle, kinds, probe)) * resources.gpus)
    return Slots("cuda", bundle, memory, _fitting(bundle, with_gpu))


def _kind(node: Resources) -> str:
    """What binds a task to a node's type of GPU; to the node itself where Ray knows no type."""
    return next(name for start in (TYPE, NODE) for name in sorted(node) if name.startswith(start))


def _memories(bundle: Resources, kinds: Iterable[str], probe: Callable[[], int | str]) -> list[int]:
    """The memory of a GPU of each kind, in bytes."""
    asked = {
        kind: ray.remote(
            num_cpus=bundle["CPU"], num_gpus=bundle["GPU"], resources={kind: BIT}
        )(probe).remote()
        for kind in sorted(kinds)
    }  # fmt: skip
    try:
        found = dict(zip(asked, ray.get(list(asked.values()), timeout=PATIENCE), strict=True))
    except ray.exceptions.GetTimeoutError as error:
        raise ClsearchError(
            f"no GPU of some type got free within {PATIENCE:.0f} s (asked for: "
            f"{', '.join(kind.partition(':')[2] for kind in asked)}), and packs are sized by its "
            "memory. Try again when the cluster is less busy, or name one type by "
            "`resources.accelerator`."
        ) from error
    for kind, memory in found.items():
        if isinstance(memory, str):
            step = f"Ray has a GPU ({kind.partition(':')[2]}) that torch there cannot use: {memory}"
            raise InputError("resources.device", "cuda", "cpu, or a GPU that torch can use", step)
    return list(found.values())


def _fitting(bundle: Resources, nodes: Iterable[Resources]) -> int:
    """How many packs fit at a time, at least one."""
    each = (min(node.get(name, 0.0) / share for name, share in bundle.items()) for node in nodes)
    return max(1, sum(int(n + 1e-9) for n in each))


def _no_type(name: str, kinds: Iterable[str]) -> InputError:
    known = sorted(k.removeprefix(TYPE) for k in kinds if k.startswith(TYPE))
    allowed = (
        f"one of {', '.join(known)}" if known else "none: Ray sees no GPU of a known type here"
    )
    return InputError("resources.accelerator", name, allowed)
