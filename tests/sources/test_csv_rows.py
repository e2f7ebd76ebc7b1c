"""Every physical line of a CSV file is a row or a malformed line; none swallows another unless line ends in fields were declared."""

from __future__ import annotations

import bz2
import gzip
import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.errors import SourceError
from recsys_batch.sources.csv_rows import read_csv_rows, read_header, split_fields
from recsys_batch.sources.file_tasks import FileTask, SourceFile, list_members
from recsys_batch.sources.source_format import SourceFormat

Rows = Callable[..., list[dict[str, Any]]]
Task = Callable[..., FileTask]
PLAIN = SourceFormat()
UNBALANCED = 'user,artist,plays\nu1,"Half a quote,5\nu2,Whole,3\nu3,Other half",2\nu4,12" single,1\n'

FIELDS = {
    "a,b,c": ["a", "b", "c"],
    '"a, ""b"" c",2': ['a, "b" c', "2"],
    '12" vinyl,x': ['12" vinyl', "x"],
    ' "a" , b': ["a", "b"],
    '"The" Band,5': ['"The" Band', "5"],
    '"never closed,5': None,
    'x,"y': None,
    'a,""': ["a", ""],
    "a,": ["a", ""],
    '"a",': ["a", ""],
    ",,": ["", "", ""],
    '"back\\slash\\"': ["back\\slash\\"],
}


@pytest.mark.parametrize(("line", "fields"), FIELDS.items())
def test_a_field_is_quoted_where_it_begins_and_ends_with_the_quote(line: str, fields: list[str] | None) -> None:
    assert split_fields(line, ",", '"', "") == fields


def test_delimiters_of_several_characters_escapes_and_no_quotes() -> None:
    assert split_fields('"a"::"b::c"::d', "::", '"', "") == ["a", "b::c", "d"]
    assert split_fields('"a\\"b",c', ",", '"', "\\") == ['a"b', "c"]
    assert split_fields("'a,b',c", ",", "'", "") == ["a,b", "c"]
    assert split_fields('a,"b', ",", "", "") == ["a", '"b']


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"])), min_size=1, max_size=4))
def test_what_was_quoted_is_read_as_it_was(fields: list[str]) -> None:
    line = ",".join('"' + field.replace('"', '""') + '"' for field in fields)
    assert split_fields(line, ",", '"', "") == fields


def test_lines_between_two_unbalanced_quotes_stay_rows_of_their_own(task: Task, rows: Rows) -> None:
    assert rows(task(UNBALANCED)) == [
        {"_line": 'u1,"Half a quote,5'},
        {"user": "u2", "artist": "Whole", "plays": "3"},
        {"user": "u3", "artist": 'Other half"', "plays": "2"},
        {"user": "u4", "artist": '12" single', "plays": "1"},
    ]
    assert rows(task(UNBALANCED), SourceFormat(quote=""))[0] == {"user": "u1", "artist": '"Half a quote', "plays": "5"}


def test_line_ends_in_fields_are_read_where_they_were_declared(task: Task, rows: Rows) -> None:
    text = 'u,t,n\r\n1,"a, ""b""\r\nc",2\r\n3,"never closed,4\r\n5,d,6\r\n'
    assert rows(task(text), SourceFormat(multiline=True)) == [
        {"u": "1", "t": 'a, "b"\nc', "n": "2"},
        {"_line": '3,"never closed,4'},
        {"u": "5", "t": "d", "n": "6"},
    ]
    assert [set(row) == {"_line"} for row in rows(task(text))] == [True, True, True, False]


def test_a_quote_that_closes_into_another_line_s_fields_takes_its_own_line_only(task: Task, rows: Rows) -> None:
    lines = ['1,"odd,2', *(f"{n},a,b" for n in range(200)), '7,"odd again,8', "9,c,d"]
    found = rows(task("\n".join(["u,t,n", *lines])), SourceFormat(multiline=True))
    assert [row for row in found if "_line" in row] == [{"_line": '1,"odd,2'}, {"_line": '7,"odd again,8'}]
    assert len(found) == 203 and found[-1] == {"u": "9", "t": "c", "n": "d"}


def test_a_quote_that_never_closes_does_not_hold_the_file(task: Task, rows: Rows) -> None:
    lines = ["u,t,n", '1,"odd,2', *(f"{n},{'a' * 100},b" for n in range(20_000))]
    found = rows(task("\n".join(lines)), SourceFormat(multiline=True))
    assert len(found) == 20_001 and [row for row in found if "_line" in row] == [{"_line": '1,"odd,2'}]


def test_lines_with_too_few_or_too_many_fields_are_kept_whole(task: Task, rows: Rows) -> None:
    assert rows(task("u,i\na,x\nb\nc,y,z\n\nd,w")) == [{"u": "a", "i": "x"}, {"_line": "b"}, {"_line": "c,y,z"}, {"u": "d", "i": "w"}]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=30), step=st.integers(1, 50), ends=st.booleans())
