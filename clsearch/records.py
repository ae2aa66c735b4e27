"""What a search leaves behind, as small dataclasses. No torch, no Ray, no MLflow."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")

SCHEMA = 2
"""Version of the code's arithmetic: part of every trial key. Raise it when results change."""

NOT_STATED = "not stated"
"""The licence of a model or of data where nobody said one."""

DIVERGENCE = "diverged"
"""How the reason of a trial begins that its own hyperparameters made fail."""
Status = Literal["COMPLETE", "PRUNED", "FAILED"]
Outcome = Literal["selected", "failed", "depleted"]


def digest(value: Any) -> str:
    """SHA-256 (32 hex digits) of a JSON-able value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _types(kind: Any) -> TypeAdapter[Any]:
    # "keys": else the texts of 16,000 values stay in memory. Of a class alone it cannot be said.
    return TypeAdapter(tuple[kind], config=ConfigDict(cache_strings="keys", allow_inf_nan=False))


def checked(value: T) -> T:
    """The dataclass as it is; raises `ValueError` for fields of other types than they declare,
    and for numbers that are not finite."""
    # As JSON, in which the strict reader takes mappings for dataclasses and lists for tuples.
    kind: Any = type(value)
    try:
        _types(kind).validate_json(json.dumps([value], default=_fields), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or type(value).__name__
        raise ValueError(f"{where}: {first['msg']}") from error
    return value


def numbers(said: Any) -> dict[str, float]:
    """What maps names to finite numbers, read from JSON; raises `ValueError` for anything else."""
    if not isinstance(said, dict):
        raise ValueError("it maps no names to numbers")
    for name, value in said.items():
        if type(value) not in (int, float) or not abs(value) < math.inf:
            raise ValueError(f"{name} is no finite number")
    try:
        return {name: float(value) for name, value in said.items()}
    except OverflowError as error:
        raise ValueError(str(error)) from error


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


@dataclass(frozen=True)
class Chain:
    """One (method, seed): it has one parent checkpoint per task."""

    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method}/seed-{self.seed}"


@dataclass(frozen=True)
class TaskRecord:
    """What a task was made from: the data set, its licence, and what trials saw of it.

    `digest` is that of all training and validation samples, `shape` that of an image, `[C, H, W]`;
    `train`, `validation` and `test` are numbers of samples.
    """

    number: int
    name: str
    source: str
    licence: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    digest: str
    train: int
    validation: int
    test: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskRecord:
        """Reads what `to_json` wrote; raises `TypeError` or `KeyError` on anything else."""
        lists = {name: tuple(data[name]) for name in ("classes", "shape")}
        return cls(**{**data, **lists})


@dataclass(frozen=True)
class ScanPoint:
    """One threshold of a trial's scan: prune what is at or below it, measure what is left.

    `accuracy` is a fraction on validation data; `free[l]` counts the neurons of unit layer l at or
    below the threshold, of those that no earlier task of a pruning method needs.
    """

    threshold: float
    accuracy: float
    free: tuple[int, ...]


@dataclass(frozen=True)
class LayerPruning:
    """A threshold of its own for each unit layer, in order, and what pruning by them leaves.

    `accuracy` is a fraction on validation data, `free[l]` counts the neurons of unit layer l at or
    below its threshold, as in `ScanPoint`.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    free: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerPruning:
        return cls(tuple(data["thresholds"]), data["accuracy"], tuple(data["free"]))


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial. `validation_accuracy` and the scan are those of its final weights.

    `lost`: the machine failed, not the trial (its workers died, memory ran out). A later run
    trains it again. `fine_tuned`: the key of the selected trial that this one goes on from, pruned;
    empty for a trial of the grid.
    """

    trial_key: str
    method: str
    seed: int
    task: int
    hyperparameters: dict[str, float]
    status: Status
    reason: str = ""
    validation_accuracy: float | None = None
    drift: float = 0.0
    layers: tuple[str, ...] = ()
    units: tuple[int, ...] = ()
    free: tuple[int, ...] = ()
    scan: tuple[ScanPoint, ...] = ()
    curve: tuple[float, ...] = ()
    epochs: int = 0
    duration: float = 0.0
    started: float = 0.0
    device: str = ""
    host: str = ""
    pack_size: int = 1
    lost: bool = False
    fine_tuned: str = ""

    @property
    def chain(self) -> Chain:
        return Chain(self.method, self.seed)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialRecord:
        """Reads what `to_json` wrote; raises `TypeError` or `KeyError` on anything else."""
        fields = dict(data)
        fields["scan"] = tuple(
            ScanPoint(p["threshold"], p["accuracy"], tuple(p["free"])) for p in fields["scan"]
        )
        for name in ("layers", "units", "free", "curve"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


@dataclass
class Tally:
    """How many trials ended with which status, and the seconds of training they took."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, record: TrialRecord) -> None:
        self.statuses[record.status] += 1
        self.seconds += record.duration

    def __str__(self) -> str:
        counted = [(self.statuses[s], s.lower()) for s in ("COMPLETE", "PRUNED", "FAILED")]
        said = ", ".join(f"{n} {status}" for n, status in counted if n)
        return f"{self.statuses.total()} trials ({said}), {self.seconds:.0f} s of training"


