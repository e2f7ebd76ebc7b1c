"""Lists of two runs compared on sampled users."""

from pathlib import Path

import pyarrow as pa

from recsys_batch.evaluation.drift import compare_runs
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.tables.slice_writer import TableSlice
from recsys_batch.tables.user_ranges import UserSortedFiles


def topk_files(folder: Path, lists: dict[int, list[int]]) -> UserSortedFiles:
    where = TableSlice(str(folder), TABLES["topk"], IdTypes("BIGINT", "BIGINT"), {"run_date": "2026-03-01", "run_id": "r"}, 10**9)
    empty = dict.fromkeys(where.schema.names)
    rows = [
        {**empty, "user_id": user, "rank": rank, "item_id": item, "score": 1.0 / rank, "candidate_rank": rank, "source": "model"}
        for user, items in lists.items()
        for rank, item in enumerate(items, start=1)
    ]
    return UserSortedFiles(where, list(where.write([pa.RecordBatch.from_pylist(rows, schema=where.schema)], 0)))


def test_overlap_is_of_users_in_both_runs(tmp_path: Path) -> None:
    # The first and the last user of a file are left out of a sample.
    now, before = (
        topk_files(tmp_path / "now", {1: [10, 20], 2: [10, 30], 3: [10], 4: [10]}),
        topk_files(tmp_path / "before", {2: [30, 40], 3: [10]}),
    )
    compared = compare_runs(now, before)
    assert compared is not None
    assert compared.jaccard.tolist() == [1 / 3, 1.0]


def test_runs_without_a_common_user_are_not_compared(tmp_path: Path) -> None:
    now, before = topk_files(tmp_path / "now", {1: [10], 2: [20]}), topk_files(tmp_path / "before", {7: [10], 8: [20]})
    assert compare_runs(now, before) is None
