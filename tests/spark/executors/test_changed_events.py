"""Of files that were known the changed users' rows, of new ones all."""

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.executors.changed_events import EventFiles, read_changed_events

IDS = IdTypes("STRING", "BIGINT")


def test_rows_tell_whether_they_were_known(tmp_path: Path) -> None:
    def file(name: str, *rows: tuple[str, int, int | None]) -> str:
        kinds = TABLES["interactions"].arrow_schema(IDS)
        listed = [
            {"user_id": user, "item_id": item, "weight": 1.0, "event_ts": us and dt.datetime.fromtimestamp(us, dt.UTC)}
            for user, item, us in rows
        ]
        pq.write_table(pa.Table.from_pylist(listed, schema=kinds), tmp_path / name)
        return str(tmp_path / name)

    pq.write_table(pa.table({"user_id": ["b"]}), tmp_path / "changed.parquet")
    wanted = EventFiles(
        [file("old", ("a", 1, 5), ("b", 2, 6)), file("none", ("a", 3, 7))], [file("new", ("c", 4, None))], str(tmp_path / "changed.parquet")
    )
    found = [
        row
        for batch in read_changed_events(wanted, IDS)(iter([pa.RecordBatch.from_pydict({"id": [0, 1, 2]})]))
        for row in batch.to_pylist()
    ]
    assert [tuple(row.values()) for row in found] == [("b", 2, 6_000_000, 1.0, True), ("c", 4, None, 1.0, False)]
