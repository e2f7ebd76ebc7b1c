"""Ingest: every row is accounted for, the same files change nothing twice, and later files add only what is new."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from recsys_batch.errors import SourceError
from recsys_batch.schemas import IdTypes
from recsys_batch.sources.source_format import SourceFormat
from recsys_batch.spark.ingest.pipeline import read_interactions
from recsys_batch.spark.ingest.sources import IngestRequest
from recsys_batch.spark.ingest.summary import IngestSummary
from recsys_batch.spark.tables import WarehouseTables

TABLES = ("interactions", "holdout", "items", "users", "rejected")


ORDERS = """customer,sku,when,amount,kind
anna,A-1,2025-03-01T10:00:00Z,2.5,buy
anna,A-2,2025-03-02 11:00:00,1,buy
anna,A-2,2025-03-02 11:00:00,1,buy
anna,A-2,2025-03-09 09:00:00,-1,return
bob,A-1,2025-03-02T10:00:00Z,1,buy
,A-1,2025-03-02,1,buy
bob,,2025-03-02,1,buy
bob,A-1,yesterday,1,buy
bob,A-1,,1,buy
bob,A-1,2025-03-04,NaN,buy
bob,A-1,2025-03-05,,buy
bob,A-9,2025-03-06,1,buy
bob,A-1
bob,A-1,2025-03-07,1,buy,more
"""
COLUMNS = {"user_id": "customer", "item_id": "sku", "event_ts": "when", "weight": "amount", "event_type": "kind"}
ITEMS = "sku,name,price\nA-1,Kettle,20\nA-2,Lamp,\nA-1,Kettle again,21\n,Nothing,1\n"
ITEM_COLUMNS = {"item_id": "sku", "title": "name"}
USERS = "user_id,segment,city\nanna,new,Oslo\nbob,,Rome\n"


def test_a_messy_shop_is_brought_in_once_and_every_row_is_accounted_for(shop: Any) -> None:
    def again() -> IngestSummary:
        return shop.ingest(
            shop.file("orders.csv", ORDERS),
            columns=COLUMNS,
            items=shop.file("items.csv", ITEMS),
            item_columns=ITEM_COLUMNS,
            users=shop.file("users.csv", USERS),
            max_rejected_share=0.7,
        )

    summary = again()
    assert summary.ids == IdTypes("STRING", "STRING")
    orders = summary.kinds["interactions"]
    assert (orders.read, orders.accepted) == (14, 4)
    assert orders.rejected == {
        "duplicate": 1,
        "null_user_id": 1,
        "null_item_id": 1,
        "bad_event_ts": 1,
        "null_event_ts": 1,
        "bad_weight": 2,
        "unknown_item": 1,
        "malformed_line": 2,
    }
    assert summary.kinds["items"].rejected == {"duplicate_item_id": 1, "null_item_id": 1}
    assert shop.rows("items", "item_id", "title") == [("A-1", "Kettle again"), ("A-2", "Lamp")]
    assert "event_ts is read as dates in text" in summary.notes
    assert (summary.kinds["items"].accepted, summary.kinds["users"].accepted) == (2, 2)
    assert shop.rows("interactions", "user_id", "item_id", "weight") == [
        ("anna", "A-1", 2.5),
        ("anna", "A-2", -1.0),
        ("anna", "A-2", 1.0),
        ("bob", "A-1", 1.0),
    ]
    kept = shop.rejected()
    assert kept["unknown_item"] == [{"customer": "bob", "sku": "A-9", "when": "2025-03-06", "amount": "1", "kind": "buy"}]
    assert kept["bad_event_ts"][0]["when"] == "yesterday"
    assert sorted(len(rows) for rows in kept.values()) == [1] * 6 + [2] * 3
    assert kept["malformed_line"][0] == {"_line": "bob,A-1"}
    users = {row.user_id: row for row in shop.tables.read("users").collect()}
    assert (users["anna"].segment, users["bob"].segment, users["bob"].attributes) == ("new", None, {"city": "Rome"})

    before = shop.versions()
    repeated = again()
    assert shop.versions() == before
    assert {kind: s.already_present for kind, s in repeated.kinds.items()} == {"interactions": 4, "items": 2, "users": 2}
    assert {kind: s.rejected for kind, s in repeated.kinds.items()} == {kind: s.rejected for kind, s in summary.kinds.items()}


def test_overlapping_daily_files_add_only_new_rows(shop: Any) -> None:
    head, first, second, third = "user_id,item_id,event_ts\n", "7,1,2025-01-01\n", "7,2,2025-01-02\n", "8,1,2025-01-03\n"
    shop.file("days/1.csv", head + first + second)
    shop.file("days/2.csv", "")
    summary = shop.ingest(str(shop.folder / "days"))
    assert (summary.ids, summary.kinds["interactions"].accepted) == (IdTypes("BIGINT", "BIGINT"), 2)
    shop.file("days/3.csv", head + second + third)
    summary = shop.ingest(str(shop.folder / "days"))
    days = summary.kinds["interactions"]
    assert (days.read, days.accepted, days.already_present, days.rejected) == (4, 1, 2, {"duplicate": 1})
    assert shop.rows("interactions", "user_id", "item_id") == [(7, 1), (7, 2), (8, 1)]
    assert str(summary.first_event)[:10] == "2025-01-01"


def test_the_tables_decide_the_id_types_once_they_are_there(shop: Any) -> None:
    shop.ingest(items=shop.file("items.csv", "item_id,title\n10,Ten\n20,Twenty\n"))
    assert not shop.tables.exists("interactions")
    summary = shop.ingest(shop.file("events.csv", "user_id,item_id\nu1,10\nu2,B-7\n,20\n"), max_rejected_share=0.7)
    assert summary.ids == IdTypes("STRING", "BIGINT")
    assert summary.kinds["interactions"].rejected == {"bad_item_id": 1, "null_user_id": 1}
    summary = shop.ingest(shop.file("more.csv", "user_id,item_id\n5,20\n"))
    assert (summary.ids.user, summary.kinds["interactions"].accepted) == ("STRING", 1)
    assert shop.rows("interactions", "user_id", "item_id") == [("5", 20), ("u1", 10)]


def _events(n_items: dict[str, int], *, timed: bool) -> str:
    head = "user_id,item_id" + (",event_ts" if timed else "")
    rows = [f"{user},{item}" + (f",2025-01-{item:02d}" if timed else "") for user, n in n_items.items() for item in range(1, n + 1)]
    return "\n".join([head, *rows]) + "\n"


def test_holdout_is_the_newest_share_by_whole_sessions_and_repeating_changes_nothing(shop: Any) -> None:
    source = shop.file("events.csv", _events({"a": 10, "b": 5, "c": 4}, timed=True))
    summary = shop.ingest(source, holdout=0.2)
    assert (summary.kinds["interactions"].held_out, summary.kinds["interactions"].accepted) == (3, 16)
    assert any(note.startswith("held out per user: the newest whole sessions") for note in summary.notes)
    assert shop.rows("holdout", "user_id", "item_id") == [("a", 9), ("a", 10), ("b", 5)]
    assert len(shop.rows("items", "item_id")) == 10
    before = shop.versions("interactions", "holdout", "items")
    repeated = shop.ingest(source, holdout=0.2)
    assert shop.versions("interactions", "holdout", "items") == before
    assert repeated.kinds["interactions"].already_present == 19


def test_holdout_by_time_is_everybody_s_future(shop: Any) -> None:
    source = shop.file("events.csv", _events({"a": 10, "b": 5, "c": 4}, timed=True))
    summary = shop.ingest(source, holdout=0.2, split="time")
    assert shop.rows("holdout", "user_id", "item_id") == [("a", 8), ("a", 9), ("a", 10)]
    assert any(note.startswith("held out by time: all sessions that begin after 2025-01-07") for note in summary.notes)


def test_without_time_a_hash_holds_out_other_items_for_other_users_and_it_is_said_aloud(shop: Any) -> None:
    summary = shop.ingest(shop.file("events.csv", _events(dict.fromkeys("abcdefgh", 10), timed=False)), holdout=0.2)
    held = shop.rows("holdout", "user_id", "item_id")
    assert len(held) == 16
    assert len({item for _, item in held}) > 4
    assert any("event_ts is missing" in note for note in summary.notes)
    assert any("weight is missing" in note for note in summary.notes)
    stamps = shop.tables.read("interactions").select("event_ts", "event_date", "weight").distinct().collect()
    assert [tuple(row) for row in stamps] == [(None, None, 1.0)]


def test_an_ingest_that_died_between_its_commits_ends_like_one_that_did_not(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shop.file("events.csv", _events({"a": 10, "b": 5}, timed=True))
    append: Callable[..., int] = WarehouseTables.append

    def dying(tables: WarehouseTables, name: str, *rest: Any) -> int:
        if name == "interactions":
            raise OSError("killed")
        return append(tables, name, *rest)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="killed"):
        patched.setattr(WarehouseTables, "append", dying)
        shop.ingest(source, holdout=0.2)
    assert len(shop.rows("holdout", "item_id")) == 3
    shop.ingest(source, holdout=0.2)
    assert shop.rows("holdout", "user_id", "item_id") == [("a", 9), ("a", 10), ("b", 5)]
    assert len(shop.rows("interactions", "item_id")) == 12


def test_an_items_file_updates_what_it_names_and_keeps_the_rest(shop: Any) -> None:
    shop.ingest(shop.file("events.csv", "user_id,item_id,event_ts\nu,1,2025-01-05\nu,2,2025-01-01\n"))
    summary = shop.ingest(items=shop.file("items.csv", "item_id,title,color\n1,One,red\n2,Two,\n3,Three,blue\n"))
    assert summary.kinds["items"].accepted == 3
    summary = shop.ingest(items=shop.file("stock.csv", "item_id,is_available\n1,no\n2,yes\n"))
    assert (summary.kinds["items"].accepted, summary.kinds["items"].already_present) == (1, 1)
    items = {row.item_id: row for row in shop.tables.read("items").collect()}
    assert [items[i].is_available for i in (1, 2, 3)] == [False, True, True]
    assert (items[1].title, items[1].attributes) == ("One", {"color": "red"})
    assert items[1].first_seen_ts.replace(tzinfo=UTC) == datetime(2025, 1, 5, tzinfo=UTC)
    summary = shop.ingest(shop.file("late.csv", "user_id,item_id,event_ts\nu,3,2025-02-01\nu,4,2025-02-01\n"))
    assert summary.kinds["interactions"].rejected == {"unknown_item": 1}


def test_a_file_without_rows_is_refused_before_any_table_is_touched(shop: Any) -> None:
    good = shop.file("good.csv", "user_id,item_id\n1,2\n")
    for options in (
        {"source": shop.file("header.csv", "user_id,item_id\n")},
        {"source": good, "items": shop.file("items.csv", "item_id,title\n")},
        {"source": good, "users": str(shop.folder / "absent.csv")},
    ):
        with pytest.raises(SourceError):
            shop.ingest(options.pop("source"), **options)
    assert shop.versions() == {}


def test_a_source_that_is_mostly_bad_is_refused_with_examples_and_nothing_is_written(shop: Any) -> None:
    bad = shop.file("bad.csv", "user_id,item_id,event_ts\n1,2,2025-01-01\n1,2,24.12.2023\n1,3,25.12.2023\n,4,2025-01-02\n")
    with pytest.raises(SourceError, match=r"75% of the 4 interactions cannot be used.*bad_event_ts \(2 rows, for example .*24\.12\.2023"):
        shop.ingest(bad)
    assert shop.versions() == {}
    with pytest.raises(SourceError, match="--time-format"):
        shop.ingest(bad)
    summary = shop.ingest(bad, max_rejected_share=0.75)
    assert (summary.kinds["interactions"].accepted, len(shop.rows("rejected", "row"))) == (1, 3)
    assert shop.ingest(bad, format=SourceFormat(time_format="%d.%m.%Y")).kinds["interactions"].accepted == 2


def test_overlapping_rows_say_nothing_against_a_source(shop: Any) -> None:
    summary = shop.ingest(shop.file("events.csv", "user_id,item_id\n1,2\n1,2\n1,2\n1,2\n"), max_rejected_share=0.0)
    assert summary.kinds["interactions"].rejected == {"duplicate": 3}


def test_truth_is_read_in_the_warehouse_s_id_types_and_not_written(shop: Any) -> None:
    shop.ingest(shop.file("events.csv", "user_id,item_id\nu,1\n"))
    before = shop.versions()
    request = IngestRequest((shop.file("truth.csv", "who,item_id,weight\n7,2,3\n7,x,1\n"),), SourceFormat(columns={"user_id": "who"}))
    table = read_interactions(shop.spark, shop.config, request)
    assert table.to_pylist() == [{"user_id": "7", "item_id": 2, "weight": 3.0}]
    assert shop.versions() == before
    request = IngestRequest((shop.file("none.csv", "user_id,item_id\n7,x\n"),))
    with pytest.raises(SourceError, match="no usable row: ids are STRING"):
        read_interactions(shop.spark, shop.config, request)
