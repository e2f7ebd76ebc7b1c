"""Rows carried forward by file, and rows computed again in their places."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.slices import Part, Slice, counts_of
from recsys_batch.spark.carry import CARRIED, COMPUTED, Files, ranges, replaced

IDS = IdTypes("BIGINT", "BIGINT")


def files(folder: Path, groups: list[list[int]], value: int) -> Files:
    """user_embeddings in a file per group; n_events is ``value``."""
    where = Slice(str(folder), TABLES["user_embeddings"], IDS, {"run_id": "r"}, 10**9)
    parts = []
    for task, users in enumerate(groups):
        rows = [{"user_id": user, "embedding": [1.0], "n_events": value} for user in users]
        parts += where.write([pa.RecordBatch.from_pylist(rows, schema=where.schema)], task)
    return Files(where, parts)


@given(lasts=st.lists(st.integers(-50, 50), max_size=6), user=st.integers(-60, 60))
def test_every_user_is_in_exactly_one_range(lasts: list[int], user: int) -> None:
    bounds = ranges([Part("p", 1, 1, last, last) for last in lasts])
    inside = [(after is None or user > after) and (upto is None or user <= upto) for after, upto in bounds]
    assert sum(inside) == 1


@pytest.mark.parametrize(
    ("bounds", "expected"), [((None, None), [1, 3, 5, 8, 9]), ((3, 8), [5, 8]), ((None, 3), [1, 3]), ((9, None), []), ((5, 7), [])]
)
def test_rows_between_leave_out_the_lower_end(tmp_path: Path, bounds: tuple[int | None, int | None], expected: list[int]) -> None:
    assert files(tmp_path, [[1, 3, 5], [8, 9]], 0).between(bounds)["user_id"].to_pylist() == expected


def test_changed_users_are_taken_out_and_fresh_rows_put_in_wherever_they_fall(tmp_path: Path) -> None:
    base, fresh = files(tmp_path / "base", [[10, 20, 30], [40, 50]], 1), files(tmp_path / "fresh", [[5, 20, 35, 60]], 2)
    # 50 has changed and has no row any more.
    pq.write_table(pa.table({"user_id": [5, 20, 35, 50, 60]}), tmp_path / "changed.parquet")
    bounds = ranges(base.parts)
    function = replaced(base, fresh, tmp_path / "changed.parquet", bounds)
    found, counts = [], []
    for number in range(len(bounds)):
        batches = list(function(iter([pa.RecordBatch.from_pydict({"id": [number]})])))
        counts.append({name: sum(counts_of(batch).get(name, 0) for batch in batches) for name in (CARRIED, COMPUTED)})
        found.append([(row["user_id"], row["n_events"]) for batch in batches for row in batch.to_pylist()])
    assert found == [[(5, 2), (10, 1), (20, 2), (30, 1)], [(35, 2), (40, 1), (60, 2)]]
    assert counts == [{CARRIED: 2, COMPUTED: 2}, {CARRIED: 1, COMPUTED: 2}]
