"""Distributing many items over the lists of an index: trained once on the driver, assigned in tasks, merged on the driver."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

from recsys_batch.ann.index import ASSIGN_ROWS, Assign, assign
from recsys_batch.ann.kernels import limit_threads
from recsys_batch.spark.batches import BatchFunction


def assign_in_tasks(spark: SparkSession, drafts: Path) -> Assign:
    """An ``Assign`` that gives each block of rows to a task. The vectors travel as a file in ``drafts``, which all nodes mount."""

    def run(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        folder = drafts / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            np.save(folder / "vectors.npy", vectors)
            np.save(folder / "centroids.npy", centroids)
            n_blocks = -(-len(vectors) // ASSIGN_ROWS)
            blocks = spark.range(0, n_blocks, 1, n_blocks).mapInArrow(block_assigner(str(folder)), "block BIGINT, lists ARRAY<BIGINT>")
            table = blocks.toArrow().sort_by("block")
            return np.asarray(table["lists"].combine_chunks().flatten().to_numpy())
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return run


def block_assigner(folder: str) -> BatchFunction:
    """A function for mapInArrow: numbers of blocks of ``ASSIGN_ROWS`` rows -> (block, the list of each of its rows)."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        limit_threads(1)
        vectors = np.load(Path(folder) / "vectors.npy", mmap_mode="r")
        centroids = np.load(Path(folder) / "centroids.npy")
        for batch in batches:
            for block in batch.column(0).to_pylist():
                lists = assign(np.ascontiguousarray(vectors[block * ASSIGN_ROWS : (block + 1) * ASSIGN_ROWS]), centroids)
                columns = [pa.array([block]), pa.array([lists], type=pa.list_(pa.int64()))]
                yield pa.RecordBatch.from_arrays(columns, names=["block", "lists"])

    return run
