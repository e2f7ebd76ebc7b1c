"""What a task writes, and what it tells of it."""

from pathlib import Path

import pyarrow as pa

from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.executors.part_writer import make_part_writer, pass_through
from recsys_batch.tables.slice_writer import TableSlice


def test_a_writer_tells_its_files_and_nothing_of_no_rows(tmp_path: Path) -> None:
    where = TableSlice(str(tmp_path), TABLES["candidates"], IdTypes("BIGINT", "BIGINT"), {"run_id": "r1"}, 10**9)
    rows = pa.RecordBatch.from_pylist([{"user_id": 7, "items": []}], schema=where.schema)
    (told,) = make_part_writer(pass_through, where)(iter([rows]))
    assert (told["n_rows"].to_pylist(), told["first"].to_pylist()) == ([1], ["7"])
    assert list(make_part_writer(pass_through, where)(iter([]))) == []
