"""Slices of a table: Parquet written where the rows are made, straight from Arrow, and made visible by one commit.

A task writes its rows to files of its own name and tells what it wrote; nothing is in the table until ``commit`` adds all of them
and removes what the slice held before, in one entry of the Delta log. Files of tasks that died, or of an attempt that was never
committed, belong to nothing and are removed by VACUUM.
"""

import datetime as dt
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_batch.errors import RecsysBatchError
from recsys_batch.schemas import IdTypes, TableSpec
from recsys_batch.storage.filesystems import join, open_output

_ROW_GROUP_BYTES = 8 * 2**20  # uncompressed: what a reader of one user's rows has to decode
_REPEATING = ("run_id", "user_id", "source", "model_version", "segment", "reason", "rank", "generated_at")
"""Columns whose values repeat in a run of rows; the others are not worth a dictionary."""
_FEW = ("source", "model_version")
"""Text of few values, which stays a dictionary in memory: neither read nor written word by word."""
WRITE_MS, PYTHON_MS = "write_ms", "python_ms"
"""Counts of every part: milliseconds in which it was encoded and written, and of processor time of the Python worker in all."""


@dataclass(frozen=True)
class DataFile:
    """A file of a slice.

    Attributes:
        path: within the table's folder.
        first, last: smallest and largest key; None where the table has none.
        counts: what the task counted while it made the rows (``counted``).
    """

    path: str
    n_bytes: int
    n_rows: int
    first: Any
    last: Any
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TableSlice:
    """Location of a run's rows in a table; small, as it travels to executors.

    Attributes:
        root: the table's folder, as a location that every node reaches: on a path that all mount, or in a store.
        partition: partition column -> value, for all of ``spec.partition_by``; empty for files that no table has.
        target_bytes: a task's file is closed at about this size, and another one begun.
    """

    root: str
    spec: TableSpec
    ids: IdTypes
    partition: Mapping[str, str | dt.date]
    target_bytes: int

    @cached_property
    def schema(self) -> pa.Schema:
        """Schema of the files: the table's without its partition columns."""
        return pa.schema([field for field in self.spec.arrow_schema(self.ids) if field.name not in self.partition])

    @cached_property
    def file_schema(self) -> pa.Schema:
        """``schema`` as rows are best given to ``write``: text of few values as dictionaries."""
        dictionary = pa.dictionary(pa.int32(), pa.string())
        return pa.schema([field.with_type(dictionary) if field.name in _FEW else field for field in self.schema])

    @property
    def key(self) -> str | None:
        """The column that files are told apart by."""
        return self.spec.key

    def file(self, name: str) -> str:
        """Path within the table's folder of a file of that name; a slice without a partition lies in the folder itself."""
        return "/".join([*(f"{column}={self.partition[column]}" for column in self.spec.partition_by if column in self.partition), name])

    def write(self, batches: Iterable[pa.RecordBatch], task: int) -> Iterator[DataFile]:
        """Write rows in the order in which they come; the files, each as it is closed.

        Args:
            batches: with at least the columns of ``schema``. task: goes into the names of the files.

        Raises:
            RecsysBatchError: a null where the contract has none.
        """
        writer: _Writer | None = None
        for batch in batches:
            if batch.num_rows == 0:
                continue
            writer = writer or _Writer(self, task)
            writer.add(self.conform(batch), read_counts(batch))
            if writer.n_bytes >= self.target_bytes:
                yield writer.close()
                writer = None
        if writer is not None:
            yield writer.close()

    def conform(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The contract's columns in ``file_schema``, 0.0 for -0.0: Spark calls the element of a list otherwise."""
        columns = (batch[name] for name in self.schema.names)
        same = [_as(column, kind) for column, kind in zip(columns, self.file_schema.types, strict=True)]
        return pa.RecordBatch.from_arrays(same, schema=self.file_schema)


def _as(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_floating(kind):  # -0.0, which some readers order below 0.0, becomes 0.0
        return pc.add(column.cast(kind), pa.scalar(0.0, kind))
    if column.type.equals(kind):
        return column
    return column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)


class _Writer:
    def __init__(self, where: TableSlice, task: int) -> None:
        self._where = where
        self._name = where.file(f"part-{task:05d}-{uuid.uuid4().hex}.parquet")
        self._sink = open_output(join(where.root, self._name))
        repeating = [name for name in where.schema.names if name in _REPEATING]
        # Statistics of the key alone: it is what files and row groups are told apart by.
        statistics = [where.key] if where.key else False
        # Without Arrow's own schema, in which a dictionary would not read as the text that it is.
        self._writer = pq.ParquetWriter(
            self._sink, where.file_schema, compression="snappy", use_dictionary=repeating, write_statistics=statistics, store_schema=False
        )
        self._required = [field.name for field in where.schema if not field.nullable]
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._counts: Counter[str] = Counter()
        self._n_rows, self._bounds = 0, pa.array([], type=where.schema.field(where.key).type if where.key else pa.null())

    @property
    def n_bytes(self) -> int:
        return int(self._sink.tell()) + self._pending_bytes // 2

    def add(self, batch: pa.RecordBatch, counts: Mapping[str, int]) -> None:
        self._counts.update(counts)
        for name in self._required:
            n_nulls = batch[name].null_count
            if n_nulls:
                raise RecsysBatchError(f"{self._where.spec.name} would get {n_nulls} rows without {name}: is the input broken?")
        self._n_rows += batch.num_rows
        if self._where.key:
            bounds = pc.min_max(batch[self._where.key])
            self._bounds = pa.concat_arrays([self._bounds, pa.array([bounds["min"].as_py(), bounds["max"].as_py()], self._bounds.type)])
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> DataFile:
        self._flush()
        self._writer.close()
        n_bytes = int(self._sink.tell())
        self._sink.close()
        key_bounds = pc.min_max(self._bounds)
        return DataFile(self._name, n_bytes, self._n_rows, key_bounds["min"].as_py(), key_bounds["max"].as_py(), dict(self._counts))

    def _flush(self) -> None:
        if self._pending:
            started = time.perf_counter()
            self._writer.write_table(pa.Table.from_batches(self._pending, schema=self._where.file_schema))
            self._counts[WRITE_MS] += round(1000 * (time.perf_counter() - started))
        self._pending, self._pending_bytes = [], 0


_JSON = ("first", "last", "counts")
DATA_FILE_SCHEMA = pa.schema({"path": pa.string(), "n_bytes": pa.int64(), "n_rows": pa.int64(), **dict.fromkeys(_JSON, pa.string())})
"""What a task tells of its files; keys, as they are numbers or text, and counts as JSON."""
_COUNTS = b"recsys_batch.counts"


def attach_counts(batch: pa.RecordBatch, counts: Mapping[str, int]) -> pa.RecordBatch:
    """The batch with numbers that are not in its rows; the writer adds them up."""
    return batch.replace_schema_metadata({_COUNTS: json.dumps(counts)}) if counts else batch


def read_counts(batch: pa.RecordBatch) -> dict[str, int]:
    """Read the counts that ``attach_counts`` added."""
    counts: dict[str, int] = json.loads((batch.schema.metadata or {}).get(_COUNTS, b"{}"))
    return counts


def data_file_to_batch(part: DataFile) -> pa.RecordBatch:
    """Describe a file as a row of DATA_FILE_SCHEMA."""
    row = asdict(part)
    row |= {name: json.dumps(row[name]) for name in _JSON}
    return pa.RecordBatch.from_pylist([row], schema=DATA_FILE_SCHEMA)


def data_file_from_row(row: Mapping[str, Any]) -> DataFile:
    """Read a file's description from a row of DATA_FILE_SCHEMA."""
    return DataFile(**{**row, **{name: json.loads(row[name]) for name in _JSON}})
