"""Content tokens of items and users as ragged codes: no Python object per row, as a catalogue may have millions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.tables.list_columns import flatten_lists, mask_ragged, sorted_unique

_TEXT_PAIRS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))


@dataclass(frozen=True)
class ContentTokens:
    """Content tokens of each row as ragged codes: row i has ``codes[offsets[i]:offsets[i + 1]]``, positions in ``names``.

    Attributes:
        names: Arrow strings [t]. offsets: int64 [n + 1]. codes: int64 [total].
    """

    names: pa.Array
    offsets: np.ndarray
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[str]]) -> ContentTokens:
        """Encode lists of tokens, which stay in their order within a row."""
        encoded = pa.array([name for row in rows for name in row], pa.string()).dictionary_encode()
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        return cls(encoded.dictionary, offsets, np.asarray(encoded.indices, dtype=np.int64))

    @classmethod
    def empty(cls, n: int) -> ContentTokens:
        """Make the tokens of ``n`` rows that have none."""
        return cls(pa.array([], pa.string()), np.zeros(n + 1, dtype=np.int64), np.zeros(0, dtype=np.int64))

    def to_lists(self) -> list[list[str]]:
        """Write the tokens out, a list for each row."""
        names = self.names.take(pa.array(self.codes)).to_pylist()
        return [names[start:end] for start, end in zip(self.offsets[:-1], self.offsets[1:], strict=True)]

    def append_token(self, name: str) -> ContentTokens:
        """Add one more token, which no row has yet, behind those of every row."""
        names = pa.concat_arrays([self.names, pa.array([name], pa.string())])
        codes = np.insert(self.codes, self.offsets[1:], len(self.names))
        return ContentTokens(names, self.offsets + np.arange(len(self.offsets)), codes)


def encode_tokens(tokens: ContentTokens, min_rows: int, max_tokens: int = 20_000) -> ContentTokens:
    """Encode rows by the ``max_tokens`` most frequent tokens that ``min_rows`` rows or more have, sorted by name."""
    order = np.asarray(pc.sort_indices(tokens.names), dtype=np.int64)
    counts = np.bincount(tokens.codes, minlength=len(order))[order]
    frequent = np.flatnonzero(counts >= min_rows)
    frequent = np.sort(frequent[np.argsort(-counts[frequent], kind="stable")[:max_tokens]])
    code_of = np.full(len(order), -1, dtype=np.int64)
    code_of[order[frequent]] = np.arange(len(frequent))
    codes = code_of[tokens.codes]
    return ContentTokens(tokens.names.take(pa.array(order[frequent])), mask_ragged(tokens.offsets, codes >= 0), codes[codes >= 0])


def extract_content_tokens(table: pa.Table, column: str) -> ContentTokens:
    """Extract the tokens of each row: ``column`` (a list or one value) and every attribute as name=value, sorted by name."""
    owners, texts = [], []
    for owner, text in (_value_tokens(table[column].combine_chunks(), column), _attribute_tokens(table["attributes"].combine_chunks())):
        owners.append(owner)
        texts.append(text)
    encoded = pa.concat_arrays(texts).dictionary_encode()
    order = np.asarray(pc.sort_indices(encoded.dictionary), dtype=np.int64)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    t = max(len(order), 1)
    pairs = sorted_unique(np.concatenate(owners) * t + rank[np.asarray(encoded.indices, dtype=np.int64)])
    offsets = np.searchsorted(pairs, np.arange(table.num_rows + 1) * t).astype(np.int64)
    return ContentTokens(encoded.dictionary.take(pa.array(order)), offsets, pairs % t)


def extract_row_tokens(column: str, value: list[str] | str | None, attributes: dict[str, str] | None) -> list[str]:
    """Extract the tokens of one row, as ``extract_content_tokens`` does."""
    values = value if isinstance(value, list) else [value] if value is not None else []
    named = [f"{column}={part}" for part in values] + [f"{key}={part}" for key, part in (attributes or {}).items()]
    return sorted(set(named))


def _value_tokens(values: pa.Array, column: str) -> tuple[np.ndarray, pa.Array]:
    """Name the values of a column: their rows, int64 [m], and tokens [m]."""
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        flat, offsets = flatten_lists(values)
        owners = np.repeat(np.arange(len(values)), np.diff(offsets))
    else:
        owners, flat = np.flatnonzero(np.asarray(values.is_valid())), values.drop_null()
    return owners, _join_names(pa.scalar(column), flat)


def _attribute_tokens(attributes: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Name the attributes: their rows, int64 [m], and tokens [m]."""
    pairs, offsets = flatten_lists(attributes.cast(_TEXT_PAIRS))
    return np.repeat(np.arange(len(attributes)), np.diff(offsets)), _join_names(pairs.field("key"), pairs.field("value"))


def _join_names(keys: pa.Array | pa.Scalar, values: pa.Array) -> pa.Array:
    # "None" as Python writes a value that is missing inside a list.
    return pc.binary_join_element_wise(keys, pc.fill_null(values.cast(pa.string()), "None"), "=")
