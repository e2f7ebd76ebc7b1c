"""Content tokens of many rows at once: the same as one row at a time."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.model.content_tokens import ContentTokens, encode_tokens, extract_content_tokens, extract_row_tokens
from recsys_batch.model.tower_parameters import sum_token_embeddings

WORDS = st.sampled_from(["", "a", "b", "é", "z=1", "Zebra", "10", "9"])
ATTRIBUTES = st.none() | st.dictionaries(WORDS, st.none() | WORDS, max_size=3)
TEXT_MAP = pa.map_(pa.string(), pa.string())


def table_of(values: list[object], attributes: list[dict[str, str] | None], kind: pa.DataType) -> pa.Table:
    pairs = [None if row is None else list(row.items()) for row in attributes]
    return pa.table({"value": pa.array(values, kind), "attributes": pa.array(pairs, TEXT_MAP)})


@given(
    st.lists(st.tuples(st.none() | st.lists(st.none() | WORDS, max_size=3), st.none() | WORDS, ATTRIBUTES), max_size=8), st.integers(0, 3)
)
def test_rows_together_have_the_tokens_of_each_alone(
    rows: list[tuple[list[str] | None, str | None, dict[str, str] | None]], cut: int
) -> None:
    """Lists and single values, with what is missing; also a slice of a table."""
    attributes = [row[2] for row in rows]
    for column, kind in ((0, pa.list_(pa.string())), (1, pa.string())):
        values = [row[column] for row in rows]
        table = table_of(values, attributes, kind).slice(cut)
        expected = [extract_row_tokens("value", *pair) for pair in list(zip(values, attributes, strict=True))[cut:]]
        tokens = extract_content_tokens(table, "value")
        assert tokens.to_lists() == expected and len(tokens) == len(expected)


@given(st.lists(st.lists(WORDS, max_size=4, unique=True), max_size=12), st.integers(1, 3), st.integers(1, 4))
def test_the_most_frequent_tokens_are_kept_by_name(rows: list[list[str]], min_rows: int, max_tokens: int) -> None:
    counts = Counter(name for row in rows for name in row)
    by_count = sorted((name for name, n in counts.items() if n >= min_rows), key=lambda name: (-counts[name], name))
    names = sorted(by_count[:max_tokens])
    encoded = encode_tokens(ContentTokens.from_lists(rows), min_rows, max_tokens)
    assert encoded.names.to_pylist() == names
    assert encoded.to_lists() == [[name for name in row if name in names] for row in rows]


def test_a_token_of_every_row_stands_behind_the_others() -> None:
    tokens = ContentTokens.from_lists([["b", "a"], [], ["a"]]).append_token("(any)")
    assert tokens.to_lists() == [["b", "a", "(any)"], ["(any)"], ["a", "(any)"]]
    assert ContentTokens.empty(2).append_token("x").to_lists() == [["x"], ["x"]]


@pytest.mark.parametrize("chosen", [[2, 0], [1], []])
def test_sums_are_of_the_chosen_rows_tokens(chosen: list[int]) -> None:
    tokens = ContentTokens.from_lists([["a", "b"], [], ["b"]])
    table = torch.tensor([[1.0, 10.0], [2.0, 20.0]])
    sums = {0: [3.0, 30.0], 1: [0.0, 0.0], 2: [2.0, 20.0]}
    found = sum_token_embeddings(tokens, table, np.array(chosen, dtype=np.int64))
    torch.testing.assert_close(found, torch.tensor([sums[row] for row in chosen]).reshape(-1, 2))
