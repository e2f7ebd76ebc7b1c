"""Fingerprints know every user, hardly a stranger, and no erased user."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.online.snapshot.user_fingerprints import UserFingerprints, make_fingerprints, open_fingerprints
from recsys_batch.online.snapshot.user_key import user_key


def keys_of(*users: int) -> list[bytes]:
    return [key for user in users if (key := user_key(user, "BIGINT")) is not None]


@given(st.sets(st.binary(min_size=1, max_size=20), max_size=50), st.data())
def test_everybody_is_known_but_those_taken_out(keys: set[bytes], data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.sampled_from(sorted(keys)))) if keys else set()
    known = make_fingerprints(keys)
    assert len(known) == len(keys) and all(key in known for key in keys)
    fewer = known.without(gone)
    assert len(fewer) == len(keys) - len(gone)
    assert all(key in fewer for key in keys - gone) and not any(key in fewer for key in gone)


def test_strangers_are_none_of_a_hundred_thousand_users() -> None:
    known = make_fingerprints(keys_of(*range(100_000)))
    assert sum(key in known for key in keys_of(*range(10**6, 10**6 + 20_000))) <= 10  # 0.5 are expected


def test_of_users_with_the_same_fingerprint_one_goes_for_each_that_is_erased() -> None:
    (key,) = keys_of(5)
    (print_of_it,) = make_fingerprints([key])._sorted_prints
    twice = UserFingerprints(np.array([1, print_of_it, print_of_it, 2**32 - 1], np.uint32))
    assert len(twice.without([key])) == 3 and key in twice.without([key])
    assert key not in twice.without([key]).without([key]) and len(twice.without([b"stranger"])) == 4


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    known = make_fingerprints(keys_of(3, 1, 2))
    known.write(tmp_path / "prints.npy")
    assert all(key in open_fingerprints(tmp_path / "prints.npy") for key in keys_of(1, 2, 3))
    for array in (np.array([2, 1], np.uint32), np.array([1], np.int64), np.ones((1, 1), np.uint32)):
        np.save(tmp_path / "prints.npy", array)
        with pytest.raises(ValueError, match="ascending uint32"):
            open_fingerprints(tmp_path / "prints.npy")
