from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.snapshot.lmdb_store import LmdbStore, write_lmdb
from recsys_batch.online.snapshot.user_key import user_key
from recsys_batch.online.snapshot.user_record import UserRecord, decode_record, encode_record

BIGINT = st.integers(-(2**63), 2**63 - 1)


@given(BIGINT, BIGINT)
def test_number_keys_sort_as_the_numbers(one: int, other: int) -> None:
    assert (user_key(one, "BIGINT") < user_key(other, "BIGINT")) == (one < other)  # type: ignore[operator]


@given(st.text(), st.text())
def test_text_keys_tell_all_ids_apart_and_fit_the_store(one: str, other: str) -> None:
    long = "x" * 600
    for a, b in ((one, other), (long + one, long + other)):
        keys = user_key(a, "STRING"), user_key(b, "STRING")
        assert all(key is None or 1 <= len(key) <= 511 for key in keys)
        if None not in keys:
            assert (keys[0] == keys[1]) == (a == b)


@pytest.mark.parametrize("user", [2**63, -(2**63) - 1, "12x", "", "-", "9" * 30, "\uff11\uff12", "1.0"])
def test_what_is_no_bigint_is_no_users_key(user: int | str) -> None:
    assert user_key(user, "BIGINT") is None


def test_a_number_and_its_digits_are_the_same_user() -> None:
    assert user_key("-42", "BIGINT") == user_key(-42, "BIGINT")
    assert user_key(42, "STRING") == user_key("42", "STRING")


def lists_of(seed: int, c: int, k: int, d: int) -> UserRecord:
    rng = np.random.default_rng(seed)
    floats = lambda n: rng.standard_normal(n).astype(np.float32)  # noqa: E731
    embedding = floats(d) if d else None
    return UserRecord(
        embedding, int(rng.integers(0, 10**6)), None, rng.integers(0, 2**31, c), floats(c), rng.permutation(c)[:k], floats(min(c, k))
    )


@given(st.integers(0, 2**32), st.integers(0, 300), st.integers(0, 100), st.sampled_from([0, 1, 64]))
def test_a_record_reads_back_as_it_was(seed: int, c: int, k: int, d: int) -> None:
    lists = lists_of(seed, c, k, d)
    found = decode_record(encode_record(lists))
    assert found.n_events == lists.n_events and found.segment is None
    for name in ("codes", "retrieval", "top_places", "top_scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(lists, name))
    assert (found.embedding is None) == (lists.embedding is None)
    if lists.embedding is not None:
        np.testing.assert_array_equal(found.embedding, lists.embedding)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_are_refused(junk: bytes) -> None:
    try:
        decode_record(junk)
    except RecsysBatchError:
        return
    assert junk[0] == 1


def test_a_record_cut_short_is_refused() -> None:
    whole = encode_record(lists_of(1, 20, 10, 8))
    for n in range(len(whole)):
        with pytest.raises(RecsysBatchError, match="export it again"):
            decode_record(whole[:n])


@given(st.lists(st.binary(min_size=1, max_size=40), unique=True, max_size=60))
def test_the_store_holds_what_was_put_in_whatever_order(tmp_path_factory: pytest.TempPathFactory, keys: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("store") / "users.lmdb"
    assert write_lmdb(path, [(key, key * 3) for key in keys]) == len(keys)
    store = LmdbStore(path)
    assert len(store) == len(keys) and all(store.get(key) == key * 3 for key in keys)
    assert store.get(b"not among them, which is longer than forty bytes") is None
    store.close()


def test_a_file_that_is_open_twice_stays_open_for_the_second(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "users.lmdb", [(b"a", b"1")])
    one, other = LmdbStore(tmp_path / "users.lmdb"), LmdbStore(tmp_path / "users.lmdb")
    one.close()
    assert other.get(b"a") == b"1"
    other.close()
    again = LmdbStore(tmp_path / "users.lmdb")
    assert again.get(b"a") == b"1"
    again.close()


def test_a_user_with_two_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecsysBatchError, match="listed twice"):
        write_lmdb(tmp_path / "users.lmdb", [(b"a", b"1"), (b"a", b"2")])
