"""`trials.parquet`, `scan.parquet` and `capacity.parquet`: a row for each trial, for each trial and
threshold, and for each chain, task and layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
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
    """Writes `trials.parquet`, `scan.parquet` and `capacity.parquet`.

    `layers` names the unit layers in order; by default the records do. A trial's sparsity,
    threshold, accuracy and free neurons after pruning are the selector's; a fine-tuned trial has
    them where it is the selected one.
    """
    ordered = sorted(records, key=lambda r: (r.task, r.method, r.seed, r.trial_key))
    layers = layers or next((r.layers for r in ordered if r.layers), ())
    selections = {(s.method, s.seed, s.task): s for s in (r.selection for r in results)}
    names = sorted({name for r in ordered for name in r.hyperparameters})
    trials = [
        _trial_row(r, selections.get((r.method, r.seed, r.task)), names, layers) for r in ordered
    ]
    points = [_scan_row(r, i, layers) for r in ordered for i in range(len(r.scan))]
    _write_parquet(out / "trials.parquet", trials, _trial_columns(names), layers)
    _write_parquet(out / "scan.parquet", points, _SCAN_COLUMNS, layers)
    accounts = [
        {
            **{name: getattr(result.selection, name) for name in ("method", "seed", "task")},
            **layer.to_json(),
            "transfer": result.transfer,
        }
        for result in sorted(results, key=lambda r: (r.selection.task, str(r.selection.chain)))
        for layer in result.capacity
    ]
    _write_parquet(out / "capacity.parquet", accounts, _CAPACITY_COLUMNS, ())


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


def _write_parquet(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], layers: Sequence[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def type_of(kind: str) -> Any:
        if kind not in _BY_LAYER:
            return pa.type_for_alias(kind)
        value = pa.type_for_alias(_BY_LAYER[kind])
        return pa.struct([(layer, value) for layer in layers]) if layers else pa.null()

    schema = pa.schema((name, type_of(kind)) for name, kind in columns.items())
    arrays = [pa.array([row[f.name] for row in rows], type=f.type) for f in schema]
    table = pa.Table.from_arrays(arrays, schema=schema.with_metadata({_COLUMNS: _digest(schema)}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
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
    has it, but reading it takes the models of all trials off the disk. Raises `KeyError`,
    `ValueError` or `TypeError` for other tables.
    """
    points = _points(scan)
    fields = ("status", "reason", "validation_accuracy", "drift", "epochs", "duration", "started",
              "device", "host", "pack_size")  # fmt: skip
    columns = [trials[name].to_pylist() for name in fields]
    hypers = map(json.loads, trials["hyperparameters"].to_pylist())
    tuned = trials["fine_tuned"].to_pylist()
    records = []
    for place, *values, hyper, origin in zip(_places(trials), *columns, hypers, tuned, strict=True):
        method, seed, task, key = place
        found = dict(zip(fields, values, strict=True))
        own = points.get(place, ())
        records.append(
            TrialRecord(key, method, seed, task, hyper, scan=own, fine_tuned=origin or "", **found)
        )
    return records


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
