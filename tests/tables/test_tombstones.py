"""Erased users are known again by a keyed hash of their ids alone, in whichever type and row the ids come."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.errors import ConfigError
from recsys_batch.tables.raw_rows import iterate_values
from recsys_batch.tables.tombstones import Tombstones, add_tombstones, keep_living, read_tombstones


def test_numbers_and_their_digits_are_the_same_user_and_nulls_are_nobody(tmp_path: Path) -> None:
    assert read_tombstones(str(tmp_path)) is None
    tombstones = add_tombstones(str(tmp_path), ["7", "-3", "u1"])
    assert tombstones.matches(pa.array([7, 70, None, -3])).to_pylist() == [True, False, False, True]
    assert tombstones.matches(pa.array(["7", "u1", "u11", None])).to_pylist() == [True, True, False, False]
    assert tombstones.matches(pa.array([], pa.int64())).to_pylist() == []
    assert read_tombstones(str(tmp_path)) == tombstones


@given(st.sets(st.text(max_size=20)), st.lists(st.text(max_size=20)))
def test_exactly_the_erased_ids_match(erased: set[str], others: list[str]) -> None:
    plain = Tombstones(frozenset(), b"a key of sixteen or more")
    tombstones = Tombstones(frozenset(map(plain.hash, erased)), plain.key)
    ids = [*erased, *others]
    assert tombstones.matches(pa.array(ids, pa.string())).to_pylist() == [user in erased for user in ids]


def test_no_id_is_in_the_files_and_the_key_is_made_once(tmp_path: Path) -> None:
    add_tombstones(str(tmp_path), ["erase-me-4711"])
    key = (tmp_path / "_erased" / "key").read_bytes()
    both = add_tombstones(str(tmp_path), ["erase-me-4711", "another"])
    assert len(both.hashes) == 2 and (tmp_path / "_erased" / "key").read_bytes() == key and len(key.strip()) == 64
    assert not any(b"erase-me" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_key_of_ones_own_is_kept_elsewhere_and_a_wrong_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_BATCH_ERASURE_KEY", "the first key of ours")
    tombstones = add_tombstones(str(tmp_path), ["u1"])
    assert not (tmp_path / "_erased" / "key").exists() and read_tombstones(str(tmp_path)) == tombstones
    monkeypatch.setenv("RECSYS_BATCH_ERASURE_KEY", "another key than that")
    with pytest.raises(ConfigError, match="with another key"):
        add_tombstones(str(tmp_path), ["u2"])
    monkeypatch.delenv("RECSYS_BATCH_ERASURE_KEY")
    with pytest.raises(ConfigError, match="a key that is not here: set RECSYS_BATCH_ERASURE_KEY"):
        read_tombstones(str(tmp_path))
    monkeypatch.setenv("RECSYS_BATCH_ERASURE_KEY", "short")
    with pytest.raises(ConfigError, match="has 5 characters"):
        read_tombstones(str(tmp_path))


def test_another_key_gives_another_hash() -> None:
    assert Tombstones(frozenset(), b"one").hash("u1") != Tombstones(frozenset(), b"two").hash("u1")


@pytest.mark.parametrize(
    ("row", "values"),
    [
        ('{"user_id":"u1","item_id":"i1"}', {"u1"}),
        ('{"cust":"u1","sku":7}', {"u1", "7"}),
        ('{"user_id":null,"item_id":"i1"}', {"i1"}),
        ('{"_line":"u1,2;\\"3\\""}', {"u1", "2", "3"}),
        ("u1::2::3", {"u1", "2", "3"}),
        (json.dumps({"topic": "t", "offset": 4, "value": '{"user_id": "u1", "item_id": 9}'}), {"u1", "t", "4"}),
        ('{"user_id":7}', {"7"}),
    ],
)
def test_the_values_of_a_raw_row_that_may_be_a_user(row: str, values: set[str]) -> None:
    found = set(iterate_values(row))
    assert values <= found
    assert not {"i1", "9"} & found - values


def test_rows_of_the_living_stay_also_refused_ones(tmp_path: Path) -> None:
    tombstones = add_tombstones(str(tmp_path), ["u1"])
    raw = ['{"user_id":"u1"}', '{"user_id":"u2"}', '{"_line":"u1,5"}', '{"_line":"u2,5"}']
    rows = pa.table({"user_id": ["u1", "u2", None, None], "_row": raw, "_reason": [None, None, "malformed_line", "malformed_line"]})
    kept, n_erased = keep_living(rows, tombstones, "_row", "_reason")
    assert (kept["_row"].to_pylist(), n_erased) == ([raw[1], raw[3]], 2)
    assert keep_living(rows, None, "_row", "_reason") == (rows, 0)
