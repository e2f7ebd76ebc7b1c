"""What counts as an id, a number, a flag, a list: of text and of typed columns alike."""

from __future__ import annotations

import uuid
from decimal import Decimal

import pyarrow as pa
import pytest

from recsys_batch.sources import values
from recsys_batch.sources.source_format import DEFAULT_NULL_VALUES

TEXT_IDS = {"7": 7, "-7": -7, "0": 0, "9223372036854775807": 2**63 - 1}
FOREIGN_IDS = ("007", "+7", "7.5", "A7", "9223372036854775808", "-0", "١٢", " 7")
MISSING_IDS = ("", "  ", "null", "NaN", r"\N", None)


def test_text_ids_are_bigint_only_if_every_one_is_a_plain_integer() -> None:
    ids = pa.array([*TEXT_IDS, *FOREIGN_IDS, *MISSING_IDS], pa.string())
    missing = values.is_missing(ids, DEFAULT_NULL_VALUES)
    assert missing.to_pylist() == [False] * (len(TEXT_IDS) + len(FOREIGN_IDS)) + [True] * len(MISSING_IDS)
    assert values.parse_id_column(ids, "BIGINT")[: len(TEXT_IDS)].to_pylist() == list(TEXT_IDS.values())
    foreign = values.needs_string_id(ids, missing).to_pylist()
    assert foreign == [False] * len(TEXT_IDS) + [True] * len(FOREIGN_IDS) + [False] * len(MISSING_IDS)
    assert values.parse_id_column(ids, "STRING").to_pylist() == ids.to_pylist()


@pytest.mark.parametrize(
    ("column", "bigints", "strings"),
    [
        (pa.array([7.0, 7.5, float("nan"), 1e300]), [7, None, None, None], ["7", "7.5", "nan", "1e+300"]),
        (pa.array([Decimal("7.0"), Decimal("7.5"), None]), [7, None, None], ["7", "7.5", None]),
        (pa.array([7, 2**64 - 1], pa.uint64()), [7, None], ["7", "18446744073709551615"]),
        (pa.array([7, None], pa.uint8()), [7, None], ["7", None]),
        (pa.nulls(2), [None, None], [None, None]),
    ],
    ids=["doubles", "decimals", "unsigned", "short", "nulls"],
)
def test_typed_ids(column: pa.Array, bigints: list[int | None], strings: list[str | None]) -> None:
    assert values.parse_id_column(column, "BIGINT").to_pylist() == bigints
    assert values.parse_id_column(column, "STRING").to_pylist() == strings


def test_unsigned_hashes_that_no_bigint_holds_need_strings() -> None:
    column = pa.array([7, 2**63, None], pa.uint64())
    assert values.needs_string_id(column, values.is_missing(column, ())).to_pylist() == [False, True, False]


def test_bytes_are_ids_as_uuids_or_as_their_reader_says() -> None:
    code = uuid.uuid4()
    assert values.decode_bytes(pa.array([code.bytes, None], pa.binary(16)), None).to_pylist() == [str(code), None]
    assert values.decode_bytes(pa.array([b"\xff\x00"], pa.binary()), "hex").to_pylist() == ["ff00"]
    assert values.decode_bytes(pa.array(["é".encode()], pa.binary()), "utf8").to_pylist() == ["é"]
    with pytest.raises(ValueError, match="--binary-ids hex"):
        values.decode_bytes(pa.array([b"\xff\x00"], pa.binary()), None)
    with pytest.raises(UnicodeDecodeError):
        values.decode_bytes(pa.array([b"\xff\x00"], pa.binary()), "utf8")


def test_numbers() -> None:
    text = pa.array(["maybe", "0", "1.5", "-2e1", "1,5", "0x1f", "+3", " .5 ", "1e99", "inf", None])
    assert values.parse_number(text).to_pylist() == [None, 0.0, 1.5, -20.0, None, None, 3.0, 0.5, float("inf"), None, None]
    assert str(values.parse_number(pa.array([-0.0]))[0]) == "0.0"
    assert values.parse_number(pa.array([True, None])).to_pylist() == [1.0, None]
    assert values.parse_number(pa.array([[1]])).to_pylist() == [None]


def test_flags_of_text_and_of_numbers() -> None:
    words = ["YES", "0", "on", "Off", "1.0", "0.0", "t", "N", "maybe", "1.5", None]
    assert values.parse_flag(pa.array(words)).to_pylist() == [True, False, True, False, True, False, True, False, None, None, None]
    assert values.parse_flag(pa.array([1.0, 0.0, 2.0, None])).to_pylist() == [True, False, None, None]
    assert values.parse_flag(pa.array([1, 0, 2])).to_pylist() == [True, False, None]
    assert values.parse_flag(pa.array([b"1"])).to_pylist() == [None]


LISTS = {
    " a | b||a": ["a", "b"],
    "['Action', 'Comedy']": ["Action", "Comedy"],
    '["x", ["y"]]': ["x", "y"],
    '[{"id": 1, "name": "Sports"}]': ["Sports"],
    "[broken": ["[broken"],
    "Action, Comedy": ["Action, Comedy"],
    "NULL": [],
    r"\N|b": ["b"],
    None: [],
}


def test_lists_in_text_are_json_python_or_separated() -> None:
    parsed = values.parse_text_lists(pa.array(LISTS, pa.string()), None, DEFAULT_NULL_VALUES)
    assert dict(zip(LISTS, parsed.to_pylist(), strict=True)) == LISTS
    assert values.parse_text_lists(pa.array(["Action, Comedy"]), ",", DEFAULT_NULL_VALUES).to_pylist() == [["Action", "Comedy"]]


def test_nested_lists_are_flattened_and_structs_named() -> None:
    structs = pa.array([[{"id": 1, "name": "Sports"}, {"id": 2, "name": None}], None])
    assert values.parse_text_lists(structs, None, ()).to_pylist() == [["Sports"], []]
    nested = pa.array([[["Home"], ["Home", "Kitchen"]], [[None, " "]]])
    assert values.parse_text_lists(nested, None, DEFAULT_NULL_VALUES).to_pylist() == [["Home", "Kitchen"], []]
    assert values.parse_text_lists(pa.array([[5, 6]]), None, ()).to_pylist() == [["5", "6"]]
