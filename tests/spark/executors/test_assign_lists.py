"""Items assigned to lists in tasks are the same as on the driver."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from recsys_batch.ann import index
from recsys_batch.ann.index import build_index
from recsys_batch.config import Retrieval
from recsys_batch.spark.executors import assign_lists
from recsys_batch.spark.executors.assign_lists import assign_in_tasks, make_block_assigner
from recsys_batch.storage.node_cache import NodeCache

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CACHE = NodeCache("not asked: everything here is local")
VECTORS = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)


def test_blocks_come_back_with_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assign_lists, "ASSIGN_ROWS", 300)
    np.save(tmp_path / "vectors.npy", VECTORS)
    np.save(tmp_path / "centroids.npy", VECTORS[:20])
    batches = [pa.RecordBatch.from_pydict({"id": [3, 0]}), pa.RecordBatch.from_pydict({"id": pa.array([], pa.int64())})]
    found = {row["block"]: row["lists"] for part in make_block_assigner(str(tmp_path), CACHE)(iter(batches)) for row in part.to_pylist()}
    distances = np.square(VECTORS[:, None] - VECTORS[None, :20]).sum(axis=2).argmin(axis=1)
    assert found == {3: distances[900:].tolist(), 0: distances[:300].tolist()}


def test_an_index_assigned_in_tasks_is_the_same_file(spark: SparkSession, tmp_path: Path) -> None:
    settings = Retrieval(mode="ivf")
    here = build_index(VECTORS, settings, tmp_path / "here", 1)
    there = build_index(VECTORS, settings, tmp_path / "there", 1, assign_in_tasks(spark, str(tmp_path), CACHE))
    assert here == there
    assert list((tmp_path / "drafts").iterdir()) == []
    assert index.ASSIGN_ROWS == assign_lists.ASSIGN_ROWS
