"""Files read by ranges of user_id, and rows taken out and put in at their places."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.tables import slice_writer
from recsys_batch.tables.slice_writer import DataFile, TableSlice
from recsys_batch.tables.user_ranges import UserSortedFiles, drop_users, group_boundaries, merge_sorted, ranges_of_files

IDS = IdTypes("BIGINT", "BIGINT")
SCHEMA = pa.schema([("user_id", pa.int64()), ("value", pa.int64())])
NAMES = pa.schema([("user_id", pa.string()), ("value", pa.int64())])


def files(folder: Path, groups: list[list[int]], value: int = 0) -> UserSortedFiles:
    """user_embeddings in a file per group; n_events is ``value``."""
    where = TableSlice(str(folder), TABLES["user_embeddings"], IDS, {"run_id": "r"}, 10**9)
    parts = []
    for task, users in enumerate(groups):
        rows = [{"user_id": user, "embedding": [1.0], "n_events": value} for user in users]
        parts += where.write([pa.RecordBatch.from_pylist(rows[at : at + 2], schema=where.schema) for at in range(0, len(rows), 2)], task)
    return UserSortedFiles(where, parts)


@given(lasts=st.lists(st.integers(-50, 50), max_size=6), user=st.integers(-60, 60))
def test_every_user_is_in_exactly_one_range(lasts: list[int], user: int) -> None:
    bounds = ranges_of_files([DataFile("p", 1, 1, last, last) for last in lasts])
    inside = [(after is None or user > after) and (upto is None or user <= upto) for after, upto in bounds]
    assert sum(inside) == 1


@pytest.mark.parametrize("row_group_bytes", [1, 10**9])
@pytest.mark.parametrize(
    ("bounds", "expected"), [((None, None), [1, 3, 5, 8, 9]), ((3, 8), [5, 8]), ((None, 3), [1, 3]), ((9, None), []), ((5, 7), [])]
)
def test_rows_between_leave_out_the_lower_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_group_bytes: int, bounds: tuple[int | None, int | None], expected: list[int]
) -> None:
    monkeypatch.setattr(slice_writer, "_ROW_GROUP_BYTES", row_group_bytes)
    found = files(tmp_path, [[1, 3, 5], [8, 9]])
    assert found.between(bounds)["user_id"].to_pylist() == expected
    assert [row["user_id"] for batch in found.batches(bounds, ["user_id"], 1) for row in batch.to_pylist()] == expected


def test_only_files_that_may_hold_the_users_are_read(tmp_path: Path) -> None:
    found = files(tmp_path, [[4], [5], [6]])
    for other in (found.parts[0], found.parts[2]):
        (tmp_path / other.path).unlink()
    assert found.between((4, 5), ["user_id"])["user_id"].to_pylist() == [5]


def test_columns_without_the_user_are_of_the_users_of_the_range(tmp_path: Path) -> None:
    assert files(tmp_path, [[1, 3, 5]], 7).between((1, 4), ["n_events"]).to_pylist() == [{"n_events": 7}]


def test_runs_tell_where_each_users_rows_begin() -> None:
    users, starts = group_boundaries(pa.array(["a", "a", "b", "c", "c", "c"]))
    assert (users.to_pylist(), starts.tolist()) == (["a", "b", "c"], [0, 2, 3, 6])
    assert group_boundaries(pa.array([], pa.int64()))[1].tolist() == [0]


# Users with one to three rows each, cut into batches anywhere.
rows_by_user = st.dictionaries(st.integers(0, 30), st.integers(1, 3), max_size=12)


@given(carried=rows_by_user, fresh=rows_by_user, gone=st.sets(st.integers(0, 30)), n_rows=st.integers(1, 7), text=st.booleans())
def test_a_splice_is_what_sorting_all_rows_together_gives(
    carried: dict[int, int], fresh: dict[int, int], gone: set[int], n_rows: int, text: bool
) -> None:
    def table(counts: dict[int, int], first: int) -> pa.Table:
        rows: list[dict[str, Any]] = [
            {"user_id": f"u{user:02d}" if text else user, "value": first + n} for user in sorted(counts) for n in range(counts[user])
        ]
        return pa.Table.from_pylist(rows, schema=NAMES if text else SCHEMA)

    base, new = table(carried, 0), table(fresh, 100)
    users = [f"u{user:02d}" if text else user for user in sorted(gone | set(fresh))]
    changed = pa.array(users, base.schema.field("user_id").type)
    nothing = base.schema.empty_table().to_batches() or [pa.RecordBatch.from_pylist([], schema=base.schema)]
    found = list(merge_sorted([*nothing, *base.to_batches(n_rows), *nothing], changed, new))
    kept = [row for row in base.to_pylist() if row["user_id"] not in users]
    expected = sorted(kept + new.to_pylist(), key=lambda row: (row["user_id"], row["value"]))
    assert [row for batch, _ in found for row in batch.to_pylist()] == expected
    assert sum(n for _, n in found) == len(kept)
    left = [row for batch in base.to_batches(n_rows) for row in drop_users(batch, changed).to_pylist()]
    assert left == kept
