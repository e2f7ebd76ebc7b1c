"""Raw columns of any Arrow type to ids, numbers, flags and lists: null where a value cannot be parsed. Nothing raises for a value."""

import ast
import json
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.schemas import ID_ARROW, IdType

_TRUE, _FALSE = ("true", "1", "1.0", "yes", "y", "t", "on"), ("false", "0", "0.0", "no", "n", "f", "off")
# A cast alone accepts "0x1f" and "inf" as numbers.
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_BIGINT = r"^(0|-?[1-9][0-9]{0,18})$"
_MAX_BIGINT = 2**63 - 1
_UUID_BYTES = 16

CATEGORY_SEPARATOR = "|"


def null_array(n: int, kind: pa.DataType) -> pa.Array:
    """Make a column of nulls."""
    return pa.nulls(n, kind)


def is_missing(column: pa.Array, null_values: Sequence[str]) -> pa.Array:
    """Test whether values are missing: null, NaN, or a word for null with any blanks around it."""
    kind = column.type
    if pa.types.is_floating(kind):
        return pc.is_null(column, nan_is_null=True)
    if is_text(kind):
        return pc.or_kleene(pc.is_null(column), pc.fill_null(pc.is_in(_trim(column), value_set=pa.array(null_values, kind)), True))
    return pc.is_null(column)


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is text of any layout."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether a type is an integer, a float or a decimal."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a type is bytes of any layout."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def to_text(column: pa.Array) -> pa.Array:
    """Convert a column to text: nested values as JSON, times in ISO 8601, whole floats without a fraction."""
    kind = column.type
    if is_text(kind):
        return column.cast(pa.string())
    if pa.types.is_floating(kind):
        return _whole_numbers(column)[1]
    if pa.types.is_decimal(kind):
        return pc.replace_substring_regex(column.cast(pa.string()), r"\.0+$", "")
    if pa.types.is_nested(kind):
        return pa.array([None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in column.to_pylist()])
    if is_bytes(kind):
        return pa.array([None if value is None else value.hex() for value in column.to_pylist()], pa.string())
    return column.cast(pa.string())


def needs_string_id(column: pa.Array, missing: pa.Array) -> pa.Array:
    """Test whether a present value needs STRING ids: everything but integers of 64 bits and text like "7" (not "007" or "+7")."""
    kind = column.type
    if pa.types.is_uint64(kind):
        return pc.greater(column.fill_null(0), pa.scalar(_MAX_BIGINT, pa.uint64()))
    if is_number(kind):
        return pa.array(np.zeros(len(column), dtype=bool))
    if not is_text(kind):
        return pc.invert(missing)
    return pc.and_(pc.invert(missing), pc.is_null(parse_id_column(column, "BIGINT")))


def parse_id_column(column: pa.Array, id_type: IdType) -> pa.Array:
    """Parse ids into the warehouse's type; null where one does not fit. Text stays as it is in STRING; 7.0 is the id 7, 7.5 is none."""
    kind = column.type
    if id_type == "STRING":
        return to_text(decode_bytes(column, None))
    if pa.types.is_uint64(kind):
        fits = pc.less_equal(column, pa.scalar(_MAX_BIGINT, pa.uint64()))
        return pc.if_else(fits, column, None).cast(pa.int64())
    if pa.types.is_integer(kind):
        return column.cast(pa.int64())
    if pa.types.is_floating(kind):
        return _whole_numbers(column)[0]
    if pa.types.is_decimal(kind):
        column = pc.replace_substring_regex(column.cast(pa.string()), r"\.0+$", "")
    elif not is_text(kind):
        return null_array(len(column), ID_ARROW[id_type])
    return _parse_bigints(column)


def decode_bytes(column: pa.Array, binary_ids: str | None) -> pa.Array:
    """Decode ids that are bytes: 16 bytes are a UUID's canonical text unless ``binary_ids`` says hex; other columns stay.

    Raises ValueError where bytes cannot become an id, or are no UTF-8 where ``binary_ids`` is "utf8".
    """
    kind = column.type
    if not is_bytes(kind):
        return column
    values = column.to_pylist()
    if binary_ids == "hex":
        return pa.array([None if value is None else value.hex() for value in values], pa.string())
    if binary_ids == "utf8":
        return pa.array([None if value is None else value.decode("utf-8") for value in values], pa.string())
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width == _UUID_BYTES:
        return pa.array([None if value is None else str(uuid.UUID(bytes=value)) for value in values], pa.string())
    raise ValueError("bytes that are no UUID of 16: pass --binary-ids hex to have them as hexadecimal text")


