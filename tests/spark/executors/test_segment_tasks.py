"""Segments become rows on executors; a row that fits no column comes without ids and with its text, and costs no other."""

import datetime as dt
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK
from recsys_batch.dataset.log_rows import Exposure, FeedbackEvent, encode_row
from recsys_batch.dataset.log_segments import pack_segment
from recsys_batch.sources.file_tasks import FileTask, SourceFile
from recsys_batch.spark.executors.segment_tasks import make_segment_reader, segment_schema
from recsys_batch.spark.executors.source_tasks import TaskGroups

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
NUMBERS = pa.record_batch([pa.array([0])], names=["id"])


def exposure(request_id: str, **changed: Any) -> Exposure:
    row = Exposure(request_id, NOON, 1, "s", "7", "ranker", None, [10], [0.5])
    return row._replace(**changed)


def read(folder: Path, kind: str, rows: list[bytes]) -> list[dict[str, Any]]:
    path = folder / f"{kind}-1.segment"
    path.write_bytes(pack_segment([rows]))
    tasks = TaskGroups([[FileTask(0, SourceFile(str(path), path.stat().st_size), str(folder))]])
    batches = list(make_segment_reader(tasks, kind)(iter([NUMBERS])))
    assert all(batch.schema == segment_schema(kind) for batch in batches)
    return pa.Table.from_batches(batches).to_pylist()


def test_ids_of_either_spelling_come_as_text(tmp_path: Path) -> None:
    (row,) = read(tmp_path, EXPOSURES, [encode_row(exposure("r", user_id=2**63, item_ids=[7], session_item_ids=[1, "two"]))])
    assert (row["user_id"], row["items"][0]["item_id"], row["session_item_ids"]) == (str(2**63), "7", ["1", "two"])
    (told,) = read(tmp_path, FEEDBACK, [encode_row(FeedbackEvent("r", "guest-1", 7, NOON, "click"))])
    assert (told["user_id"], told["item_id"], told["event_ts"]) == ("guest-1", "7", NOON)


BROKEN: dict[str, Any] = {
    "fewer scores than items": exposure("broken", scores=[]),
    "a rank beyond 32 bits": exposure("broken", candidate_ranks=[2**40]),
    "a time that is none": exposure("broken", shown_at="noon"),
    "a missing item": exposure("broken", item_ids=[None]),
    "no row": "broken",
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_a_row_that_cannot_be_costs_no_other(tmp_path: Path, broken: Any) -> None:
    good = [encode_row(exposure(f"r{number}")) for number in range(5)]
    rows = read(tmp_path, EXPOSURES, [*good[:3], msgspec.msgpack.encode(broken), *good[3:]])
    assert sorted(row["request_id"] for row in rows) == ["", *(f"r{number}" for number in range(5))]
    (unreadable,) = (dict(row["attributes"])["unreadable"] for row in rows if not row["request_id"])
    assert "broken" in unreadable
