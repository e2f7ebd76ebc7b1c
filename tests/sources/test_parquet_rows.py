"""Parquet files as many writers make them: any layout of a type, structs by paths, folders as text, no bytes that pass for text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_batch.errors import SourceError
from recsys_batch.sources.file_tasks import FileTask, SourceFile
from recsys_batch.sources.parquet_rows import find_column_type, read_parquet_rows, read_parquet_schema
from recsys_batch.sources.source_format import SourceFormat

Rows = Callable[..., list[dict[str, Any]]]
PARQUET = SourceFormat(kind="parquet")


def written(path: Path, table: pa.Table, **options: Any) -> FileTask:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return FileTask(0, SourceFile(str(path), path.stat().st_size, str(path.parent)), str(path))


def test_layouts_of_text_and_structs_are_plain_columns(tmp_path: Path) -> None:
    table = pa.table(
        {
            "d": pa.array(["a", "b"]).dictionary_encode(),
            "large": pa.array(["x", None], pa.large_string()),
            "s": pa.array([{"x": {"y": "q"}}, None]),
            "cats": pa.array([[{"id": 1, "name": "S"}], None]),
        }
    )
    (raw,) = read_parquet_rows(written(tmp_path / "a.parquet", table), ["d", "large", "s.x.y", "cats.name", "absent"])
    found = {name: raw.columns[name].to_pylist() for name in ("d", "large", "s.x.y", "cats.name")}
    assert found == {"d": ["a", "b"], "large": ["x", None], "s.x.y": ["q", None], "cats.name": [["S"], None]}
    assert "absent" not in raw.columns
    schema = read_parquet_schema(written(tmp_path / "a.parquet", table))
    found_types = [find_column_type(schema, path) for path in ("s.x.y", "cats.name", "s.z")]
    assert found_types == [pa.string(), pa.string(), None]


def test_rows_are_numbered_in_the_file_and_read_by_name(tmp_path: Path) -> None:
    task = written(tmp_path / "a.parquet", pa.table({"u": range(200_000), "i": range(200_000)}), row_group_size=70_000)
    batches = list(read_parquet_rows(task, ["i"]))
    assert [place for raw in batches for place in raw.positions.tolist()] == list(range(200_000))
    assert {tuple(raw.columns) for raw in batches} == {("i",)}


def test_partition_folders_are_text(tmp_path: Path, rows: Rows) -> None:
    written(tmp_path / "user_id=000123" / "a.parquet", pa.table({"item_id": [1]}))
    path = tmp_path / "user_id=000123" / "a.parquet"
    task = FileTask(0, SourceFile(str(path), path.stat().st_size, str(tmp_path)), str(tmp_path))
    assert rows(task, PARQUET) == [{"item_id": 1, "user_id": "000123"}]
    assert read_parquet_schema(task).field("user_id").type == pa.string()


def test_text_that_is_no_utf8_is_refused_by_file_and_column(tmp_path: Path, rows: Rows) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    with pytest.raises(SourceError, match=r"bad.parquet: column user_id says that it is text"):
        rows(written(tmp_path / "bad.parquet", pa.table({"user_id": bad, "item_id": [1]})), PARQUET)


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("user_id,item_id\n")
    with pytest.raises(SourceError, match=r"a.parquet is not a Parquet file: pass the --format"):
        read_parquet_schema(FileTask(0, SourceFile(str(tmp_path / "a.parquet"), 1), ""))
