"""Throws made-up and damaged inputs at everything that reads files from elsewhere.

    python -m tests.fuzz [--inputs 100000] [--seed 0]

A reader gives what it read or raises `ClsearchError`; anything else is a crash, and is printed
with the input that did it. Exit code 1 where there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from clsearch.config import load_config
from clsearch.courier import Ledger
from clsearch.errors import ClsearchError
from clsearch.exports.formats.pt2 import Program
from clsearch.files import ABOUT
from clsearch.folder import results_of, tasks_of
from clsearch.methods.base import ChainState
from clsearch.mlflow_places import put_right
from clsearch.outbox import Entry
from clsearch.records import (
    LayerPruning,
    ScanPoint,
    Selection,
    TaskRecord,
    TaskResult,
    TrialRecord,
)
from clsearch.report.parquet import Tables, read_table
from clsearch.store import (
    MANIFEST,
    Store,
    TrainedModel,
    dump_state,
    load_state,
    read_commit,
    read_measured,
    read_pruning,
    read_record,
    read_trained,
    write_commit,
    write_measured,
    write_pruning,
    write_record,
)

LONGEST = 10.0
"""Seconds a reader may take; more counts as a crash."""

Reader = Callable[[bytes], object]

KEYS = st.sampled_from(
    [
        "name",
        "scenario",
        "source",
        "tasks",
        "classes_per_task",
        "model",
        "hidden",
        "methods",
        "grid",
        "lr",
        "l1",
        "options",
        "label",
        "seeds",
        "training",
        "epochs",
        "batch_size",
        "optimizer",
        "search",
        "protocol",
        "selection",
        "margin",
        "thresholds",
        "regularizers",
        "fine_tune",
        "rounds",
        "logspace",
        "tracking",
        "uri",
        "resources",
        "pack",
        "files",
        "scan",
        "free",
        "layers",
        "units",
        "curve",
        "hyperparameters",
        "trial_key",
        "status",
        "candidates",
        "capacity",
        "commit",
        "kind",
        "body",
    ]
)
WORDS = st.sampled_from(
    [
        "permuted",
        "split",
        "digits",
        "mnist",
        "mlp",
        "finetune",
        "clnp",
        "ewc",
        "adam",
        "sgd",
        "COMPLETE",
        "FAILED",
        "selected",
        "auto",
        "../../etc/passwd",
        "/dev/zero",
        "CON",
        "..",
        ".",
        "\x00",
        "null",
        "~",
        "1e999",
        "0x10",
        "1_0",
        "2001-01-01",
        "!!python/object:os",
        "<<",
    ]
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.integers(), st.floats(), st.text(max_size=9),
    WORDS,
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(KEYS, st.text(max_size=5)), inner, max_size=5),
    ),
    max_leaves=20,
)


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Some bytes of a valid file flipped, cut, doubled, or a part put elsewhere."""
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        match rng.randrange(6):
            case 0 if content:
                content[min(at, len(content) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                del content[at:end]
            case 2:
                content[at:at] = content[at : min(end, at + 200)]
            case 3:
                content[at:at] = rng.choice(
                    (b"[" * 3000, b"{", b"null", b"-1", b"1e999", b'"', b"\xff", b"\x00", b"NaN",
                     b"!!int ''")
                )  # fmt: skip
            case 4:
                content[at : at + 8] = rng.randbytes(8)
            case _:
                content = content[:end]
    return bytes(content)


def grafted(tree: Any, graft: Any, rng: random.Random) -> Any:
    """A valid value with one place taken by another value, left out, or under another key."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.15:
        return graft
    if isinstance(tree, list):
        place: Any = rng.randrange(len(tree))
        return [grafted(v, graft, rng) if i == place else v for i, v in enumerate(tree)]
    place = rng.choice(list(tree))
    if rng.random() < 0.1:
        return {k: v for k, v in tree.items() if k != place}
    return {k: grafted(v, graft, rng) if k == place else v for k, v in tree.items()}


CONFIG: dict[str, Any] = {
    "name": "small",
    "scenario": {"name": "permuted", "source": "digits", "tasks": 2},
    "model": {"name": "mlp", "hidden": [32]},
    "training": {"epochs": 3, "batch_size": 64, "augment": {"flip": True, "crop": 2}},
    "methods": [
        {"name": "clnp", "grid": {"lr": {"logspace": [0.001, 0.1, 3]}}, "fine_tune": {"rounds": 2}},
        {"name": "ewc", "label": "e", "margin": 2, "regularizers": [{"name": "l2_wd"}]},
    ],
    "seeds": [0, 1],
    "selection": {"margin": 1.0, "per_layer": True},
    "tracking": {"uri": "http://127.0.0.1:5000"},
    "resources": {"workers": 2, "pack": 4},
}
RECORD = TrialRecord(
    "k" * 32, "ewc", 3, 2, {"lr": 0.1}, "COMPLETE", "", 2 / 3, 1.0, ("fc1",), (5,), (0,),
    (ScanPoint(0.0, 0.9, (1,)), ScanPoint(0.3, 1 / 3, (3,))), (0.1, 2 / 3), 2,
)  # fmt: skip
TASK = TaskRecord(1, "digits 0-4", "digits", "CC0", ("0", "1"), (1, 8, 8), "d" * 32, 80, 20, 25)
RESULT = TaskResult(Selection("ewc", 3, 1, "selected", "", 1.0, units=(5,)), "c" * 32, (0.5,))
STATE = ChainState({"fc1.weight": torch.ones(2, 3)}, {"mask": torch.tensor([True])}, {})


class Target:
    """A reader, a valid input, and the file that stands for it."""

    def __init__(self, name: str, valid: bytes, read: Reader) -> None:
        self.name, self.valid, self.read = name, valid, read
        self.is_text = not name.endswith(("safetensors", "pt2", "parquet", "ledger", "db"))


def targets(folder: Path) -> list[Target]:
    """Every reader of configs, records and checkpoints, over files of its own in `folder`."""
    store = Store(str(folder / "store"))
    write_record(store, RECORD, TrainedModel(STATE.params, {"fc1": torch.ones(3)}, {}))
    write_commit(store, "c", STATE, {"validation_accuracy": 0.5})
    write_measured(store, "m", {"1": 0.5})
    write_pruning(store, "p", LayerPruning((0.1,), 0.5, (2,)))

    def file(path: Path, read: Callable[[], object]) -> Reader:
        path.parent.mkdir(parents=True, exist_ok=True)

        def reader(content: bytes) -> object:
            path.write_bytes(content)
            return read()

        return reader

    def bundled(kind: str, key: str, name: str, read: Callable[[], object]) -> Target:
        """A file of a bundle whose manifest has its right SHA-256: what an attacker writes."""
        before = store.read(kind, key)
        assert before is not None

        def reader(content: bytes) -> object:
            store.remove(kind, key)
            store.write(kind, key, {**before, name: content})
            return read()

        return Target(f"{kind}/{name}", before[name], reader)

    manifest = folder / "store" / "measurements" / "m" / MANIFEST
    sums = manifest.read_bytes()
    results = json.dumps([RESULT.to_json()]).encode()
    matrix = folder / "run" / "accuracy_matrix.json"
    matrix.parent.mkdir(parents=True)
    matrix.write_text(json.dumps({"ewc": {"3": [[0.5]]}}))
    selections = matrix.with_name("selections.json")
    selections.write_bytes(results)
    accuracies, run = matrix.read_bytes(), matrix.parent
    described = json.dumps({"scenario": {}, "machine": {}, "tasks": [TASK.to_json()]}).encode()
    Tables(run).write([RECORD], [RESULT])
    trials, ledger = run / "trials.parquet", folder / "delivered" / "local.txt"
    entry = folder / "outbox" / "00000001-trial-x.json"
    config, configured = folder / "config.yaml", yaml.safe_dump(CONFIG).encode()
    archive, whole = folder / "model.pt2", _archive()
    places = _database(folder / "mlflow.db")
    uri = f"sqlite:///{places}"
    load = file(archive, lambda: Program().load(archive))

    def part(ending: str) -> Target:
        """A part of an archive whose checksum is right."""
        with zipfile.ZipFile(io.BytesIO(whole)) as parts:
            valid = next(parts.read(name) for name in parts.namelist() if name.endswith(ending))
        return Target(
            f"model.pt2/{ending}", valid, lambda content: load(_with(whole, ending, content))
        )

    return [
        Target("config", configured, file(config, lambda: load_config(config))),
        bundled("trials", "k" * 32, "record.json", lambda: read_record(store, "k" * 32)),
        bundled("trials", "k" * 32, "model.safetensors", lambda: read_trained(store, "k" * 32)),
        bundled("commits", "c", "state.safetensors", lambda: read_commit(store, "c")),
        bundled("commits", "c", "meta.json", lambda: read_commit(store, "c")),
        bundled("measurements", "m", "test.json", lambda: read_measured(store, "m")),
        bundled("prunings", "p", "pruning.json", lambda: read_pruning(store, "p")),
        Target("safetensors", dump_state(STATE), load_state),
        Target("manifest", sums, file(manifest, lambda: read_measured(store, "m"))),
        Target("selections.json", results, file(selections, lambda: results_of(run))),
        Target("accuracy_matrix.json", accuracies, file(matrix, lambda: results_of(run))),
        Target("search.json", described, file(run / ABOUT, lambda: tasks_of(run))),
        Target("trials.parquet", trials.read_bytes(), file(trials, lambda: read_table(trials))),
        Target("ledger", b"trial-x\ncommitted-y\n", file(ledger, lambda: Ledger(ledger))),
        Target("outbox", b'{"kind": "trial", "body": {}}', file(entry, Entry(entry).read)),
        Target(
            "mlflow.db", places.read_bytes(), file(places, lambda: put_right(uri, "file:///x", "e"))
        ),
        Target("model.pt2", whole, load),
        *map(part, PARTS),
    ]  # fmt: skip


PARTS = (
    "models/model.json", "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)  # fmt: skip
"""Of an exported program: its graph, and which tensors it holds."""


TABLES = (
    "experiments (experiment_id integer primary key, name text, artifact_location text)",
    "runs (run_uuid text primary key, experiment_id integer, artifact_uri text)",
    "logged_models (model_id text primary key, experiment_id integer, artifact_location text)",
    "model_versions (run_id text, source text, storage_location text)",
)
"""What of MLflow's database is read from a folder that may be another's."""


def _database(path: Path) -> Path:
    """A database with an experiment `e` of one run and one model, kept elsewhere."""
    run, model = "a" * 32, "m-" + "b" * 32
    place = f"file:///away/models/{model}/artifacts"
    rows = (1, "e", "file:///away"), (run, 1, "file:///away/x"), (model, 1, place), (run, place, "")
    with contextlib.closing(sqlite3.connect(path)) as opened, opened:
        for table, row in zip(TABLES, rows, strict=True):
            opened.execute(f"create table {table}")
            opened.execute(f"insert into {table.split()[0]} values (?, ?, ?)", row)
    return path


class _Least(torch.nn.Module):
    """A module with a weight and a constant, as small as one can be."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.constant = torch.nn.Parameter(torch.ones(2)), torch.ones(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + self.constant


def _archive() -> bytes:
    """An exported program."""
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(_Least(), (torch.ones(2),)), buffer)
    return buffer.getvalue()


def _with(whole: bytes, ending: str, content: bytes) -> bytes:
    """The archive with another part, its checksum right."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith(ending) else old.read(name))
    return made.getvalue()


class Hung(BaseException):
    """A reader took longer than `LONGEST`."""


def _hung(*_: object) -> None:
    raise Hung


def check(target: Target, content: bytes) -> str:
    """The traceback of a crash; empty where the reader read it or refused it."""
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        target.read(content)
    except ClsearchError:
        return ""
    except (Exception, Hung):  # noqa: BLE001 - every other exception is what is looked for
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ""


class Tally:
    """How many inputs each reader had, and its crashes, one of a kind: reader, input, traceback."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.crashes: list[tuple[str, bytes, str]] = []
        self._seen: set[tuple[str, str]] = set()

    def try_out(self, target: Target, content: bytes) -> None:
        self.counts[target.name] = self.counts.get(target.name, 0) + 1
        trouble = check(target, content)
        if trouble:
            kind = (target.name, trouble.splitlines()[-2])
            if kind not in self._seen:
                self._seen.add(kind)
                self.crashes.append((target.name, content, trouble))


def fuzz(inputs: int, start: int, folder: Path) -> Tally:
    """So many inputs, spread over the readers: damaged files, for text made-up values too."""
    before = signal.signal(signal.SIGALRM, _hung)
    logging.disable()  # torch says at length why it refuses a program
    tally, found = Tally(), targets(folder)
    share = -(-inputs // len(found))
    try:
        for target in found:
            rng = random.Random(f"{start}/{target.name}")
            made = share // 2 if target.is_text else 0
            for _ in range(share - made):
                tally.try_out(target, damaged(target.valid, rng))
            if made:
                _make_up(target, made, start, tally)
    finally:
        signal.signal(signal.SIGALRM, before)
        logging.disable(logging.NOTSET)
    return tally


def _make_up(target: Target, count: int, start: int, tally: Tally) -> None:
    """The valid value of a file of text with another value in one place, or another altogether."""
    is_yaml = target.name == "config"
    valid = (yaml.safe_load if is_yaml else json.loads)(target.valid)
    dump = yaml.safe_dump if is_yaml else json.dumps

    @seed(start)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(TREES, st.integers(0, 2**32))
    def values(graft: Any, number: int) -> None:
        rng = random.Random(number)
        whole = graft if rng.random() < 0.2 else grafted(valid, graft, rng)
        tally.try_out(target, dump(whole).encode("utf-8", "surrogatepass"))

    values()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="clsearch-fuzz-", dir=place) as folder:
        tally = fuzz(asked.inputs, asked.seed, Path(folder))
    for name, count in tally.counts.items():
        crashed = sum(name == crash[0] for crash in tally.crashes)
        print(f"{name:<28}{count:>9} inputs {crashed:>4} kinds of crash")
    for name, content, trouble in tally.crashes:
        print(f"\n{name}: {content[:300]!r}\n{trouble}")
    print(
        f"{sum(tally.counts.values())} inputs, seed {asked.seed}, {time.monotonic() - began:.0f} s"
    )
    return 1 if tally.crashes else 0


if __name__ == "__main__":
    sys.exit(main())
