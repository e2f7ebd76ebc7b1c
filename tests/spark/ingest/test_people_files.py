"""Files of the shapes that people have, through a whole ingest: every row is accounted for, and what a file does not say is said aloud."""

import datetime as dt
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from recsys_batch.errors import SourceError
from recsys_batch.schemas import IdTypes
from recsys_batch.sources.source_format import SourceFormat

PARQUET = SourceFormat(kind="parquet")


def put_days(folder: Path, *tables: pa.Table) -> str:
    folder.mkdir(parents=True)
    for day, table in enumerate(tables, start=1):
        pq.write_table(table, folder / f"{day}.parquet")
    return str(folder)


def test_days_that_lack_a_column_or_widen_it_are_one_source(shop: Any) -> None:
    ids = {"user_id": pa.array([1, 2], pa.int32()), "item_id": ["x", "y"]}
    days = [
        pa.table({**ids, "weight": pa.array([1, -1], pa.int32())}),
        pa.table({"user_id": [3.0, 4.0], "item_id": ["x", "y"], "weight": [2.5, -2.5]}),
        pa.table({"item_id": ["x", "z"], "user_id": ["5", "6"]}),
        pa.table({**ids, "weight": pa.nulls(2), "note": ["a", "b"]}),
    ]
    summary = shop.ingest(put_days(shop.folder / "days", *days), format=PARQUET)
    assert shop.rows("interactions", "user_id", "item_id", "weight") == [
        (1, "x", 1.0),
        (2, "y", -1.0),
        (3, "x", 2.5),
        (4, "y", -2.5),
        (5, "x", 1.0),
        (6, "z", 1.0),
    ]
    assert summary.kinds["interactions"].rejected == {"bad_weight": 2}
    assert "weight is missing in 1 of 4 files, only there: 3.parquet" in summary.notes
    with pytest.raises(SourceError, match=r"column for weight is list<.*> in 2\.parquet and int32 in 1\.parquet"):
        shop.ingest(put_days(shop.folder / "lists", days[0], pa.table({**ids, "weight": [[1], [2]]})), format=PARQUET)


def test_hashes_uuids_and_nanoseconds_reach_every_reader_as_text_and_microseconds(shop: Any) -> None:
    code = uuid.uuid4()
    day = pa.table(
        {
            "user_id": pa.array([7, 2**64 - 1], pa.uint64()),
            "item_id": pa.array([code.bytes, code.bytes], pa.binary(16)),
            "event_ts": pa.array([1_614_945_600_123_456_789, 1_614_945_600_000_000_000], pa.timestamp("ns")),
        }
    )
    source = put_days(shop.folder / "days", day)
    summary = shop.ingest(source, format=PARQUET)
    assert summary.ids == IdTypes("STRING", "STRING")
    assert any("user_id is STRING: 1 of 2 values are no BIGINT" in note for note in summary.notes)
    assert any("1 of them had nanoseconds, which are cut" in note for note in summary.notes)
    read = DeltaTable(f"{shop.config.paths.warehouse}/interactions").to_pyarrow_table().sort_by("event_ts")
    assert read["user_id"].to_pylist() == [str(2**64 - 1), "7"]
    assert set(read["item_id"].to_pylist()) == {str(code)}
    assert read["event_ts"][1].as_py() == dt.datetime(2021, 3, 5, 12, 0, 0, 123456, tzinfo=dt.UTC)
    assert shop.ingest(source, format=PARQUET).kinds["interactions"].already_present == 2
    with pytest.raises(SourceError, match=r"column item_id holds bytes that are no UUID.*--binary-ids hex"):
        shop.ingest(put_days(shop.folder / "bytes", pa.table({"user_id": [1], "item_id": [b"\xff\xfe"]})), format=PARQUET)


def test_of_daily_catalogues_the_newest_says_what_an_item_is(shop: Any) -> None:
    shop.file("items/2025-01-02.csv", "item_id,title,is_available,updated\n1,One again,off,5\n2,Two,1.0,5\n")
    shop.file("items/2025-01-01.csv", "item_id,title,is_available,updated\n1,One,on,9\n2,Two,1.0,5\n3,NULL,0.0,1\n")
    items = str(shop.folder / "items")
    summary = shop.ingest(items=items)
    assert (summary.kinds["items"].accepted, summary.kinds["items"].superseded, summary.kinds["items"].rejected) == (3, 2, {})
    rows = sorted(shop.rows("items", "item_id", "title", "is_available"), key=str)
    assert rows == [(1, "One again", False), (2, "Two", True), (3, None, False)]
    shop.ingest(items=items, item_columns={"updated_ts": "updated"})
    assert sorted(shop.rows("items", "item_id", "title", "is_available"), key=str)[0] == (1, "One", True)


