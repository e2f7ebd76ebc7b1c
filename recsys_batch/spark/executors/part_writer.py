"""Executor code around every step's: write the rows that it makes as files of a slice."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
from pyspark import TaskContext

from recsys_batch.spark.executors.functions import BatchFunction, profile_batches
from recsys_batch.tables.slice_writer import PYTHON_MS, TableSlice, data_file_to_batch


def make_part_writer(function: BatchFunction, where: TableSlice) -> BatchFunction:
    """Make a function for mapInArrow: write what ``function`` makes, and give a row of ``DATA_FILE_SCHEMA`` per file."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        started = time.process_time()
        for part in where.write(function(batches), context.partitionId() if context else 0):
            now = time.process_time()
            yield data_file_to_batch(replace(part, counts={**part.counts, PYTHON_MS: round(1000 * (now - started))}))
            started = now

    return profile_batches(run, where.spec.name)


def pass_through(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Return the rows as they are: the function of a step whose rows Spark makes by itself."""
    return batches