def parse_number(column: pa.Array) -> pa.Array:
    """Parse FLOAT; null where a value is no number. NaN and infinity are kept, -0.0 becomes 0.0."""
    kind = column.type
    if is_number(kind) or pa.types.is_boolean(kind):
        numbers = column.cast(pa.float64(), safe=False) if not pa.types.is_boolean(kind) else column.cast(pa.int8()).cast(pa.float64())
    elif is_text(kind):
        numbers = parse_decimals(column)
    else:
        return null_array(len(column), pa.float32())
    with np.errstate(over="ignore"):
        return pc.add(numbers.cast(pa.float32(), safe=False), pa.scalar(0.0, pa.float32()))


def parse_decimals(column: pa.Array) -> pa.Array:
    """Parse text as DOUBLE; null where it is no plain number."""
    trimmed = _trim(column)
    plain = pc.if_else(pc.match_substring_regex(trimmed, _NUMBER), pc.utf8_ltrim(trimmed, "+"), None)
    return plain.cast(pa.float64())


def parse_flag(column: pa.Array) -> pa.Array:
    """Parse BOOLEAN from booleans and from true/false, yes/no, on/off, 1/0 in any case, also as numbers; null for anything else."""
    if pa.types.is_boolean(column.type):
        return column
    if is_number(column.type):
        column = _whole_numbers(column.cast(pa.float64(), safe=False))[1]
    elif not is_text(column.type):
        return null_array(len(column), pa.bool_())
    text = pc.utf8_lower(_trim(column))
    is_true, is_false = (pc.is_in(text, value_set=pa.array(words, text.type)) for words in (_TRUE, _FALSE))
    return pc.if_else(is_true, True, pc.if_else(is_false, False, pa.scalar(None, pa.bool_())))


def parse_text_lists(column: pa.Array, separator: str | None, null_values: Sequence[str]) -> pa.Array:
    """Parse LIST<STRING>: lists are flattened, texts split; blanks, words for null and repeats are dropped, null is an empty list.

    Args:
        separator: between the parts of a text; None: a JSON or Python list is one, else parts are separated by |.
    """
    dropped = set(null_values)
    if is_text(column.type):
        encoded = column.dictionary_encode()
        parts = [_split_categories(text, separator) for text in encoded.dictionary.to_pylist()]
        lists = [None if code is None else parts[code] for code in encoded.indices.to_pylist()]
    else:
        lists = [None if value is None else list(_leaves(value)) for value in column.to_pylist()]
    cleaned = [[part for part in dict.fromkeys(text.strip() for text in parts or ()) if part not in dropped] for parts in lists]
    return pa.array(cleaned, pa.list_(pa.string()))


def _split_categories(text: str | None, separator: str | None) -> list[str]:
    if text is None:
        return []
    if separator is not None:
        return text.split(separator)
    stripped = text.strip()
    if stripped[:1] in ("[", "(") and stripped[-1:] in ("]", ")"):
        for read in (json.loads, ast.literal_eval):
            try:
                return list(_leaves(read(stripped)))
            except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                continue
    return text.split(CATEGORY_SEPARATOR)


def _leaves(value: Any) -> Sequence[str]:
    """Flatten lists of lists; of a struct the text named name, title, label or value, else all its texts."""
    if value is None:
        return []
    if isinstance(value, list | tuple | set):
        return [leaf for part in value for leaf in _leaves(part)]
    if isinstance(value, dict):
        named = next((value[key] for key in ("name", "title", "label", "value") if isinstance(value.get(key), str)), None)
        return [named] if named is not None else [leaf for part in value.values() if isinstance(part, str) for leaf in _leaves(part)]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return [str(value)]


def _parse_bigints(column: pa.Array) -> pa.Array:
    digits = pc.if_else(pc.match_substring_regex(column, _BIGINT), column, None)
    magnitude = pc.utf8_ltrim(digits, "-")
    # Of 19 digits, text order is the order of numbers.
    too_long = pc.and_(pc.equal(pc.utf8_length(magnitude), 19), pc.greater(magnitude, pa.scalar(str(_MAX_BIGINT), magnitude.type)))
    return pc.if_else(too_long, None, digits).cast(pa.int64())


def _whole_numbers(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Split floats into (int64 of those without a fraction, else null; text of all)."""
    values = np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    is_whole = np.isfinite(values) & (np.floor(values) == values) & (np.abs(values) < 2.0**63)
    numbers = pa.array(np.where(is_whole, values, 0.0).astype(np.int64), mask=~is_whole)
    return numbers, pc.coalesce(numbers.cast(pa.string()), column.cast(pa.string()))


def _trim(column: pa.Array) -> pa.Array:
    return pc.utf8_trim_whitespace(column)
