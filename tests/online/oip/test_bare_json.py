import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.online.api.decode import decode_json
from recsys_batch.online.api.messages import BadRequest
from recsys_batch.online.oip.bare_json import decode_bare_json

TEXTS = [r'"\ud83d\ude00"', r'"\ud83d"', r'"\uDE00"', r'"\ud83d\u0041"', r'"\ude00\ud83d"', '"\t"', r'"\x41"', '"\u00e9"', '"NaN"']
NUMBERS = ["0", "-0.0", "1e308", "1e309", "-1e400", "1e-400", "01", "1.", ".5", "+1", "-", "0x1", "9" * 400, "9" * 400 + ".0"]
FRAGMENTS = st.recursive(
    st.sampled_from([*TEXTS, *NUMBERS, "null", "true", "True", "nan", "inf", "", "{}", "//", "[" * 2000]) | st.integers().map(str),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{','.join(parts)}]")
        | st.lists(st.tuples(st.sampled_from(TEXTS), inner), max_size=3).map(lambda parts: f"{{{','.join(map(':'.join, parts))}}}")
    ),
    max_leaves=5,
)


def outcome(decode: Any, body: str) -> str:
    """The value as Python writes it, or that it is refused."""
    try:
        return repr(decode(body.encode())[0])
    except BadRequest:
        return "refused"


def test_the_three_words_stand_bare_wherever_a_number_may() -> None:
    found = decode_bare_json(b'{"a": [NaN, -Infinity, {"b": Infinity}], "c": "NaN"}')
    assert math.isnan(found["a"][0]) and found["a"][1:] == [-math.inf, {"b": math.inf}] and found["c"] == "NaN"


@given(FRAGMENTS)
def test_what_else_is_json_does_not_depend_on_whether_such_a_word_stands_beside_it(fragment: str) -> None:
    plain, beside = outcome(decode_json, f"[{fragment},0]"), outcome(decode_bare_json, f"[{fragment},NaN]")
    assert plain == beside


@pytest.mark.parametrize("word", ["nan", "Inf", "-NaN", "+Infinity", "infinity", "NaN0", "- Infinity"])
def test_no_other_spelling_is_taken(word: str) -> None:
    with pytest.raises(BadRequest, match="not JSON"):
        decode_bare_json(f"[NaN, {word}]".encode())


@pytest.mark.parametrize("odd", [r'"\ud800"', r'{"\uDC00": 1}', "1e400", "-" + "9" * 400 + ".0", '"' + "x" * 10**6])
def test_a_refusal_is_short_and_says_why(odd: str) -> None:
    with pytest.raises(BadRequest, match="the body is not JSON: ") as caught:
        decode_bare_json(f"[NaN, {odd}]".encode())
    assert len(str(caught.value)) < 300
