"""Trial-steps per second: the field's loop against ours, in one run.

    python -m benchmarks.trial_throughput [--seconds N] [--quick]

The field's loop trains its trials one after the other in one process with torch's default
threads, and once more with one thread; ratios are over the faster of the two, because two threads
come to a standstill beside other load. Ours trains on one single-threaded worker process a core,
all at work at once, through the package's own `train_pack`, evaluation after each epoch included.
Sides take turns, and the ratio is the median over the turns, so that other load on the machine
hits all alike.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks._machine import machine
from benchmarks.threshold_scan import SHAPE, TRANSFORMS, load
from clsearch.config import TrainingConfig
from clsearch.data._torchvision import torchvision
from clsearch.methods.base import Start
from clsearch.methods.mas import MAS, MASOptions
from clsearch.models.base import Params, initial_head, initial_parameters
from clsearch.models.mlp import MLP, MLPOptions
from clsearch.regularizers.l1_param import L1Param, L1ParamOptions
from clsearch.rng import generator
from clsearch.search.plan import pack_size
from clsearch.training.batch import DeviceData, PackData, Readout
from clsearch.training.loop import train_pack
from clsearch.training.step import Objective
from clsearch.training.worker import prepare_worker
from clsearch.trial import start_on

BATCH = 256
L1, STRENGTH, RATE = 1e-5, 1.0, 1e-3
TARGETS = {256: 10.0, 2000: 2.5}
"""By hidden width: what our packs are to reach over the field's loop, in fp32."""
WARM_UP = 3
"""Steps of the field's loop before the clock starts."""
FIELD, FIELD_ONE = "field", "field, one thread"
STEPS = {256: 64, 2000: 20}
"""Steps of an epoch here, and hence of one measurement (at least), by hidden width."""


def backbone_of(width: int) -> MLP:
    return MLP(MLPOptions(hidden=[width, width]), SHAPE)


def start_of(width: int) -> tuple[Params, Params, Params]:
    """Initial weights, and an importance and an anchor for each of them."""
    source = generator("benchmark", "start")
    params = initial_parameters(backbone_of(width), source) | initial_head(0, 10, width, source)
    importance = {n: torch.rand(p.shape, generator=source) * 1e-2 for n, p in params.items()}
    anchor = {n: p + 0.01 * torch.randn(p.shape, generator=source) for n, p in params.items()}
    return params, importance, anchor


