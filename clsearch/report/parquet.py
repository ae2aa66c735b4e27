"""`trials.parquet`, `scan.parquet` and `capacity.parquet`: a row for each trial, for each trial and
threshold, and for each chain, task and layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from clsearch.errors import DamagedError
from clsearch.files import (
    SHARE,
    check_readable,
    replaced,
    sha256_of,
    too_large,
    uncollected,
)
from clsearch.memory import machine_memory
from clsearch.records import (
    Candidate,
    Round,
    ScanPoint,
    Selection,
    TaskResult,
    TrialRecord,
)


@dataclass(frozen=True)
class _Part:
    """The rows of a chain at a task, as `_packed` has them, and the hyperparameters that its trials
    have."""

    names: frozenset[str]
    trials: Any
    points: Any
    capacity: Any


class Tables:
    """`trials.parquet`, `scan.parquet` and `capacity.parquet` of a run in `out`.

    `layers` names the unit layers in order; by default the records do. A trial's sparsity,
    threshold, accuracy and free neurons after pruning are the selector's; a fine-tuned trial has
    them where it is the selected one. Rows are kept compressed, and records are not.
    """

    def __init__(self, out: Path, layers: Sequence[str] = ()) -> None:
        self._out, self._layers = out, layers
        self._parts: dict[_Place, _Part] = {}

    def write(self, records: Sequence[TrialRecord], results: Sequence[TaskResult]) -> None:
        """Adds the trials and the results of chains and tasks not written before, and writes all.
        Raises `StoreError` when that cannot be done."""
        import pyarrow as pa

        self._layers = self._layers or next((r.layers for r in records if r.layers), ())
        trials: dict[_Place, list[TrialRecord]] = {}
        for record in sorted(records, key=lambda r: r.trial_key):
            trials.setdefault((record.task, record.method, record.seed), []).append(record)
        found = {(s.task, s.method, s.seed): r for r in results for s in (r.selection,)}
        for place in {*trials, *found}:
            self._parts[place] = _part(trials.get(place, ()), found.get(place), self._layers)
        made = [self._parts[place] for place in sorted(self._parts)]
        names = sorted({name for part in made for name in part.names})
        self._write("trials", [p.trials for p in made], _trial_columns(names), self._layers)
        self._write("scan", [p.points for p in made], _SCAN_COLUMNS, self._layers)
        self._write("capacity", [p.capacity for p in made], _CAPACITY_COLUMNS, ())
        pa.default_memory_pool().release_unused()

    def _write(
        self,
        name: str,
        parts: Sequence[Any],
        columns: Mapping[str, str],
        layers: Sequence[str],
    ) -> None:
        """One table of its parts; a hyperparameter that a part does not have is null there."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        empty = _table([], columns, layers)
        own = [pa.ipc.open_stream(part).read_all() for part in parts]
        whole = pa.concat_tables([empty, *own], promote_options="default").cast(empty.schema)
        whole = whole.replace_schema_metadata({_COLUMNS: _digest(whole.schema)})
        with replaced(self._out / f"{name}.parquet") as stream:
            pq.write_table(whole, stream, compression="zstd", write_page_checksum=True)


def _part(
    records: Sequence[TrialRecord], result: TaskResult | None, layers: Sequence[str]
) -> _Part:
    names = sorted({name for record in records for name in record.hyperparameters})
    selection = result.selection if result else None
    trials = [_trial_row(r, selection, names, layers) for r in records]
    points = [_scan_row(r, i, layers) for r in records for i in range(len(r.scan))]
    return _Part(
        frozenset(names),
        _packed(_table(trials, _trial_columns(names), layers)),
        _packed(_table(points, _SCAN_COLUMNS, layers)),
        _packed(_table(_capacity_rows(result) if result else [], _CAPACITY_COLUMNS, ())),
    )


def _packed(table: Any) -> Any:
    """The table in a buffer, compressed."""
    import pyarrow as pa

    sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as stream:
        stream.write_table(table)
    return sink.getvalue()