def test_parts_of_a_file_hold_each_line_once_wherever_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, line_end: str, lengths: list[int], step: int, ends: bool
) -> None:
    path = tmp_path_factory.mktemp("parts") / "a.csv"
    data = (line_end.join(["u,i", *(f"{n},{'é' * length}" for n, length in enumerate(lengths))]) + (line_end if ends else "")).encode()
    path.write_bytes(data)
    starts = list(range(0, len(data), step))
    found: list[tuple[int, str]] = []
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        part = FileTask(0, SourceFile(str(path), len(data)), str(path), start, end)
        for raw in read_csv_rows(part, PLAIN):
            found += zip(raw.positions.tolist(), raw.columns["u"].to_pylist(), strict=True)
    assert [user for _, user in found] == [str(n) for n in range(len(lengths))]
    assert sorted({place for place, _ in found}) == [place for place, _ in found]


TEXT = "u,i\na,x\nb,y\n"


def _zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("day/2.csv", "i,u\nz,c\n")
        archive.writestr("day/1.csv", TEXT)
        archive.writestr("__MACOSX/1.csv", "junk")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv.gz", gzip.compress(TEXT[:6].encode()) + gzip.compress(TEXT[6:].encode())),
        ("a.csv.bz2", bz2.compress(TEXT.encode())),
        ("a.csv.zst", pa.compress(TEXT.encode(), codec="zstd", asbytes=True)),
        ("a.csv", b"\xef\xbb\xbf" + TEXT.encode()),
    ],
    ids=["gz of two members", "bz2", "zst", "byte order mark"],
)
def test_compressed_files_are_read_by_their_names(task: Task, rows: Rows, name: str, content: bytes) -> None:
    assert rows(task(content, name)) == [{"u": "a", "i": "x"}, {"u": "b", "i": "y"}]


def test_each_file_in_a_zip_is_a_file(task: Task, rows: Rows) -> None:
    whole = task(_zipped(), "a.zip")
    members = list_members(whole.file)
    assert [member.name for member in members] == ["a.zip:day/1.csv", "a.zip:day/2.csv"]
    assert [row["u"] for member in members for row in rows(replace(whole, file=member))] == ["a", "b", "c"]


@pytest.mark.parametrize(("name", "says"), [("a.gz", "as .gz"), ("a.bz2", "as .bz2"), ("a.zst", "as .zst")])
def test_a_file_that_is_not_compressed_as_its_name_says_is_refused(task: Task, rows: Rows, name: str, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        rows(task(TEXT, name))


def test_the_whole_file_is_checked_for_its_encoding(task: Task, rows: Rows) -> None:
    body = "u,i\n" + "a,x\n" * 5 + "José,y\n"
    with pytest.raises(SourceError, match=r"a.csv is not UTF-8 text: line 7, byte 27 \(0xe9\).*--encoding"):
        rows(task(body.encode("latin-1")))
    assert rows(task(body.encode("latin-1")), SourceFormat(encoding="iso-8859-1"))[-1]["u"] == "José"
    for encoding in ("utf-16", "utf-16-le", "utf-32", "cp1252"):
        assert rows(task(body.encode(encoding)), SourceFormat(encoding=encoding))[-1] == {"u": "José", "i": "y"}
    with pytest.raises(SourceError, match="UTF-16: pass --encoding utf-16"):
        rows(task(body.encode("utf-16")))
    with pytest.raises(SourceError, match="utf-16-le text: line"):
        rows(task(body.encode("utf-16-le") + b"\x00\xd8"), SourceFormat(encoding="utf-16-le"))


def test_files_without_a_header_have_numbered_columns(task: Task, rows: Rows) -> None:
    how = SourceFormat(header=False)
    assert rows(task("7,x\n8,y\n"), how) == [{"1": "7", "2": "x"}, {"1": "8", "2": "y"}]
    assert read_header(task("7,x\n"), how) == ("1", "2")
    assert rows(task("7,x\n"), replace(how, names=("u", "i"))) == [{"u": "7", "i": "x"}]


def test_a_header_may_have_nameless_and_doubled_columns_but_must_be_text(task: Task) -> None:
    assert read_header(task(",user,User,user\n0,a,b,c\n"), PLAIN) == ("_c0", "user", "User_c2", "user_c3")
    assert read_header(task(""), PLAIN) == ()
    with pytest.raises(SourceError, match="is not UTF-8 text"):
        read_header(task(b"PK\x03\x04\x00,\n"), PLAIN)
    with pytest.raises(SourceError, match="header opens a quote"):
        read_header(task('user,"item\n'), PLAIN)


def test_folders_named_after_a_column_add_it_as_text(task: Task, rows: Rows) -> None:
    found = rows(task("item\nx\n", "user=000123/day=2024%2D01/none=__HIVE_DEFAULT_PARTITION__/a.csv"))
    assert found == [{"item": "x", "user": "000123", "day": "2024-01"}]


def test_damaged_files_name_themselves(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(SourceError, match=r"gone.csv cannot be read"):
        rows(FileTask(0, SourceFile(str(tmp_path / "gone.csv"), 1), ""))
