"""Files as people have them: what can be read is read by column name, what cannot is refused in one sentence that helps."""

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from recsys_batch.errors import SourceError, UsageError
from recsys_batch.schemas import IdTypes
from recsys_batch.sources.source_format import SourceFormat
from recsys_batch.sources.typed_rows import REASON, ParseSettings
from recsys_batch.spark.ingest import opened_source, source_files
from recsys_batch.spark.ingest.sources import IngestRequest, open_sources

ROWS = [("a", "x", 1.0), ("b", "y", 2.0)]
PARQUET, DELTA = SourceFormat(kind="parquet"), SourceFormat(kind="delta")


def put(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def interactions(spark: SparkSession, *sources: str, how: SourceFormat | None = None, **options: Any) -> list[tuple[Any, ...]]:
    """user_id, item_id, weight of every row, sorted; a reason in the place of the weight where there is one."""
    how = replace(how or SourceFormat(), **options)
    rows: list[tuple[Any, ...]] = []
    for source in open_sources(spark, IngestRequest(sources, how)).by_kind["interactions"]:
        typed = source.parse(ParseSettings("interactions", how, IdTypes("STRING", "STRING"), source.clocks))
        rows += [(row.user_id, row.item_id, row[REASON] or row.weight) for row in typed.collect()]
    return sorted(rows, key=str)


TEXT = "user_id,item_id,weight\na,x,1\nb,y,2\n"
CSV_FILES = {
    "plain": ({"a.csv": TEXT}, {}),
    "windows line ends and a byte order mark": ({"a.csv": b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()}, {}),
    "compressed": ({"a.csv.gz": gzip.compress(TEXT.encode())}, {}),
    "daily files": ({"1.csv": TEXT[:29], "2.csv": "user_id,item_id,weight\nb,y,2\n"}, {}),
    "an empty day": ({"0.csv": "", "1.csv": TEXT, "2.csv": "user_id,item_id,weight\n"}, {}),
    "columns in another order": ({"1.csv": TEXT[:29], "2.csv": "weight,item_id,user_id\n2,y,b\n"}, {}),
    "columns that nobody maps differ": ({"1.csv": TEXT[:29], "2.csv": "user_id,note,item_id,weight\nb,-,y,2\n"}, {}),
    "a day without a weight": ({"1.csv": "item_id,user_id\nx,a\n", "2.csv": "user_id,item_id,weight\nb,y,2\n"}, {}),
    "folders of folders": ({"jan/1.csv": TEXT[:29], "feb/2.csv": "user_id,item_id,weight\nb,y,2\n"}, {}),
    "hidden files beside": ({"a.csv": TEXT, "_SUCCESS": "x", ".a.csv.crc": "x"}, {}),
    "blanks, quotes and no last line end": ({"a.csv": 'user_id, item_id,weight\n\n"a", x ,"1"\nb,"y",2'}, {}),
    "tabs": ({"a.tsv": TEXT.replace(",", "\t")}, {"delimiter": "\t"}),
    "mapped names": (
        {"a.csv": "User ID;the.item;`w`\na;x;1\nb;y;2\n"},
        {"delimiter": ";", "columns": {"user_id": "User ID", "item_id": "the.item", "weight": "`w`"}},
    ),
    "no header": ({"a.csv": "1,x,a\n2,y,b\n"}, {"header": False, "columns": {"user_id": "3", "item_id": "2", "weight": "1"}}),
    "an index without a name, a doubled name": ({"a.csv": ",user_id,item_id,weight,weight\n0,a,x,1,9\n1,b,y,2,9\n"}, {}),
    "lines of JSON": (
        {"a.jsonl": '{"u": {"id": "a"}, "item_id": "x", "weight": 1}\n{"u": {"id": "b"}, "item_id": "y", "weight": "2"}\n'},
        {"kind": "jsonl", "columns": {"user_id": "u.id"}},
    ),
    "names that a URI would escape": ({"a b%20ü#.csv": TEXT}, {}),
}


@pytest.mark.parametrize(("files", "options"), CSV_FILES.values(), ids=CSV_FILES.keys())
def test_text_is_read_by_column_name_however_it_is_written(
    spark: SparkSession, tmp_path: Path, files: dict[str, Any], options: dict[str, Any]
) -> None:
    for name, content in files.items():
        put(tmp_path / "in" / name, content)
    assert interactions(spark, str(tmp_path / "in"), **options) == ROWS


def test_globs_several_sources_and_folders_named_after_a_column_are_read(spark: SparkSession, tmp_path: Path) -> None:
    put(tmp_path / "in" / "user_id=a" / "1.csv", "item_id,weight\nx,1\n")
    put(tmp_path / "in" / "user_id=b" / "1.csv", "weight,item_id\n2,y\n")
    assert interactions(spark, str(tmp_path / "in")) == interactions(spark, str(tmp_path / "in" / "*")) == ROWS
    put(tmp_path / "days" / "2025-01.csv", TEXT)
    put(tmp_path / "days" / "2024-01.csv", "user_id,item_id,weight\nold,x,1\n")
    assert interactions(spark, str(tmp_path / "days" / "2025-*.csv")) == ROWS
    both = interactions(spark, str(tmp_path / "days" / "2024-01.csv"), str(tmp_path / "days" / "2025-01.csv"))
    assert both == [*ROWS, ("old", "x", 1.0)]


def test_items_and_users_are_opened_beside(spark: SparkSession, tmp_path: Path) -> None:
    items = put(tmp_path / "items.csv", "sku,name,price,a.b\n1,One,,z\n")
    users = put(tmp_path / "users.csv", "user_id,segment\nu,new\n")
    item_format = SourceFormat(columns={"item_id": "sku", "title": "name"})
    opened = open_sources(spark, IngestRequest(items=(items,), item_format=item_format, users=(users,))).by_kind
    ids = IdTypes("STRING", "BIGINT")
    item = opened["items"][0].parse(ParseSettings("items", item_format, ids)).collect()[0]
    assert (item.item_id, item.title, item.attributes) == (1, "One", {"a.b": "z"})
    user = opened["users"][0].parse(ParseSettings("users", SourceFormat(), ids)).collect()[0]
    assert (user.user_id, user.segment, user.attributes) == ("u", "new", {})


def test_parquet_and_delta_keep_their_types_and_rows(spark: SparkSession, tmp_path: Path) -> None:
    table = pa.table({"user_id": [1, 2], "item_id": ["x", "y"], "weight": [1.0, None]})
    (tmp_path / "days").mkdir()
    pq.write_table(table.slice(0, 1), tmp_path / "days" / "1.parquet")
    pq.write_table(table.slice(1).select(["weight", "item_id", "user_id"]), tmp_path / "days" / "2.parquet")
    assert interactions(spark, str(tmp_path / "days"), how=PARQUET) == [("1", "x", 1.0), ("2", "y", "bad_weight")]
    delta = str(tmp_path / "delta")
    spark.createDataFrame(table).write.format("delta").save(delta)
    spark.sql(f"DELETE FROM delta.`{delta}` WHERE user_id = 2")
    assert interactions(spark, delta, how=DELTA) == [("1", "x", 1.0)]
    with pytest.raises(SourceError, match="is a Delta table: pass --format delta"):
        interactions(spark, delta, how=PARQUET)
    with pytest.raises(SourceError, match="is not a Delta table"):
        interactions(spark, str(tmp_path / "days"), how=DELTA)


def test_files_that_python_cannot_open_are_read_by_spark(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "in" / "1 a.csv", TEXT[:29])
    put(tmp_path / "in" / "2.csv.gz", gzip.compress(b"user_id,item_id,weight\nb,y,2\n"))
    monkeypatch.setattr(opened_source, "is_readable", lambda location: False)
    monkeypatch.setattr(source_files, "is_readable", lambda location: False)
    assert interactions(spark, str(tmp_path / "in")) == ROWS


HEAD = "customer,sku,when\n"
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "missing path": ({}, {}, "in does not exist: expected a file, a folder of files or a glob"),
    "blank file": ({"a.csv": "\n"}, {}, "in is empty: expected a header line"),
    "folder without data": ({"_SUCCESS": "x"}, {}, "in holds no data file"),
    "wrong delimiter": ({"a.csv": "user_id;item_id\n1;2\n"}, {}, "pass --delimiter ';'"),
    "unmapped column": ({"a.csv": "user_id,sku\n1,2\n"}, {}, r"has no column item_id; it has user_id, sku.*--columns item_id="),
    "other letter case": ({"a.csv": "USER_ID,ITEM_ID\n1,2\n"}, {}, "Did you mean USER_ID[?] Map yours with --columns user_id="),
    "misspelt mapping": (
        {"a.csv": HEAD},
        {"columns": {"user_id": "custmer", "item_id": "sku"}},
        "no column custmer; .*Did you mean customer",
    ),
    "unknown target": ({"a.csv": HEAD}, {"columns": {"usr": "customer"}}, "--columns names usr; what can be mapped is user_id, item_id"),
    "no header": ({"a.csv": "1,2\n3,4\n"}, {}, "Is the first line a header[?] --header none"),
    "no zip": ({"a.zip": b"PK\x03\x04\x00\x00"}, {}, r"\.zip that cannot be read"),
    "utf-16": ({"a.csv": "user_id,item_id\n1,2\n".encode("utf-16")}, {}, "is not UTF-8 text"),
    "latin-1": ({"1.csv": TEXT, "2.csv": TEXT.encode() + "é,x,1\n".encode("latin-1")}, {}, "in: 2.csv is not UTF-8 text: line 4, byte 35"),
    "not gzip": ({"a.csv.gz": b"user_id,item_id\n"}, {}, "cannot be read as .gz"),
    "text as parquet": ({"a.csv": TEXT}, {"kind": "parquet"}, "a.csv is not a Parquet file"),
    "no rows": ({"a.csv": "user_id,item_id\n"}, {}, "has no rows: expected at least one"),
}


