"""The layouts of MovieLens, each from a few lines of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recsys_batch.errors import SourceError
from recsys_batch.schemas import IdTypes
from recsys_batch.sources.column_mapping import check_columns
from recsys_batch.sources.file_tasks import FileTask, SourceFile
from recsys_batch.sources.movielens import recognise_layout, unknown_layout
from recsys_batch.sources.reading import read_rows, survey_task
from recsys_batch.sources.typed_rows import REASON, ParseSettings, parse_rows

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


def usable(folder: Path, files: dict[str, str], kind: str) -> list[dict[str, Any]]:
    """Every row must be usable."""
    for name, text in files.items():
        (folder / name).write_text(text, encoding="latin-1", newline="")
    layout = recognise_layout(sorted(files))
    assert layout is not None
    if kind not in layout:
        return []
    name, how = layout[kind]
    task = FileTask(0, SourceFile(str(folder / name), 1), str(folder))
    survey = survey_task(task, kind, how)
    check_columns(survey.columns, name, kind, how.columns, "")
    settings = ParseSettings(kind, how, IDS, survey.choose_clocks(how))
    rows = [row for raw in read_rows(task, kind, how) for row in parse_rows(raw, settings).to_pylist()]
    assert [row[REASON] for row in rows] == [None] * len(rows)
    return rows


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_says_the_same(tmp_path: Path, files: dict[str, str]) -> None:
    events = usable(tmp_path, files, "interactions")
    assert [(e["user_id"], e["item_id"], e["weight"], e["event_type"], e["event_ts"].year) for e in events] == [
        (1, 5, 4.0, "rating", 1997),
        (2, 6, 3.0, "rating", 1997),
    ]
    items = usable(tmp_path, files, "items")
    assert [(i["title"], i["categories"], dict(i["attributes"]).get("release_year")) for i in items] == [
        ("Up", ["Action", "Animation"], "2009"),
        ('"Q', [], None),
    ]
    users = usable(tmp_path, files, "users")
    assert [(u["segment"], dict(u["attributes"])) for u in users] == (
        []
        if "ratings.csv" in files
        else [
            ("under 18", {"gender": "F", "occupation": "artist", "zip_code": "01234"}),
            ("55+", {"gender": "M", "occupation": "none", "zip_code": "T8H1N"}),
        ]
    )


def test_latin_letters_survive(tmp_path: Path) -> None:
    files = {**LAYOUTS["ml-1m"], "movies.dat": "5::Misérables, Les (1995)::Drama\n"}
    assert usable(tmp_path, files, "items")[0]["title"] == "Misérables, Les"


def test_a_folder_of_another_kind_is_refused_with_what_was_looked_for_and_found() -> None:
    assert recognise_layout(["sales.csv"]) is None
    error = unknown_layout("shop", ["sales.csv"])
    assert isinstance(error, SourceError)
    assert "looked for *.inter + *.item + *.user; u.data + u.item + u.user" in str(error)
    assert str(error).endswith("found sales.csv")


def test_a_known_layout_with_another_header_names_the_column(tmp_path: Path) -> None:
    files = {**LAYOUTS["ml-latest-small, ml-25m"], "movies.csv": "movieId,name,genres\n5,Up,Action\n"}
    with pytest.raises(SourceError, match=r"movies\.csv has no column item_id; it has movieId, name, genres"):
        usable(tmp_path, files, "items")
