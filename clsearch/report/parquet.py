"""`trials.parquet`, `scan.parquet` and `capacity.parquet`: a row for each trial, for each trial and
threshold, and for each chain, task and layer."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsearch.errors import DamagedError
from clsearch.files import atomic_write, sha256_of
from clsearch.records import (
    Candidate,
    Round,
    ScanPoint,
    Selection,
    TaskResult,
    TrialRecord,
)


def write_tables(
    out: Path,
    records: Sequence[TrialRecord],
    results: Sequence[TaskResult],
    layers: Sequence[str] = (),
) -> None:
    """Writes the tables of a run once; see `Tables`."""
    Tables(out, layers).write(records, results)


@dataclass(frozen=True)
class _Part:
    """The rows of a chain at a task, and what they were made from."""

    made_from: tuple[Sequence[TrialRecord], Selection | None, Sequence[str], Sequence[str]]
    trials: Any
    points: Any


class Tables:
    """`trials.parquet`, `scan.parquet` and `capacity.parquet` of a run in `out`.

    `layers` names the unit layers in order; by default the records do. A trial's sparsity,
    threshold, accuracy and free neurons after pruning are the selector's; a fine-tuned trial has
    them where it is the selected one. Rows that were made for an earlier write are not made again.
    """

    def __init__(self, out: Path, layers: Sequence[str] = ()) -> None:
        self._out, self._layers = out, layers
        self._parts: dict[tuple[int, str, int], _Part] = {}

    def write(self, records: Sequence[TrialRecord], results: Sequence[TaskResult]) -> None:
        """Writes all of a run. Raises `StoreError` when that cannot be done."""
        by_place: dict[tuple[int, str, int], list[TrialRecord]] = {}
        for record in records:
            by_place.setdefault((record.task, record.method, record.seed), []).append(record)
        for own in by_place.values():
            own.sort(key=lambda r: r.trial_key)
        ordered = [record for place in sorted(by_place) for record in by_place[place]]
        layers = self._layers or next((r.layers for r in ordered if r.layers), ())
        names = sorted({name for r in ordered for name in r.hyperparameters})
        selections = {
            (s.task, s.method, s.seed): s for s in (result.selection for result in results)
        }
        parts, self._parts = self._parts, {}
        for place in sorted(by_place):
            source = (by_place[place], selections.get(place), names, layers)
            known = parts.get(place)
            same = known is not None and known.made_from == source
            self._parts[place] = known if known and same else _part(*source)
        made = self._parts.values()
        _write_parquet(
            self._out / "trials.parquet", [p.trials for p in made], _trial_columns(names), layers
        )
        _write_parquet(self._out / "scan.parquet", [p.points for p in made], _SCAN_COLUMNS, layers)
        accounts = [
            {
                **{name: getattr(result.selection, name) for name in ("method", "seed", "task")},
                **layer.to_json(),
                "transfer": result.transfer,
            }
            for result in sorted(results, key=lambda r: (r.selection.task, str(r.selection.chain)))
            for layer in result.capacity
        ]
        capacity = _table(accounts, _CAPACITY_COLUMNS, ())
        _write_parquet(self._out / "capacity.parquet", [capacity], _CAPACITY_COLUMNS, ())


def _part(
    records: Sequence[TrialRecord],
    selection: Selection | None,
    names: Sequence[str],
    layers: Sequence[str],
) -> _Part:
    trials = [_trial_row(r, selection, names, layers) for r in records]
    points = [_scan_row(r, i, layers) for r in records for i in range(len(r.scan))]
    return _Part(
        (records, selection, names, layers),
        _table(trials, _trial_columns(names), layers),
        _table(points, _SCAN_COLUMNS, layers),
    )


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


def _write_parquet(
    path: Path, parts: Sequence[Any], columns: Mapping[str, str], layers: Sequence[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = pa.concat_tables([*parts, _table([], columns, layers)])
    whole = whole.replace_schema_metadata({_COLUMNS: _digest(whole.schema)})
    sink = pa.BufferOutputStream()
    pq.write_table(whole, sink, compression="zstd", write_page_checksum=True)
    atomic_write(path, sink.getvalue().to_pybytes())


def read_table(path: Path) -> Any:
    """A table that `write_tables` wrote. Raises `FileNotFoundError`, and `DamagedError` for a file
    that is cut or changed: pages have their checksums, and the columns have one of ours."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, page_checksum_verification=True)
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
    """The trials that `write_tables` wrote, from the tables of `trials.parquet` and `scan.parquet`.

    What these do not hold (curves, widths, free neurons before pruning) is left empty: the journal
    has it, but reading it takes the models of all trials off the disk. So are the scans of trials
    below the floor, which no figure shows: most of what there is. Raises `KeyError`,
    `ValueError` or `TypeError` for other tables.
    """
    with _uncollected():
        return list(_read(trials, scan))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the cyclic garbage collector: half the time of making as many objects as there are
    points, none of which is garbage."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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
    import numpy as np
    import pyarrow as pa

    keys = scan["trial_key"].combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    by_layer = scan["free_by_layer"].combine_chunks()
    layers = by_layer.flatten() if pa.types.is_struct(by_layer.type) else []
    free = zip(*(layer.to_pylist() for layer in layers), strict=True)
    rows = list(map(ScanPoint, scan["threshold"].to_pylist(), scan["accuracy"].to_pylist(), free))
    edges = np.append(starts, len(rows))
    places = zip(_places(scan.take(starts)), edges, edges[1:], strict=False)
    return {place: tuple(rows[start:end]) for place, start, end in places}
