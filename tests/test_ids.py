"""An id means one thing however a request, a log or a command spells it."""

import re

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recsys_batch.ids import parse_bigint, parse_id
from recsys_batch.online.snapshot.user_key import user_id_from_key, user_key
from recsys_batch.schemas import IdType

BIGINTS = st.integers(-(2**63), 2**63 - 1)
SPELLED = st.integers(-(2**70), 2**70) | st.from_regex(r"-?[0-9]{1,25}", fullmatch=True) | st.text(max_size=20)


@given(SPELLED)
@example("\uff17")
@example("--7")
@example("+7")
@example("1_000")
@example("")
def test_an_id_is_the_one_that_the_warehouse_means(value: int | str) -> None:
    assert parse_id(value, "STRING") == str(value)
    means_one = re.fullmatch(r"-?[0-9]+", str(value)) is not None and len(str(value)) <= 20 and -(2**63) <= int(value) < 2**63
    assert parse_id(value, "BIGINT") == parse_bigint(value) == (int(value) if means_one else None)


@settings(deadline=None)  # the first cast imports pyarrow.compute
@given(BIGINTS, st.sampled_from(["BIGINT", "STRING"]))
def test_a_number_and_its_digits_are_one_id_in_tables_and_in_stores(number: int, kind: IdType) -> None:
    parsed = parse_id(number, kind)
    assert parsed is not None and parse_id(str(number), kind) == parse_id(parsed, kind) == parsed
    assert user_key(number, kind) == user_key(str(number), kind) == user_key(parsed, kind)
    assert user_id_from_key(user_key(number, kind) or b"", kind) == parsed
    assert parsed == pa.scalar(str(number)).cast(pa.int64() if kind == "BIGINT" else pa.string()).as_py()


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, "12x", "-", " 7", "7 ", "1.0", "9" * 21])
def test_what_is_no_bigint_is_none(value: int | str) -> None:
    assert parse_bigint(value) is None
