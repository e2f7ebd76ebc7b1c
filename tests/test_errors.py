import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.errors import quote, shorten

DEEP: list[object] = []
for _ in range(5_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("value", "quoted"),
    [("7", "'7'"), (7, "7"), (None, "None"), ([1, "a"], "[1, 'a']"), ({"k": 1}, "{'k': 1}"), (b"\xff", r"b'\xff'")],
    ids=["text", "number", "null", "list", "object", "bytes"],
)
def test_a_short_value_is_quoted_as_python_writes_it(value: object, quoted: str) -> None:
    assert quote(value) == quoted


@pytest.mark.parametrize(
    "value",
    [
        "x" * 5_000_000,
        "\U0001f98a\n" * 100,
        b"\xff" * 100,
        list(range(10**6)),
        DEEP,
        {str(n): "x" * 99 for n in range(9)},
        10**4299,
        10**5000,
    ],
    ids=["long", "escaped", "bytes", "list", "deep", "object", "digits", "more digits than Python writes"],
)
def test_a_large_value_is_quoted_in_sixty_characters_and_costs_no_more(value: object) -> None:
    assert len(quote(value)) <= 60


@given(st.text(max_size=30), st.integers(3, 20))
def test_a_text_is_shortened_to_its_beginning_and_says_so(text: str, length: int) -> None:
    shortened = shorten(text, length)
    assert shortened == text if len(text) <= length else shortened == text[: length - 3] + "..."
