"""The five layouts of MovieLens, each from a few lines of its own."""

from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from recsys_batch.errors import SourceError
from recsys_batch.schemas import IdTypes
from recsys_batch.spark.ingest.movielens_source import read_movielens
from recsys_batch.spark.ingest.sources import IngestRequest, read_source
from recsys_batch.spark.ingest.validation import REASON, parse_interactions, parse_items, parse_users

IDS = IdTypes("BIGINT", "BIGINT")
FLAGS = "|".join("1" if place in (1, 3) else "0" for place in range(19))
LAYOUTS: dict[str, dict[str, str]] = {
    "atomic files": {
        "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t5\t4\t881250949\n2\t6\t3\t881250950\n",
        "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        '5\tUp\t2009\tAction Animation\n6\t"Q\t\tunknown\n',
        "ml-100k.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "1\t17\tF\tartist\t01234\n2\t56\tM\tnone\tT8H1N\n",
    },
    "ml-100k": {
        "u.data": "1\t5\t4\t881250949\n2\t6\t3\t881250950\n",
        "u.item": f'5|Up (2009)|01-Jan-2009||http://x/?a=1|{FLAGS}\n6|"Q||||1{"|0" * 18}\n',
        "u.user": "1|17|F|artist|01234\n2|56|M|none|T8H1N\n",
    },
    "ml-1m": {
        "ratings.dat": "1::5::4::881250949\n2::6::3::881250950\n",
        "movies.dat": '5::Up (2009)::Action|Animation\n6::"Q::unknown\n',
        "users.dat": "1::F::1::artist::01234\n2::M::56::none::T8H1N\n",
    },
    "ml-latest-small, ml-25m": {
        "ratings.csv": "userId,movieId,rating,timestamp\r\n1,5,4.0,881250949\r\n2,6,3.0,881250950\r\n",
        "movies.csv": 'movieId,title,genres\r\n5,"Up (2009)",Action|Animation\r\n6,"""Q",(no genres listed)\r\n',
        "tags.csv": "userId,movieId,tag,timestamp\r\n",
    },
}


def put(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="latin-1", newline="")
    return str(folder)


def usable(df: Any) -> list[dict[str, Any]]:
    """Every row must be usable; without the columns that only rejections need."""
    rows = df.toArrow().to_pylist()
    assert [row[REASON] for row in rows] == [None] * len(rows)
    return sorted(rows, key=lambda row: row.get("user_id", row.get("item_id")))


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_says_the_same(spark: SparkSession, tmp_path: Path, files: dict[str, str]) -> None:
    raw = read_source(spark, IngestRequest(put(tmp_path, files), "movielens"))
    assert raw.interactions is not None and raw.items is not None
    events = usable(parse_interactions(raw.interactions, IDS))
    assert [(e["user_id"], e["item_id"], e["weight"], e["event_type"], e["event_ts"].year) for e in events] == [
        (1, 5, 4.0, "rating", 1997),
        (2, 6, 3.0, "rating", 1997),
    ]
    items = usable(parse_items(raw.items, IDS))
    assert [(i["title"], i["categories"], dict(i["attributes"]).get("release_year")) for i in items] == [
        ("Up", ["Action", "Animation"], "2009"),
        ('"Q', [], None),
    ]
    if raw.users is not None:
        users = usable(parse_users(raw.users, IDS))
        assert [(u["segment"], dict(u["attributes"])) for u in users] == [
            ("under 18", {"gender": "F", "occupation": "artist", "zip_code": "01234"}),
            ("55+", {"gender": "M", "occupation": "none", "zip_code": "T8H1N"}),
        ]
    assert (raw.users is None) == ("ratings.csv" in files)


def test_latin_letters_survive(spark: SparkSession, tmp_path: Path) -> None:
    files = {**LAYOUTS["ml-1m"], "movies.dat": "5::Misérables, Les (1995)::Drama\n"}
    items = read_movielens(spark, put(tmp_path, files)).items
    assert items is not None
    assert items.collect()[0].title == "Misérables, Les"


def test_a_folder_of_another_kind_is_refused_with_what_was_looked_for_and_found(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no MovieLens layout: looked for .*u.data \+ u.item \+ u.user.*; found nothing"):
        read_movielens(spark, str(tmp_path))
    put(tmp_path, {"sales.csv": "a,b\n"})
    with pytest.raises(SourceError, match=r"found sales.csv"):
        read_movielens(spark, str(tmp_path))
    with pytest.raises(SourceError, match="is not a folder"):
        read_movielens(spark, str(tmp_path / "sales.csv"))
    with pytest.raises(SourceError, match="--source"):
        read_source(spark, IngestRequest(None, "movielens"))


def test_a_known_layout_with_another_header_names_the_column(spark: SparkSession, tmp_path: Path) -> None:
    files = {**LAYOUTS["ml-latest-small, ml-25m"], "movies.csv": "movieId,name,genres\n5,Up,Action\n"}
    with pytest.raises(SourceError, match=r"movies\.csv has no column title; it has movieId, name, genres"):
        read_movielens(spark, put(tmp_path, files))