_Place = tuple[int, str, int]
"""Task, method and seed."""

_PLACE = {"method": "string", "seed": "int64", "task": "int64", "trial_key": "string"}
_SCAN_COLUMNS = _PLACE | {"threshold": "double", "accuracy": "double", "free": "int64"}
_SCAN_COLUMNS["free_by_layer"] = "counts"
_BY_LAYER = {"counts": "int64", "thresholds": "double"}

_CAPACITY_COLUMNS = {
    **{"method": "string", "seed": "int64", "task": "int64", "layer": "string"},
    **dict.fromkeys(("units", "used", "new", "reused", "free"), "int64"),
    "transfer": "bool",
}


def _trial_columns(names: Sequence[str]) -> dict[str, str]:
    """Columns of `trials.parquet` and their types; those in `_BY_LAYER` are structs by layer."""
    return {
        **_PLACE,
        **dict.fromkeys(("status", "reason", "hyperparameters"), "string"),
        **{f"hp_{name}": "double" for name in names},
        **dict.fromkeys(("validation_accuracy", "sparsity", "threshold"), "double"),
        **{"pruned_accuracy": "double", "free_by_layer": "counts", "drift": "double"},
        **{"selected": "bool", "why": "string", "epochs": "int64"},
        **{"duration": "double", "started": "double"},
        **{"device": "string", "host": "string", "pack_size": "int64"},
        **{"fine_tuned": "string", "thresholds_by_layer": "thresholds"},
    }


def _trial_row(
    record: TrialRecord,
    selection: Selection | None,
    names: Sequence[str],
    layers: Sequence[str],
) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(record, name, None) for name in _trial_columns(())}
    row |= {f"hp_{name}": record.hyperparameters.get(name) for name in names}
    row["hyperparameters"] = json.dumps(record.hyperparameters, sort_keys=True)
    row["fine_tuned"] = record.fine_tuned or None
    row["selected"] = selection is not None and selection.trial_key == record.trial_key
    if selection is None:
        return row
    told: dict[str, Candidate | Round] = {c.trial_key: c for c in selection.candidates}
    told |= {done.trial_key: done for done in selection.rounds}
    if record.trial_key in told:
        row["why"] = told[record.trial_key].why
    pruned: Candidate | Selection | Round | None = told.get(record.trial_key)
    if record.fine_tuned and row["selected"]:
        pruned = selection
    if isinstance(pruned, Candidate | Selection):
        counted, thresholds = bool(pruned.free), pruned.thresholds
        row |= {
            "sparsity": pruned.sparsity if counted else None,
            "threshold": pruned.threshold,
            "pruned_accuracy": pruned.accuracy,
            "free_by_layer": _by_layer(layers, pruned.free) if counted else None,
            "thresholds_by_layer": _by_layer(layers, thresholds) if thresholds else None,
        }
    return row


def _scan_row(record: TrialRecord, i: int, layers: Sequence[str]) -> dict[str, Any]:
    point = record.scan[i]
    row: dict[str, Any] = {name: getattr(record, name) for name in _PLACE}
    row |= {"threshold": point.threshold, "accuracy": point.accuracy, "free": sum(point.free)}
    return {**row, "free_by_layer": _by_layer(layers, point.free)}


def _capacity_rows(result: TaskResult) -> list[dict[str, Any]]:
    place = {name: getattr(result.selection, name) for name in ("method", "seed", "task")}
    said = {**place, "transfer": result.transfer}
    return [{**said, **layer.to_json()} for layer in result.capacity]


