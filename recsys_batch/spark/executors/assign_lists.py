"""Assignment of many items to the lists of an index: trained once on the driver, assigned in tasks, merged on the driver."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

from recsys_batch.ann.index import ASSIGN_ROWS, AssignFunction, assign_to_lists
from recsys_batch.ann.kernels import limit_threads
from recsys_batch.spark.executors.functions import BatchFunction
from recsys_batch.storage.artifacts import put_folder, remove_folder
from recsys_batch.storage.node_cache import NodeCache


def assign_in_tasks(spark: SparkSession, root: str, cache: NodeCache) -> AssignFunction:
    """Make an ``AssignFunction`` that gives each block of rows to a task. The vectors travel as an artefact of ``root`` meanwhile."""

    def run(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        def write(folder: Path) -> None:
            np.save(folder / "vectors.npy", vectors)
            np.save(folder / "centroids.npy", centroids)
            # No other night's, even of the same items: it goes when this one has it.
            (folder / "whose").write_text(uuid.uuid4().hex, encoding="utf-8")

        folder = put_folder(root, "drafts", write)
        try:
            n_blocks = -(-len(vectors) // ASSIGN_ROWS)
            assigner = make_block_assigner(folder, cache)
            blocks = spark.range(0, n_blocks, 1, n_blocks).mapInArrow(assigner, "block BIGINT, lists ARRAY<BIGINT>")
            table = blocks.toArrow().sort_by("block")
            return np.asarray(table["lists"].combine_chunks().flatten().to_numpy())
        finally:
            remove_folder(folder)

    return run


def make_block_assigner(location: str, cache: NodeCache) -> BatchFunction:
    """Make a function for mapInArrow: numbers of blocks of ``ASSIGN_ROWS`` rows -> (block, the list of each of its rows)."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        limit_threads(1)
        folder = cache.local_copy(location)
        vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        centroids = np.load(folder / "centroids.npy")
        for batch in batches:
            for block in batch.column(0).to_pylist():
                lists = assign_to_lists(np.ascontiguousarray(vectors[block * ASSIGN_ROWS : (block + 1) * ASSIGN_ROWS]), centroids)
                columns = [pa.array([block]), pa.array([lists], type=pa.list_(pa.int64()))]
                yield pa.RecordBatch.from_arrays(columns, names=["block", "lists"])

    return run
