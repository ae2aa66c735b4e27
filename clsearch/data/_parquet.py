"""Parquet files of encoded images, as public hubs keep them: `image: {bytes, path}`, `label`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clsearch.data._images import Encoded
from clsearch.data._labels import Label
from clsearch.errors import InputError

ROWS = 256
"""Images decoded from one read."""


def read_labels(files: Sequence[Path], column: str, field: str) -> list[Label]:
    """The labels of all rows of all files: whole numbers or texts.

    Raises `InputError` at `field` for a file that cannot be read, a column that is not there and
    labels of another kind or missing.
    """
    labels: list[Label] = []
    for file in files:
        for batch in _batches(file, column, field):
            kind = batch.type
            if not (pa.types.is_integer(kind) or pa.types.is_string(kind)) or batch.null_count:
                allowed = "a column of whole numbers or texts, one in every row"
                found = f"In {file} it is {kind} with {batch.null_count} missing."
                raise InputError(field, column, allowed, found)
            labels += batch.to_pylist()
    return labels


@dataclass(frozen=True)
class EncodedRows:
    """The images of all rows of all files, each with its label and the name `<file>, row <n>`.

    The column holds bytes, or sections with bytes under `bytes`; `InputError` at `field` is raised
    for one that does not. Files are read anew at every pass.
    """

    files: Sequence[Path]
    column: str
    labels: Sequence[int]
    field: str

    def __iter__(self) -> Iterator[Encoded]:
        labels = iter(self.labels)
        for file in self.files:
            rows = chain.from_iterable(self._contents(file))
            for row, content in enumerate(rows):
                yield Encoded(f"{file.name}, row {row}", content or b"", next(labels))

    def _contents(self, file: Path) -> Iterator[list[bytes | None]]:
        """The bytes of some rows at a time."""
        for batch in _batches(file, self.column, self.field):
            inner = batch
            if pa.types.is_struct(batch.type) and batch.type.get_field_index("bytes") >= 0:
                inner = batch.field("bytes")
            if not (pa.types.is_binary(inner.type) or pa.types.is_large_binary(inner.type)):
                allowed = "a column of bytes, or of sections with bytes under `bytes`"
                found = f"In {file} it is {batch.type}."
                raise InputError(self.field, self.column, allowed, found)
            yield inner.to_pylist()


def _batches(file: Path, column: str, field: str) -> Iterator[pa.Array]:
    """One column of a file, `ROWS` rows at a time."""
    try:
        with pq.ParquetFile(file) as parquet:
            known = parquet.schema_arrow.names
            if column not in known:
                allowed = f"one of the columns of {file}: {', '.join(known)}"
                raise InputError(field, column, allowed)
            for batch in parquet.iter_batches(ROWS, columns=[column]):
                yield batch.column(0)
    except (OSError, pa.ArrowException) as error:
        allowed = "readable Parquet files"
        said = " ".join(str(error).split())
        raise InputError(field, str(file), allowed, f"The reader said: {said}") from error