def test_sources_are_read_in_their_order_each_by_its_own_clock(shop: Any) -> None:
    first = shop.file("first.csv", "user_id,item_id,event_ts\n1,10,2025-01-01\n")
    second = shop.file("second.csv", "user_id,item_id,event_ts\n2,10,1735776000000\n1,10,1735689600000\n")
    summary = shop.ingest(first, second)
    assert [str(row)[:10] for row in shop.rows("interactions", "event_date")] == ["2025-01-01", "2025-01-02"]
    assert summary.kinds["interactions"].rejected == {"duplicate": 1}
    assert {f"{first}: event_ts is read as dates in text", f"{second}: event_ts is read as milliseconds since 1970"} <= set(summary.notes)
    assert shop.rows("rejected", "source") == [second]


def test_lines_between_odd_quotes_are_rows_and_the_note_says_what_to_do(shop: Any) -> None:
    source = shop.file("plays.csv", 'user_id,item_id,weight\nu1,"Half,5\nu2,Whole,3\nu3,Other",2\nu4,Last,1\n')
    summary = shop.ingest(source)
    assert shop.rows("interactions", "user_id", "item_id") == [("u2", "Whole"), ("u3", 'Other"'), ("u4", "Last")]
    assert shop.rejected() == {"malformed_line": [{"_line": 'u1,"Half,5'}]}
    assert any("--quote none" in note for note in summary.notes)
    assert shop.ingest(source, format=SourceFormat(quote="")).kinds["interactions"].accepted == 1


def test_missing_words_are_missing_everywhere_and_folders_are_text(shop: Any) -> None:
    shop.file("days/user_id=000123/a.csv", "item_id,event_type\nx,NULL\n\\N,view\n")
    shop.file("days/user_id=42/a.csv", "item_id,event_type\nnan,view\nx,view\n")
    summary = shop.ingest(str(shop.folder / "days"))
    assert shop.rows("interactions", "user_id", "item_id", "event_type") == [("000123", "x", "event"), ("42", "x", "view")]
    assert summary.kinds["interactions"].rejected == {"null_item_id": 2}


def test_weights_by_event_type_and_types_that_have_none(shop: Any) -> None:
    source = shop.file("events.csv", "user_id,item_id,event_type\n1,1,view\n1,2,buy\n1,3,dislike\n1,4,gift\n")
    summary = shop.ingest(source, format=SourceFormat(weights={"view": 1, "buy": 5, "dislike": -1}))
    assert shop.rows("interactions", "item_id", "weight") == [(1, 1.0), (2, 5.0), (3, -1.0)]
    assert summary.kinds["interactions"].rejected == {"unknown_event_type": 1}
    assert any("gift (1)" in note for note in summary.notes)


def test_events_that_nobody_did_yet_are_kept_apart(shop: Any) -> None:
    source = shop.file("events.csv", "user_id,item_id,event_ts\n1,1,2025-01-01\n1,2,2025-01-02\n1,3,2099-01-01\n")
    summary = shop.ingest(source)
    assert summary.kinds["interactions"].rejected == {"future_event_ts": 1}
    assert str(summary.last_event)[:10] == "2025-01-02"
    assert any("in the future" in note for note in summary.notes)


def test_categories_are_split_however_they_are_written_and_counted(shop: Any) -> None:
    items = shop.file("items.csv", "item_id;title;categories\n1;a;['Home', 'Garden']\n2;b;Home|Bath\n3;c;[\"Bath\"]\n4;d;\\N\n")
    summary = shop.ingest(items=items, item_format=SourceFormat(delimiter=";"))
    assert summary.n_categories == 3
    assert shop.rows("items", "item_id", "categories") == [(1, ["Home", "Garden"]), (2, ["Home", "Bath"]), (3, ["Bath"]), (4, [])]
    nested = put_days(shop.folder / "nested", pa.table({"item_id": [5], "categories": [[{"id": 1, "name": "Sports"}]]}))
    shop.ingest(items=nested, item_format=SourceFormat(kind="parquet", columns={"categories": "categories.name"}))
    assert shop.rows("items", "item_id", "categories")[-1] == (5, ["Sports"])


def test_users_that_differ_by_case_blanks_or_unicode_form_are_different_users(shop: Any) -> None:
    names = ["anna", "Anna", "anna ", "e\u0301", "\u00e9"]
    table = pa.table({"user_id": names, "item_id": [1] * 5, "weight": [1.0, -0.0, float("nan"), float("inf"), 1.0]})
    summary = shop.ingest(put_days(shop.folder / "days", table), format=PARQUET)
    assert shop.rows("interactions", "user_id", "weight") == sorted([("anna", 1.0), ("Anna", 0.0), ("\u00e9", 1.0)])
    assert summary.kinds["interactions"].rejected == {"bad_weight": 2}
