"""Executor code that reads interactions by file, for a night that needs few users' events: no row of the others leaves its task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.user_events import EVENTS
from recsys_batch.schemas import IdTypes
from recsys_batch.spark.executors.functions import BatchFunction
from recsys_batch.storage.filesystems import parquet_file, read_parquet

Rows = TypeVar("Rows", pa.RecordBatch, pa.Table)

_ROWS = 1_000_000  # the set of changed users is built anew for every batch of rows that are looked up in it


@dataclass(frozen=True)
class EventFiles:
    """Files of interactions, and the users whose rows are wanted.

    Attributes:
        before, since: files that the base knew, and those that came since. changed: location of a Parquet file of user_id.
    """

    before: Sequence[str]
    since: Sequence[str]
    changed: str

    @property
    def paths(self) -> list[str]:
        return [*self.before, *self.since]


def read_changed_events(event_files: EventFiles, ids: IdTypes) -> BatchFunction:
    """Make a function for mapInArrow: numbers of files -> rows of EVENTS: of old files the changed users', of new ones all."""
    schema = EVENTS.arrow_schema(ids)

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in (number for batch in batches for number in batch.column(0).to_pylist()):
            before = number < len(event_files.before)
            wanted = find_changed_users(event_files.changed) if before else None
            yield from read_event_file(event_files.paths[number], schema, wanted)

    return run


def read_event_file(path: str, schema: pa.Schema, among: pa.Array | None = None) -> Iterator[pa.RecordBatch]:
    """Read a file of interactions as rows of EVENTS: all of them, or those of some users, which are marked ``before``.

    Args:
        schema: of EVENTS.
    """
    with parquet_file(path) as file:
        for batch in file.iter_batches(_ROWS, columns=["user_id", "item_id", "event_ts", "weight"], use_threads=False):
            if among is not None:
                batch = batch.filter(pc.is_in(batch["user_id"], value_set=among))
            if batch.num_rows:
                yield to_events(batch, schema, among is not None)


def to_events(rows: Rows, schema: pa.Schema, before: bool = False) -> Rows:
    """Convert rows of interactions to rows of EVENTS."""
    event_us = rows["event_ts"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    columns = [rows["user_id"], rows["item_id"], event_us, rows["weight"], pa.repeat(before, rows.num_rows)]
    return type(rows).from_arrays(columns, names=schema.names).cast(schema)


@lru_cache(maxsize=2)
def find_changed_users(location: str) -> pa.Array:
    """Read the user_ids of a Parquet file; kept for the worker's next tasks."""
    return read_parquet(location)["user_id"].combine_chunks()