def _by_layer(layers: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return dict(zip(layers, values, strict=True))


def _schema(columns: Mapping[str, str], layers: Sequence[str]) -> Any:
    import pyarrow as pa

    def type_of(kind: str) -> Any:
        if kind not in _BY_LAYER:
            return pa.type_for_alias(kind)
        value = pa.type_for_alias(_BY_LAYER[kind])
        return pa.struct([(layer, value) for layer in layers]) if layers else pa.null()

    return pa.schema((name, type_of(kind)) for name, kind in columns.items())


def _table(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], layers: Sequence[str]
) -> Any:
    import pyarrow as pa

    schema = _schema(columns, layers)
    arrays = [pa.array([row[f.name] for row in rows], type=f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def read_table(path: Path) -> Any:
    """A table that `Tables` wrote. Raises `FileNotFoundError`, and `DamagedError` for a file
    that is cut or changed: pages have their checksums, and the columns have one of ours; what
    `check_readable` does, also for one that says it has too many rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        check_readable(path, path.stat())
        with pq.ParquetFile(path, page_checksum_verification=True) as file:  # no pandas, as a set
            said = file.metadata
            if 8 * said.num_rows * said.num_columns > machine_memory() // SHARE:
                raise too_large(path, f"its {said.num_rows} rows")
            table = file.read()
        if (table.schema.metadata or {}).get(_COLUMNS) != _digest(table.schema):
            raise ValueError("its columns are not those that a search writes")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamagedError(f"{path} cannot be read ({error})") from error
    return table.replace_schema_metadata(None)


_COLUMNS = b"clsearch.columns"


def _digest(schema: Any) -> bytes:
    return sha256_of("\n".join(f"{f.name}: {f.type}" for f in schema).encode()).encode()


def trials_of(trials: Any, scan: Any) -> list[TrialRecord]:
    """The trials that `Tables` wrote, from the tables of `trials.parquet` and `scan.parquet`.

    What these do not hold (curves, widths, free neurons before pruning) is left empty: the journal
    has it, but reading it takes the models of all trials off the disk. So are the scans of trials
    below the floor, which no figure shows: most of what there is. Raises `KeyError`,
    `ValueError` or `TypeError` for other tables.
    """
    with uncollected():
        return list(_read(trials, scan))


def _read(trials: Any, scan: Any) -> Iterator[TrialRecord]:
    import pyarrow.compute as pc

    shown = trials["trial_key"].filter(trials["pruned_accuracy"].is_valid()).combine_chunks()
    points = _points(scan.filter(pc.is_in(scan["trial_key"], value_set=shown)))
    fields = ("status", "reason", "validation_accuracy", "drift", "epochs", "duration", "started",
              "device", "host", "pack_size")  # fmt: skip
    columns = [trials[name].to_pylist() for name in fields]
    hypers = map(json.loads, trials["hyperparameters"].to_pylist())
    tuned = trials["fine_tuned"].to_pylist()
    for place, *values, hyper, origin in zip(_places(trials), *columns, hypers, tuned, strict=True):
        method, seed, task, key = place
        found = dict(zip(fields, values, strict=True))
        own = points.get(place, ())
        yield TrialRecord(
            key, method, seed, task, hyper, scan=own, fine_tuned=origin or "", **found
        )


def _places(table: Any) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in _PLACE), strict=True)


def _points(scan: Any) -> dict[tuple[Any, ...], tuple[ScanPoint, ...]]:
    """The scan of each trial, whose rows stand together; free neurons in the order of layers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    keys = scan["trial_key"].combine_chunks()
    changes = pc.indices_nonzero(pc.not_equal(keys[1:], keys[:-1]))
    firsts = pa.concat_tables([scan[:1], scan[1:].take(changes)])  # pa.array would import pandas
    starts = [0, *(i + 1 for i in changes.to_pylist())][: len(keys)]
    by_layer = scan["free_by_layer"].combine_chunks()
    layers = by_layer.flatten() if pa.types.is_struct(by_layer.type) else []
    free = zip(*(layer.to_pylist() for layer in layers), strict=True)
    rows = list(map(ScanPoint, scan["threshold"].to_pylist(), scan["accuracy"].to_pylist(), free))
    spans = zip(_places(firsts), pairwise([*starts, len(rows)]), strict=True)
    return {place: tuple(rows[start:end]) for place, (start, end) in spans}