@dataclass(frozen=True)
class Candidate:
    """One trial as the selector saw it, and why it won or lost.

    `threshold` is the highest one that stays at or above the floor (None: nothing can be pruned),
    `thresholds` are those by unit layer where each has its own (else empty), `accuracy` is the
    validation accuracy after pruning with them, `free` counts the free neurons by layer.
    """

    trial_key: str
    hyperparameters: dict[str, float]
    status: Status
    validation_accuracy: float | None
    threshold: float | None
    accuracy: float | None
    free: tuple[int, ...]
    sparsity: float
    drift: float
    chosen: bool
    why: str
    thresholds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Round:
    """One round of fine-tuning a selected trial after pruning (CLNP §2.2, §3.2).

    `trial_key` is the trial that came of it; `pruned` and `recovered` are the validation accuracies
    (fractions) after pruning and after fine-tuning, `recovered` None where that failed; `sparsity`
    is the share of free neurons. `kept`: the fine-tuned model took the pruned one's place; `why`
    says it in words.
    """

    trial_key: str
    pruned: float
    recovered: float | None
    sparsity: float
    kept: bool
    why: str


@dataclass(frozen=True)
class Selection:
    """The selector's outcome for one chain at one task, with its reason and every candidate.

    `best`, `floor` and `accuracy` are fractions, `margin` percentage points. `thresholds` are those
    by unit layer where each has its own, else empty. Where the chosen candidate was fine-tuned
    after pruning, `rounds` says how, and `trial_key`, `threshold`, `thresholds`, `accuracy`, `free`
    and `sparsity` are those of the last model that was kept.
    """

    method: str
    seed: int
    task: int
    outcome: Outcome
    reason: str
    margin: float
    best: float | None = None
    floor: float | None = None
    trial_key: str | None = None
    hyperparameters: dict[str, float] = dataclasses.field(default_factory=dict)
    validation_accuracy: float | None = None
    threshold: float | None = None
    accuracy: float | None = None
    layers: tuple[str, ...] = ()
    units: tuple[int, ...] = ()
    free: tuple[int, ...] = ()
    sparsity: float | None = None
    candidates: tuple[Candidate, ...] = ()
    thresholds: tuple[float, ...] = ()
    rounds: tuple[Round, ...] = ()

    @property
    def chain(self) -> Chain:
        return Chain(self.method, self.seed)

    @property
    def by_layer(self) -> dict[str, float] | None:
        """θ by unit layer; None where nothing is pruned."""
        if self.threshold is None:
            return None
        thresholds = self.thresholds or (self.threshold,) * len(self.layers)
        return dict(zip(self.layers, thresholds, strict=True))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Selection:
        fields = dict(data)
        fields["candidates"] = tuple(
            Candidate(**{**c, "free": tuple(c["free"]), "thresholds": tuple(c["thresholds"])})
            for c in fields["candidates"]
        )
        fields["rounds"] = tuple(Round(**r) for r in fields["rounds"])
        for name in ("layers", "units", "free", "thresholds"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


@dataclass(frozen=True)
class LayerCapacity:
    """The neurons of a unit layer after a task, of a method that keeps account of them.

    `used` are those that any task so far needs; `new` of them were taken by this task. `reused`
    are neurons of earlier tasks that this task reads: those from which weights other than 0 lead
    to its output layer, through neurons of earlier tasks or its own (CLNP §3.1).
    """

    layer: str
    units: int
    used: int
    new: int
    reused: int

    @property
    def free(self) -> int:
        return self.units - self.used

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "free": self.free}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerCapacity:
        return cls(**{name: data[name] for name in ("layer", "units", "used", "new", "reused")})


@dataclass(frozen=True)
class TaskResult:
    """A chain after one task: the selection, its commit and the test accuracies it reached.

    `commit` is the key of the stored parent checkpoint of the next task (None when the chain
    ended). `test[j]` is the test accuracy (fraction) on task j+1, None where the model has no
    answer for that task. `free` counts what the *stored* model leaves free by layer.
    `memory_bytes` is what the chain remembers beside its parameters: importance, anchors, ….
    `capacity` is the account of each layer, empty where the method keeps none. `transfer`: the
    task had its output layer alone to learn with (last-layer transfer, CLNP §3.2).
    """

    selection: Selection
    commit: str | None
    test: tuple[float | None, ...] = ()
    free: tuple[int, ...] = ()
    memory_bytes: int | None = None
    capacity: tuple[LayerCapacity, ...] = ()
    transfer: bool = False

    def to_json(self) -> dict[str, Any]:
        """All but the test accuracies, which have a file of their own."""
        return {
            **self.selection.to_json(),
            "commit": self.commit,
            "memory_bytes": self.memory_bytes,
            "capacity": [layer.to_json() for layer in self.capacity],
            "transfer": self.transfer,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], test: tuple[float | None, ...]) -> TaskResult:
        """Reads what `to_json` wrote; raises `TypeError` or `KeyError` on anything else."""
        fields = dict(data)
        commit, memory = fields.pop("commit"), fields.pop("memory_bytes")
        capacity = tuple(map(LayerCapacity.from_json, fields.pop("capacity")))
        transfer, free = fields.pop("transfer"), tuple(c.free for c in capacity)
        return cls(Selection.from_json(fields), commit, test, free, memory, capacity, transfer)