class FieldData(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images as the field stores and transforms them: bytes to PIL, ToTensor, Normalize."""

    def __init__(self, data: DeviceData) -> None:
        from PIL import Image

        transforms = torchvision().transforms
        self.image = Image.fromarray
        self.pixels = data.inputs[:, 0].numpy()
        self.labels = data.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.ToTensor(),
                transforms.Normalize(TRANSFORMS[SHAPE].mean, TRANSFORMS[SHAPE].std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.image(self.pixels[index])), self.labels[index]


def epochs(
    model: nn.Module, loader: Iterable[Any], validation: Iterable[Any]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The training batches of epoch after epoch; the model is validated after each, as ours is."""
    while True:
        yield from loader
        with torch.no_grad():
            _ = sum(int((model(x).argmax(1) == y).sum()) for x, y in validation)


def field(width: int, data: DeviceData, seconds: float) -> float:
    """Steps per second of the field's loop: L1 and MAS through autograd, one trial."""
    params, importance, anchor = start_of(width)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, width), nn.ReLU(),
        nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 10),
    )  # fmt: skip
    names = dict(zip([n for n, _ in model.named_parameters()], params, strict=True))
    model.load_state_dict({n: params[own] for n, own in names.items()})
    omega = {n: importance[own] for n, own in names.items()}
    star = {n: anchor[own] for n, own in names.items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    whole = FieldData(data)
    loader = torch.utils.data.DataLoader(whole, BATCH, shuffle=True, num_workers=0)
    held = torch.utils.data.Subset(whole, range(len(whole) // 10))
    validation = torch.utils.data.DataLoader(held, BATCH, num_workers=0)
    steps, begun = 0, 0.0
    for x, y in epochs(model, loader, validation):
        if steps == WARM_UP:
            begun = time.perf_counter()
        if steps > WARM_UP + 2 and time.perf_counter() - begun > seconds:
            break
        loss = cross_entropy(model(x), y)
        for name, param in model.named_parameters():
            loss = loss + L1 * param.abs().sum()
            loss = loss + STRENGTH / 2 * (omega[name] * (param - star[name]) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    return (steps - WARM_UP) / (time.perf_counter() - begun)


@dataclass
class Pack:
    """Our side in one worker: K trials of one width, through `train_pack`, where the data is."""

    width: int
    k: int
    data: DeviceData

    def __post_init__(self) -> None:
        params, importance, anchor = start_of(self.width)
        backbone = backbone_of(self.width)
        method = MAS(MASOptions(), backbone)
        state = {f"importance.{n}": v for n, v in importance.items()}
        state |= {f"anchor.{n}": v for n, v in anchor.items()}
        start = start_on(Start(params, state, method.everything(params)), self.data.device)
        l1 = L1Param(L1ParamOptions(), backbone)
        self.objective = Objective(backbone, method, [l1], start, Readout((0,)))
        # A grid, as a search has one: two rates, two strengths of L1, the rest strengths of MAS.
        self.hypers = [
            {
                "lr": RATE * (1 + i % 2),
                "l1": L1 * (1 + i // 2 % 2),
                "strength": STRENGTH * (1 + i // 4),
            }
            for i in range(self.k)
        ]

    def train(self, epochs: int) -> int:
        """Trains the pack for some epochs; returns how many trial-steps that were."""
        size = STEPS[self.width] * BATCH
        part = DeviceData(self.data.inputs[:size], self.data.labels[:size], None, TRANSFORMS[SHAPE])
        held = size // 10  # the share of `scenario.validation` by default
        test = DeviceData(
            self.data.inputs[-held:], self.data.labels[-held:], None, TRANSFORMS[SHAPE]
        )
        config = TrainingConfig(epochs=epochs, batch_size=BATCH)
        found = list(
            train_pack(
                self.objective,
                self.hypers,
                PackData(part, test, Readout((0,))),
                config,
                lambda stream: generator("benchmark", stream),
            )
        )
        if any(one.params is None for one in found):
            raise RuntimeError(f"a member failed: {found}")
        return self.k * epochs * STEPS[self.width]


def worker(pipe: Connection) -> None:
    """Answers each (width, K, seconds) with its trial-steps per second."""
    prepare_worker()
    data, _, _ = load(SHAPE, 5000)
    pipe.send(0.0)
    epochs: dict[tuple[int, int], int] = {}
    while (asked := pipe.recv()) is not None:
        width, k, seconds = asked
        pack = Pack(width, k, data)
        if (width, k) not in epochs:
            pack.train(1)
            begun = time.perf_counter()
            pack.train(1)
            epochs[width, k] = max(1, round(seconds / (time.perf_counter() - begun)))
        begun = time.perf_counter()
        done = pack.train(epochs[width, k])
        pipe.send(done / (time.perf_counter() - begun))


class Workers:
    """Worker processes, one a core."""

    def __init__(self, count: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for _ in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=worker, args=(theirs,), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)
        for pipe in self.pipes:
            pipe.recv()

    def measure(self, width: int, k: int, seconds: float) -> float:
        """Trial-steps per second of all workers together, at work at the same time."""
        for pipe in self.pipes:
            pipe.send((width, k, seconds))
        return sum(pipe.recv() for pipe in self.pipes)

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join()


def turns(
    width: int, data: DeviceData, workers: Workers, given: argparse.Namespace
) -> Iterator[dict[str, float]]:
    """Trial-steps per second of every side, one turn after the other."""
    auto = pack_size(backbone_of(width), "auto", "cpu", BATCH)
    sides = {"K = 1": 1, f"packs, auto: K = {auto}": auto, "packs, K = 8": 8}
    if given.quick:
        sides.popitem()
    for k in sides.values():
        workers.measure(width, k, given.seconds)
    default = torch.get_num_threads()
    for _ in range(given.turns):
        rates = {FIELD: field(width, data, given.seconds)}
        torch.set_num_threads(1)
        rates[FIELD_ONE] = field(width, data, given.seconds)
        torch.set_num_threads(default)
        rates |= {name: workers.measure(width, k, given.seconds) for name, k in sides.items()}
        yield rates


def report(width: int, found: list[dict[str, float]]) -> None:
    """A line for each side: trial-steps a second, and the ratio over the field's loop."""
    print(f"784-{width}-{width}-10, batch {BATCH}, Adam, L1 + MAS; target {TARGETS[width]:g} x")
    for name in found[0]:
        ratios = [turn[name] / max(turn[FIELD], turn[FIELD_ONE]) for turn in found]
        rate, ratio = median(turn[name] for turn in found), median(ratios)
        line = f"  {name:<20}{rate:9.1f} trial-steps/s{ratio:8.2f} x"
        line += f"  ({min(ratios):.2f} to {max(ratios):.2f})"
        if "auto" in name:
            line += "  reached" if ratio >= TARGETS[width] else "  NOT reached"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement, about")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="one short turn of the small net")
    given: Any = parser.parse_args()
    if given.quick:
        given.seconds, given.turns = 0.5, 1
    data, _, what = load(SHAPE, 5000)
    print(machine())
    print(f"load of the machine before the run: {os.getloadavg()[0]:.1f} (0 is idle)")
    print(f"{given.workers} workers of one thread; {what.removeprefix('trained on ')}")
    workers = Workers(given.workers)
    try:
        for width in [256] if given.quick else [256, 2000]:
            report(width, list(turns(width, data, workers, given)))
    finally:
        workers.close()


if __name__ == "__main__":
    main()
