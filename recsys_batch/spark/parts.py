"""Executor code around every step's: write what it makes as parts of a slice, and read parts without the JVM."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark import TaskContext

from recsys_batch.slices import PYTHON_MS, Part, Slice, part_batch
from recsys_batch.spark.batches import BatchFunction


def part_writer(function: BatchFunction, where: Slice) -> BatchFunction:
    """A function for mapInArrow: write what ``function`` makes, and give a row of ``PART_SCHEMA`` per file."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        started = time.process_time()
        for part in where.write(function(batches), context.partitionId() if context else 0):
            now = time.process_time()
            yield part_batch(replace(part, counts={**part.counts, PYTHON_MS: round(1000 * (now - started))}))
            started = now

    return run


def unchanged(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The function of a step whose rows Spark makes by itself."""
    return batches


def candidates_with_embeddings(
    candidates: Slice, part: Part, embeddings: Slice, embedding_parts: Sequence[Part], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Rows of a file of candidates with embedding and n_events of their users (null where there is none), in the file's order.

    Both tables are written by ranges of user_id, so that few files overlap; no row is shuffled to bring the two together.
    """
    names = ["user_id", "embedding", "n_events"]
    inside = (pc.field("user_id") >= part.first) & (pc.field("user_id") <= part.last)
    tables = [
        pq.read_table(Path(embeddings.root) / other.path, columns=names, filters=inside, partitioning=None, memory_map=True)
        for other in embedding_parts
        if part.overlaps(other)
    ]
    schema = pa.schema([embeddings.schema.field(name) for name in names])
    known = pa.concat_tables(tables).combine_chunks() if tables else schema.empty_table()
    users, *vectors = (known[name].combine_chunks() for name in names)
    with pq.ParquetFile(Path(candidates.root) / part.path, memory_map=True) as file:
        for batch in file.iter_batches(batch_size=batch_rows, columns=["user_id", "items"]):
            place = pc.index_in(batch["user_id"], value_set=users)
            found = [column.take(place) for column in vectors]
            yield pa.RecordBatch.from_arrays(
                [batch["user_id"], batch["items"], *found], names=["user_id", "items", "embedding", "n_events"]
            )