@pytest.mark.parametrize(("files", "options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_is_refused_in_one_sentence(
    spark: SparkSession, tmp_path: Path, files: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    for name, content in files.items():
        put(tmp_path / "in" / name, content)
    with pytest.raises(SourceError, match=message) as refused:
        interactions(spark, str(tmp_path / "in"), **options)
    assert "\n" not in str(refused.value)


def test_formats_that_do_not_exist_are_refused() -> None:
    for options, says in (
        ({"kind": "xml"}, "format 'xml'"),
        ({"delimiter": ""}, "delimiter is empty"),
        ({"encoding": "x"}, "--encoding 'x'"),
    ):
        with pytest.raises(SourceError, match=says):
            SourceFormat(**options)


def test_items_are_mapped_by_their_own_option_and_a_catalog_table_must_exist(spark: SparkSession, tmp_path: Path) -> None:
    items = put(tmp_path / "items.csv", "name\nOne\n")
    with pytest.raises(SourceError, match="--item-columns item_id="):
        open_sources(spark, IngestRequest(items=(items,)))
    with pytest.raises(UsageError, match="nowhere"):
        open_sources(spark, IngestRequest(("nowhere",), DELTA))
    with pytest.raises(SourceError, match="reads a folder: pass it as --source"):
        open_sources(spark, IngestRequest((), SourceFormat(kind="movielens")))


def test_text_of_a_table_that_is_no_utf8_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    delta = str(tmp_path / "delta")
    spark.sql("SELECT CAST(X'FFFE' AS STRING) AS user_id, 'x' AS item_id").write.format("delta").save(delta)
    with pytest.raises(SourceError, match="column user_id says that it is text, and holds bytes that are no UTF-8"):
        interactions(spark, delta, how=DELTA)
