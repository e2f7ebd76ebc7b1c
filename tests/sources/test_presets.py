"""Presets of published layouts, each on a few rows of that layout that were made up."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_batch.errors import SourceError
from recsys_batch.schemas import IdTypes
from recsys_batch.sources.column_mapping import check_columns
from recsys_batch.sources.file_tasks import FileTask, SourceFile
from recsys_batch.sources.presets import list_presets, load_preset
from recsys_batch.sources.reading import read_rows, survey_task
from recsys_batch.sources.typed_rows import REASON, ParseSettings, parse_rows

Row = tuple[Any, ...]


def utc(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC)


CASES: dict[str, dict[str, tuple[str, list[Row]]]] = {
    "amazon2023": {
        "interactions": (
            '{"rating": 5.0, "title": "t", "asin": "0001", "parent_asin": "B00", "user_id": "AE", "timestamp": 887000000000}\n',
            [("AE", "B00", utc(1998, 2, 9, 4, 53, 20), 5.0)],
        ),
        "items": (
            '{"parent_asin": "0042", "title": "T", "categories": ["Games", "PC"], "details": {"x": 1}}\n',
            [("0042", "T", ["Games", "PC"])],
        ),
    },
    "retailrocket": {
        "interactions": (
            "timestamp,visitorid,event,itemid,transactionid\n1433221332117,257597,view,355908,\n1433222276276,599528,transaction,356475,4000\n",
            [("257597", "355908", utc(2015, 6, 2, 5, 2, 12, 117000), 1.0), ("599528", "356475", utc(2015, 6, 2, 5, 17, 56, 276000), 5.0)],
        ),
    },
    "hm": {
        "interactions": (
            "t_dat,customer_id,article_id,price,sales_channel_id\n2018-09-20,00ab,0663713001,0.05,2\n",
            [("00ab", "0663713001", utc(2018, 9, 20), 1.0)],
        ),
        "items": (
            "article_id,product_code,prod_name,product_group_name\n0108775015,0108775,Strap top,Garment Upper body\n",
            [("0108775015", "Strap top", ["Garment Upper body"])],
        ),
        "users": ("customer_id,FN,Active,club_member_status,age\n00ab,,,ACTIVE,49\n", [("00ab", "ACTIVE")]),
    },
    "otto": {
        "interactions": (
            '{"session": 7, "events": [{"aid": 1, "ts": 1661200010567, "type": "clicks"}, '
            '{"aid": 2, "ts": 1661200011567, "type": "orders"}]}\n',
            [("7", "1", utc(2022, 8, 22, 20, 26, 50, 567000), 1.0), ("7", "2", utc(2022, 8, 22, 20, 26, 51, 567000), 6.0)],
        ),
    },
    "goodreads": {
        "interactions": (
            '{"user_id": "u", "book_id": "5", "is_read": true, "rating": 4, "date_added": "Sun Jul 30 07:44:10 -0700 2017"}\n',
            [("u", "5", utc(2017, 7, 30, 14, 44, 10), 4.0)],
        ),
        "items": (
            '{"book_id": "5", "title": "T", "popular_shelves": [{"count": "3", "name": "fiction"}, {"count": "1", "name": "own"}]}\n',
            [("5", "T", ["fiction", "own"])],
        ),
    },
    "lastfm360k": {
        "interactions": (
            '00ab\t\t"Half a quote\t12\n00ab\tmbid\tWhole\t3\n',
            [("00ab", '"Half a quote', None, 12.0), ("00ab", "Whole", None, 3.0)],
        ),
        "users": ("00ab\tf\t22\tGermany\tFeb 1, 2007\n", [("00ab", "Germany")]),
    },
    "bookcrossing": {
        "interactions": ('"User-ID";"ISBN";"Book-Rating"\n"276725";"034545104X";"0"\n', [("276725", "034545104X", None, 0.0)]),
        "items": (
            '"ISBN";"Book-Title";"Book-Author"\n"0195153448";"Classical \\"Mythology\\"";"M. M\xe9ra"\n',
            [("0195153448", 'Classical "Mythology"', ["M. M\xe9ra"])],
        ),
        "users": ('"User-ID";"Location";"Age"\n"1";"nyc, new york, usa";NULL\n', [("1", None)]),
    },
}
_SHOWN = {
    "interactions": ("user_id", "item_id", "event_ts", "weight"),
    "items": ("item_id", "title", "categories"),
    "users": ("user_id", "segment"),
}


def usable(task: FileTask, preset: str, kind: str) -> list[Row]:
    how = load_preset(preset)[kind]
    survey = survey_task(task, kind, how)
    check_columns(survey.columns, preset, kind, how.columns, "")
    settings = ParseSettings(kind, how, IdTypes("STRING", "STRING"), survey.choose_clocks(how))
    rows = [row for raw in read_rows(task, kind, how) for row in parse_rows(raw, settings).to_pylist()]
    assert [row[REASON] for row in rows] == [None] * len(rows)
    return [tuple(row[name] for name in _SHOWN[kind]) for row in rows]


@pytest.mark.parametrize(("preset", "kind"), [(preset, kind) for preset, kinds in CASES.items() for kind in kinds])
def test_a_published_layout_is_read_as_it_is(task: Callable[..., FileTask], preset: str, kind: str) -> None:
    text, expected = CASES[preset][kind]
    assert usable(task(text.encode(load_preset(preset)[kind].encoding), "a.txt"), preset, kind) == expected


def test_yambda_counts_seconds_from_an_unknown_beginning(tmp_path: Path) -> None:
    columns = {"uid": pa.array([1, 2], pa.uint32()), "timestamp": pa.array([19_990_105, 25_999_995], pa.uint32())}
    pq.write_table(pa.table({**columns, "item_id": pa.array([7, 8], pa.uint32())}), tmp_path / "listens.parquet")
    rows = usable(FileTask(0, SourceFile(str(tmp_path / "listens.parquet"), 1), ""), "yambda", "interactions")
    assert [(user, item, time.timestamp()) for user, item, time, _ in rows] == [("1", "7", 19_990_105), ("2", "8", 25_999_995)]


def test_every_preset_is_tried_here() -> None:
    assert list_presets() == sorted([*CASES, "yambda"])


def test_a_preset_of_one_s_own_is_read_and_a_wrong_one_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('format = "csv"\ndelimiter = "\\\\t"\n[items]\nencoding = "cp1252"\n')
    formats = load_preset(str(own))
    assert (formats["interactions"].delimiter, formats["items"].encoding, formats["users"].encoding) == ("\t", "cp1252", "utf-8")
    own.write_text("colums = {}\n")
    with pytest.raises(SourceError, match=r"unknown keys: colums; known keys: .*columns"):
        load_preset(str(own))
    own.write_text("=")
    with pytest.raises(SourceError, match="is not readable TOML"):
        load_preset(str(own))
    with pytest.raises(SourceError, match=r"--preset 'amazon' is unknown; known presets: amazon2023, bookcrossing"):
        load_preset("amazon")
