"""Tables in a store: what tasks write there is read back by rows and by ranges, and of commits at the same time none is lost."""

import datetime as dt
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from recsys_batch.errors import InputMissing
from recsys_batch.read import has_table, open_table, read_table, rows_in, run_rows
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.storage.filesystems import file_sizes, join, list_entries, storage_options
from recsys_batch.tables.appended_files import NotAppendOnly, list_appended_files
from recsys_batch.tables.delta_log import append, commit, list_data_files, open_delta_table
from recsys_batch.tables.slice_writer import TableSlice
from recsys_batch.tables.user_ranges import UserSortedFiles, ranges_of_files

IDS = IdTypes("STRING", "BIGINT")
NOW = dt.datetime(2026, 3, 1, 2, tzinfo=dt.UTC)


@pytest.fixture(params=["bucket", pytest.param("hdfs_folder", marks=pytest.mark.slow)])
def warehouse(request: pytest.FixtureRequest) -> str:
    """A folder in each kind of store."""
    return str(request.getfixturevalue(request.param))


def created(location: str, name: str) -> str:
    folder = join(location, name)
    spec = TABLES[name]
    partitions = list(spec.partition_by) or None
    DeltaTable.create(folder, spec.arrow_schema(IDS), partition_by=partitions, storage_options=storage_options(folder))
    return folder


def slice_of(folder: str, run: str = "r1", target_bytes: int = 10**9) -> TableSlice:
    return TableSlice(folder, TABLES["user_embeddings"], IDS, {"run_id": run}, target_bytes)


def batch(where: TableSlice, users: list[str]) -> pa.RecordBatch:
    columns: dict[str, Any] = {"user_id": users, "embedding": [[1.0, 2.0]] * len(users), "n_events": [3] * len(users)}
    return pa.RecordBatch.from_arrays([pa.array(columns[field.name], field.type) for field in where.schema], schema=where.schema)


def test_what_tasks_wrote_is_there_after_the_commit_and_read_by_rows_and_ranges(warehouse: str) -> None:
    assert not has_table(warehouse, "user_embeddings")
    with pytest.raises(InputMissing, match=f"table user_embeddings does not exist at {warehouse}"):
        open_table(warehouse, "user_embeddings")
    where = slice_of(created(warehouse, "user_embeddings"))
    parts = [part for task in range(3) for part in where.write([batch(where, [f"u{task}a", f"u{task}b"])], task)]
    assert file_sizes(where.root, [part.path for part in parts]) == {part.path: part.n_bytes for part in parts}
    assert read_table(warehouse, "user_embeddings").num_rows == 0
    assert commit(where, parts, {"by": "test"}) == 1
    assert sorted(read_table(warehouse, "user_embeddings")["user_id"].to_pylist()) == ["u0a", "u0b", "u1a", "u1b", "u2a", "u2b"]
    found = list_data_files(where)
    assert [(part.first, part.last, part.n_bytes) for part in found] == [(part.first, part.last, part.n_bytes) for part in parts]
    files = UserSortedFiles(where, found)
    by_range = [files.between(bounds, ["user_id"])["user_id"].to_pylist() for bounds in ranges_of_files(found)]
    assert by_range == [["u0a", "u0b"], ["u1a", "u1b"], ["u2a", "u2b"]]
    assert files.between(("u0a", "u1a"))["user_id"].to_pylist() == ["u0b", "u1a"]
    assert commit(where, [], {}) == 2
    assert read_table(warehouse, "user_embeddings").num_rows == 0
    assert read_table(warehouse, "user_embeddings", version=1).num_rows == 6


def test_a_task_that_died_leaves_nothing_that_counts(warehouse: str) -> None:
    where = slice_of(created(warehouse, "user_embeddings"), target_bytes=1)
    writing = where.write([batch(where, ["a"]), batch(where, ["b"])], 0)
    next(writing)
    writing.close()
    assert read_table(warehouse, "user_embeddings").num_rows == 0
    assert len([entry for entry in list_entries(where.root, recursive=True) if entry.name.endswith(".parquet")]) == 1


COMMITTING = """
import sys
sys.path.insert(0, sys.argv[3])
from test_tables_in_stores import batch, slice_of
from recsys_batch.tables.delta_log import commit
for number in range(4):
    where = slice_of(sys.argv[1], f"{sys.argv[2]}-{number}")
    commit(where, list(where.write([batch(where, [f"{sys.argv[2]}{number}"])], 0)), {})
"""


def test_commits_of_several_processes_at_the_same_time_are_all_kept(warehouse: str) -> None:
    folder = created(warehouse, "user_embeddings")
    here = str(Path(__file__).parent)
    writers = [subprocess.Popen([sys.executable, "-c", COMMITTING, folder, name, here]) for name in ("a", "b")]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert open_delta_table(folder).version() == 8
    assert sorted(read_table(warehouse, "user_embeddings")["user_id"].to_pylist()) == [f"{name}{n}" for name in "ab" for n in range(4)]


def test_the_manifest_is_read_row_by_row(warehouse: str) -> None:
    assert run_rows(warehouse) == []
    where = TableSlice(created(warehouse, "runs"), TABLES["runs"], IDS, {}, 2**20)
    row = {field.name: None for field in where.schema} | {"run_id": "r1", "run_date": NOW.date(), "attempt": 1, "status": "RUNNING"}
    row |= {"table_versions": [("topk", 3)], "input_versions": [], "model_version": "1", "code_version": "0", "config_hash": "h"}
    row |= {"metrics": [("started_at", 1.5)], "schema_version": 1}
    append(where, pa.Table.from_pylist([row], schema=where.schema), {})
    (found,) = run_rows(warehouse)
    assert (found.run_id, found.table_versions, found.metrics) == ("r1", {"topk": 3}, {"started_at": 1.5})
    assert rows_in(where.root) == [found]


def test_files_that_were_appended_since_are_found_in_the_log(warehouse: str) -> None:
    folder = created(warehouse, "user_embeddings")
    first, second = slice_of(folder, "r1"), slice_of(folder, "r2")
    commit(first, list(first.write([batch(first, ["a"])], 0)), {})
    commit(second, list(second.write([batch(second, ["b"])], 0)), {})
    before, since = list_appended_files(folder, 1, 2)
    assert [len(before), len(since)] == [1, 1]
    assert before[0].startswith(f"{folder}/run_id=r1/") and since[0].startswith(f"{folder}/run_id=r2/")
    commit(first, [], {})
    with pytest.raises(NotAppendOnly, match="rows of interactions were removed"):
        list_appended_files(folder, 1, 3)
