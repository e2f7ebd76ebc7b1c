"""Slices: files written by tasks, nothing visible before the commit, the whole slice replaced by it."""

import datetime as dt
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from recsys_batch.errors import RecsysBatchError
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.tables.delta_log import commit, list_data_files
from recsys_batch.tables.slice_writer import DataFile, TableSlice, data_file_from_row, data_file_to_batch

IDS = IdTypes("STRING", "BIGINT")
DAY = dt.date(2026, 3, 1)
NOW = dt.datetime(2026, 3, 1, 2, tzinfo=dt.UTC)


def slice_in(folder: Path, run: str = "r1", target_bytes: int = 10**9) -> TableSlice:
    spec = TABLES["topk"]
    if not DeltaTable.is_deltatable(str(folder)):
        DeltaTable.create(str(folder), spec.arrow_schema(IDS), partition_by=list(spec.partition_by))
    return TableSlice(str(folder), spec, IDS, {"run_date": DAY, "run_id": run}, target_bytes)


def batch(where: TableSlice, users: list[str | None], k: int = 3) -> pa.RecordBatch:
    n = len(users) * k
    columns: dict[str, Any] = {
        "user_id": [user for user in users for _ in range(k)],
        "rank": list(range(1, k + 1)) * len(users),
        "item_id": list(range(n)),
        "score": [1.0] * n,
        "candidate_rank": [1] * n,
        "source": ["model"] * n,
        "model_version": ["1"] * n,
        "generated_at": [NOW] * n,
    }
    return pa.RecordBatch.from_arrays([pa.array(columns[field.name], field.type) for field in where.schema], schema=where.schema)


def users_in(folder: Path) -> list[str]:
    return sorted(set(DeltaTable(str(folder)).to_pyarrow_table()["user_id"].to_pylist()))


def test_nothing_is_visible_before_the_commit_and_all_of_it_after(tmp_path: Path) -> None:
    where = slice_in(tmp_path)
    parts = [part for task in range(3) for part in where.write([batch(where, [f"u{task}a", f"u{task}b"])], task)]
    assert users_in(tmp_path) == []
    version = commit(where, parts, {"by": "test"})
    assert version == DeltaTable(str(tmp_path)).version() == 1
    assert users_in(tmp_path) == ["u0a", "u0b", "u1a", "u1b", "u2a", "u2b"]
    rows = DeltaTable(str(tmp_path)).to_pyarrow_table().to_pylist()
    assert {(row["run_date"], row["run_id"], row["generated_at"]) for row in rows} == {(DAY, "r1", NOW)}
    assert [(part.first, part.last, part.n_rows) for part in list_data_files(where)] == [(f"u{n}a", f"u{n}b", 6) for n in range(3)]


def test_a_commit_replaces_its_own_slice_and_no_other(tmp_path: Path) -> None:
    first, second = slice_in(tmp_path, "r1"), slice_in(tmp_path, "r2")
    commit(first, list(first.write([batch(first, ["a"])], 0)), {})
    commit(second, list(second.write([batch(second, ["b"])], 0)), {})
    commit(first, list(first.write([batch(first, ["c"])], 0)), {})
    assert users_in(tmp_path) == ["b", "c"]
    assert commit(first, [], {}) == 4
    assert users_in(tmp_path) == ["b"]
    assert commit(first, [], {}) == 4  # nothing to do is no commit
    assert list_data_files(first) == []


def test_the_version_is_that_of_this_commit_even_if_another_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = slice_in(tmp_path)
    plain = DeltaTable.create_write_transaction

    def and_another(table: DeltaTable, *args: Any, **options: Any) -> None:
        plain(table, *args, **options)
        monkeypatch.setattr(DeltaTable, "create_write_transaction", plain)
        other = slice_in(tmp_path, "r2")
        commit(other, list(other.write([batch(other, ["z"])], 0)), {})

    monkeypatch.setattr(DeltaTable, "create_write_transaction", and_another)
    assert commit(where, list(where.write([batch(where, ["a"])], 0)), {}) == 1
    assert DeltaTable(str(tmp_path)).version() == 2


def test_a_file_is_closed_at_the_target_size_and_a_user_is_found_in_one(tmp_path: Path) -> None:
    where = slice_in(tmp_path, target_bytes=20_000)
    users = [f"u{number:04d}" for number in range(2_000)]
    parts = list(where.write((batch(where, users[start : start + 50]) for start in range(0, 2_000, 50)), 0))
    assert len(parts) > 3
    assert all(part.last < following.first for part, following in pairwise(parts))
    commit(where, parts, {})
    files = [str(tmp_path / part.path) for part in parts]
    assert sorted(Path(file).stat().st_size for file in files) == sorted(part.n_bytes for part in parts)
    query = f"SELECT count(*) FROM read_parquet({files}) WHERE user_id = 'u1234'"
    assert duckdb.sql(query).fetchone() == (3,)
    holding = [part for part in list_data_files(where) if part.first <= "u1234" <= part.last]
    assert len(holding) == 1
    assert pq.read_table(tmp_path / holding[0].path, partitioning=None, filters=[("user_id", "=", "u1234")]).num_rows == 3


def test_a_null_that_the_contract_forbids_is_refused(tmp_path: Path) -> None:
    where = slice_in(tmp_path)
    with pytest.raises(RecsysBatchError, match="topk would get 3 rows without user_id"):
        list(where.write([batch(where, ["a", None])], 0))


def test_empty_batches_make_no_file(tmp_path: Path) -> None:
    where = slice_in(tmp_path)
    assert list(where.write([], 0)) == list(where.write([batch(where, [])], 0)) == []


@pytest.mark.parametrize(("first", "last"), [(1, 9), ("a", "é"), (None, None)])
def test_what_a_task_tells_arrives_as_it_was(first: Any, last: Any) -> None:
    part = DataFile("run_id=r/part-0.parquet", 10, 2, first, last)
    assert [data_file_from_row(row) for row in data_file_to_batch(part).to_pylist()] == [part]
