"""Files as people have them: what can be read is read by column name, what cannot is refused in one sentence that helps."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from recsys_batch.errors import SourceError, UsageError
from recsys_batch.spark.ingest.csv_source import read_csv
from recsys_batch.spark.ingest.raw_source import CORRUPT, RAW_ROW
from recsys_batch.spark.ingest.sources import IngestRequest, read_source

ROWS = [("a", "x", "1"), ("b", "y", "2")]


def put(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def interactions(spark: SparkSession, source: str, **options: Any) -> list[tuple[Any, ...]]:
    """user_id, item_id, weight of every row, sorted."""
    raw = read_source(spark, IngestRequest(source=source, **{"format": "csv", **options})).interactions
    assert raw is not None
    return sorted(map(tuple, raw.select("user_id", "item_id", "weight").collect()), key=str)


TEXT = "user_id,item_id,weight\na,x,1\nb,y,2\n"
CSV_FILES = {
    "plain": ({"a.csv": TEXT}, {}),
    "windows line ends and a byte order mark": ({"a.csv": b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()}, {}),
    "compressed": ({"a.csv.gz": gzip.compress(TEXT.encode())}, {}),
    "daily files": ({"1.csv": TEXT[:29], "2.csv": "user_id,item_id,weight\nb,y,2\n"}, {}),
    "an empty day": ({"0.csv": "", "1.csv": TEXT, "2.csv": "user_id,item_id,weight\n"}, {}),
    "columns in another order": ({"1.csv": TEXT[:29], "2.csv": "weight,item_id,user_id\n2,y,b\n"}, {}),
    "folders of folders": ({"jan/1.csv": TEXT[:29], "feb/2.csv": "user_id,item_id,weight\nb,y,2\n"}, {}),
    "hidden files beside": ({"a.csv": TEXT, "_SUCCESS": "", ".a.csv.crc": "x"}, {}),
    "blanks, quotes and no last line end": ({"a.csv": 'user_id, item_id,weight\n\n"a", x ,"1"\nb,"y",2'}, {}),
    "tabs": ({"a.tsv": TEXT.replace(",", "\t")}, {"delimiter": "\\t"}),
    "mapped names": (
        {"a.csv": "User ID;the.item;`w`\na;x;1\nb;y;2\n"},
        {"delimiter": ";", "columns": {"user_id": "User ID", "item_id": "the.item", "weight": "`w`"}},
    ),
    "an index without a name, a doubled name": ({"a.csv": ",user_id,item_id,weight,weight\n0,a,x,1,9\n1,b,y,2,9\n"}, {}),
}


@pytest.mark.parametrize(("files", "options"), CSV_FILES.values(), ids=CSV_FILES.keys())
def test_csv_is_read_by_column_name_however_it_is_written(
    spark: SparkSession, tmp_path: Path, files: dict[str, Any], options: dict[str, Any]
) -> None:
    for name, content in files.items():
        put(tmp_path / "in" / name, content)
    assert interactions(spark, str(tmp_path / "in"), **options) == ROWS


def test_globs_and_folders_named_after_a_column_are_read(spark: SparkSession, tmp_path: Path) -> None:
    put(tmp_path / "in" / "user_id=a" / "1.csv", "item_id,weight\nx,1\n")
    put(tmp_path / "in" / "user_id=b" / "1.csv", "weight,item_id\n2,y\n")
    assert interactions(spark, str(tmp_path / "in")) == ROWS
    put(tmp_path / "days" / "2025-01.csv", TEXT)
    put(tmp_path / "days" / "2024-01.csv", "user_id,item_id,weight\nold,x,1\n")
    assert interactions(spark, str(tmp_path / "days" / "2025-*.csv")) == ROWS


def test_quoted_fields_hold_delimiters_quotes_and_line_breaks(spark: SparkSession, tmp_path: Path) -> None:
    text = 'item_id,title\r\n1,"a, ""b""\nc"\r\n2,12" vinyl\r\n3,"back\\slash\\"\r\n'
    rows = read_csv(spark, put(tmp_path / "a.csv", text), ",").orderBy("item_id").collect()
    assert [tuple(row) for row in rows] == [("1", 'a, "b"\nc', None), ("2", '12" vinyl', None), ("3", "back\\slash\\", None)]


def test_lines_with_too_few_or_too_many_fields_are_kept_whole(spark: SparkSession, tmp_path: Path) -> None:
    source = put(tmp_path / "a.csv", TEXT + "c\nd,z,3,4\n")
    raw = read_source(spark, IngestRequest(source, "csv")).interactions
    assert raw is not None
    rows = [(row[CORRUPT], json.loads(row[RAW_ROW])) for row in raw.collect()]
    assert rows == [
        (None, {"user_id": "a", "item_id": "x", "weight": "1"}),
        (None, {"user_id": "b", "item_id": "y", "weight": "2"}),
        ("c", {"_line": "c"}),
        ("d,z,3,4", {"_line": "d,z,3,4"}),
    ]


def test_other_columns_of_items_and_users_become_attributes(spark: SparkSession, tmp_path: Path) -> None:
    items = put(tmp_path / "items.csv", "sku,name,price,a.b\n1,One,,z\n")
    users = put(tmp_path / "users.csv", "user_id,segment\nu,new\n")
    raw = read_source(spark, IngestRequest(None, "csv", items=items, item_columns={"item_id": "sku", "title": "name"}, users=users))
    assert raw.interactions is None
    assert raw.items is not None and raw.users is not None
    item = raw.items.collect()[0]
    assert (item.item_id, item.title, item.attributes) == ("1", "One", {"a.b": "z"})
    assert "attributes" not in raw.users.columns


def test_parquet_and_delta_keep_their_types_and_rows(spark: SparkSession, tmp_path: Path) -> None:
    table = pa.table({"user_id": [1, 2], "item_id": ["x", "y"], "weight": [1.0, None]})
    (tmp_path / "days").mkdir()
    pq.write_table(table.slice(0, 1), tmp_path / "days" / "1.parquet")
    pq.write_table(table.slice(1).select(["weight", "item_id", "user_id"]), tmp_path / "days" / "2.parquet")
    assert interactions(spark, str(tmp_path / "days"), format="parquet") == [(1, "x", 1.0), (2, "y", None)]
    delta = str(tmp_path / "delta")
    spark.createDataFrame(table).write.format("delta").save(delta)
    spark.sql(f"DELETE FROM delta.`{delta}` WHERE user_id = 2")
    assert interactions(spark, delta, format="delta") == [(1, "x", 1.0)]
    with pytest.raises(SourceError, match="is a Delta table: pass --format delta"):
        interactions(spark, delta, format="parquet")
    with pytest.raises(SourceError, match="is not a Delta table"):
        interactions(spark, str(tmp_path / "days"), format="delta")


HEAD = "customer,sku,when\n"
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "missing path": ({}, {}, "in does not exist: expected a file, a folder of files or a glob"),
    "empty file": ({"a.csv": ""}, {}, "in is empty: expected a header line"),
    "folder without data": ({"_SUCCESS": ""}, {}, "in holds no data file"),
    "wrong delimiter": ({"a.csv": "user_id;item_id\n1;2\n"}, {}, "pass --delimiter ';'"),
    "unmapped column": ({"a.csv": "user_id,sku\n1,2\n"}, {}, r"has no column item_id; it has user_id, sku.*--columns item_id="),
    "other letter case": ({"a.csv": "USER_ID,ITEM_ID\n1,2\n"}, {}, "Did you mean USER_ID[?] Map yours with --columns user_id="),
    "misspelt mapping": (
        {"a.csv": HEAD},
        {"columns": {"user_id": "custmer", "item_id": "sku"}},
        "no column custmer; .*Did you mean customer",
    ),
    "unknown target": ({"a.csv": HEAD}, {"columns": {"usr": "customer"}}, "--columns names usr; what can be mapped is user_id, item_id"),
    "days with other columns": ({"1.csv": HEAD, "2.csv": "customer,when\n"}, {}, "2.csv has customer, when and 1.csv has customer, sku"),
    "zip": ({"a.zip": b"PK\x03\x04\x00\x00"}, {}, "is not UTF-8 text"),
    "utf-16": ({"a.csv": "user_id,item_id\n1,2\n".encode("utf-16")}, {}, "is not UTF-8 text"),
    "not gzip": ({"a.csv.gz": b"user_id,item_id\n"}, {}, "cannot be read as .gz"),
    "text as parquet": ({"a.csv": TEXT}, {"format": "parquet"}, "a.csv is not a Parquet file"),
    "unknown format": ({"a.csv": TEXT}, {"format": "xml"}, "format 'xml' is unknown"),
    "no delimiter": ({"a.csv": TEXT}, {"delimiter": ""}, "delimiter is empty"),
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


def test_items_are_mapped_by_their_own_option_and_a_catalog_table_must_exist(spark: SparkSession, tmp_path: Path) -> None:
    items = put(tmp_path / "items.csv", "name\nOne\n")
    with pytest.raises(SourceError, match="--item-columns item_id="):
        read_source(spark, IngestRequest(None, "csv", items=items))
    with pytest.raises(UsageError, match="nowhere"):
        read_source(spark, IngestRequest("nowhere", "delta"))
