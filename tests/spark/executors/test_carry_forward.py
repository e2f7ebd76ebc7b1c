"""Rows carried forward by file, and rows computed again in their places."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.executors.carry_forward import CARRIED, COMPUTED, carry_forward
from recsys_batch.tables.slice_writer import TableSlice, attach_counts, read_counts
from recsys_batch.tables.user_ranges import UserRange, UserSortedFiles, ranges_of_files

IDS = IdTypes("BIGINT", "BIGINT")


def files(folder: Path, groups: list[list[int]], value: int) -> UserSortedFiles:
    """user_embeddings in a file per group; n_events is ``value``."""
    where = TableSlice(str(folder), TABLES["user_embeddings"], IDS, {"run_id": "r"}, 10**9)
    parts = []
    for task, users in enumerate(groups):
        rows = [{"user_id": user, "embedding": [1.0], "n_events": value} for user in users]
        parts += where.write([pa.RecordBatch.from_pylist(rows, schema=where.schema)], task)
    return UserSortedFiles(where, parts)


def test_changed_users_are_taken_out_and_fresh_rows_put_in_wherever_they_fall(tmp_path: Path) -> None:
    base, fresh = files(tmp_path / "base", [[10, 20, 30], [40, 50]], 1), files(tmp_path / "fresh", [[5, 20, 35, 60]], 2)
    # 50 has changed and has no row any more.
    pq.write_table(pa.table({"user_id": [5, 20, 35, 50, 60]}), tmp_path / "changed.parquet")
    bounds = ranges_of_files(base.parts)

    def compute(within: UserRange) -> Iterator[pa.RecordBatch]:
        for batch in fresh.batches(within):
            yield attach_counts(batch, {"looked at": batch.num_rows})

    function = carry_forward(base, compute, str(tmp_path / "changed.parquet"), bounds)
    found, counts = [], []
    for number in range(len(bounds)):
        batches = list(function(iter([pa.RecordBatch.from_pydict({"id": [number]})])))
        counts.append([sum(read_counts(batch).get(name, 0) for batch in batches) for name in (CARRIED, COMPUTED, "looked at")])
        found.append([(row["user_id"], row["n_events"]) for batch in batches for row in batch.to_pylist()])
    assert found == [[(5, 2), (10, 1), (20, 2), (30, 1)], [(35, 2), (40, 1), (60, 2)]]
    assert counts == [[2, 2, 2], [1, 2, 2]]
