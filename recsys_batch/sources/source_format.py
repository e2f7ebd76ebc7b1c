"""How source files are written, and which of their columns are ours."""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from recsys_batch.config import Data
from recsys_batch.errors import SourceError

FORMATS = ("csv", "jsonl", "parquet", "delta", "movielens", "exposures")
TEXT_FORMATS = ("csv", "jsonl")
BINARY_IDS = ("hex", "utf8")
SPLITS = ("auto", "time", "user", "random")
"""How held-out interactions are chosen."""

INTERACTION_COLUMNS = ("user_id", "item_id", "event_ts", "event_type", "weight", "request_id")
ITEM_COLUMNS = ("item_id", "title", "categories", "is_available", "first_seen_ts", "updated_ts")
USER_COLUMNS = ("user_id", "segment", "updated_ts")
COLUMNS_OF_KIND = {"interactions": INTERACTION_COLUMNS, "items": ITEM_COLUMNS, "users": USER_COLUMNS}
KEY_OF_KIND = {"interactions": ("user_id", "item_id"), "items": ("item_id",), "users": ("user_id",)}
TIMES_OF_KIND = {"interactions": ("event_ts",), "items": ("first_seen_ts", "updated_ts"), "users": ("updated_ts",)}

DEFAULT_NULL_VALUES = Data().null_values
"""Spellings of a missing value in text, by databases and data frames."""


@dataclass(frozen=True)
class SourceFormat:
    """How the files of one kind are written.

    Attributes:
        kind: one of FORMATS.
        columns: our column name -> the file's: a header's name, a number from 1 where there is no header, a path with dots in JSON.
        delimiter: of CSV, one character or several.
        quote: character around CSV fields; "" where quotes are ordinary characters.
        escape: character that makes the next one ordinary inside a quoted CSV field; "" where a quote is doubled instead.
        header: whether the first line of each CSV file names the columns.
        names: names of a CSV file's columns where it has no header and they are known.
        multiline: whether quoted CSV fields may hold line ends.
        encoding: of text files, as Python names it.
        time_format: epoch:s, epoch:ms, epoch:us, epoch:ns, epoch:relative, or a format of strptime; None: decided from the values.
        category_separator: between the categories of one text; None: JSON, Python lists and | are understood.
        weights: event type -> weight; empty: the weight column, or 1.
        binary_ids: how bytes become ids: "hex" or "utf8"; None: only 16 bytes, as a UUID.
        null_values: texts that mean a missing value, in every column.
        transform: name of a function in ``movielens`` that rows go through first.
    """

    kind: str = "csv"
    columns: Mapping[str, str] = field(default_factory=dict)
    delimiter: str = ","
    quote: str = '"'
    escape: str = ""
    header: bool = True
    names: tuple[str, ...] = ()
    multiline: bool = False
    encoding: str = "utf-8"
    time_format: str | None = None
    category_separator: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    binary_ids: str | None = None
    null_values: tuple[str, ...] = DEFAULT_NULL_VALUES
    transform: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in FORMATS:
            raise SourceError(f"format {self.kind!r} is unknown; known formats: {', '.join(FORMATS)}")
        if not self.delimiter:
            raise SourceError("the delimiter is empty: pass one character, for example --delimiter ';'")
        for option, text in (("--quote", self.quote), ("--escape", self.escape)):
            if len(text) > 1:
                raise SourceError(f"{option} {text!r}: expected one character, or none")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise SourceError(f"--encoding {self.encoding!r} is unknown: try utf-8, iso-8859-1, cp1252 or utf-16") from None
        if self.binary_ids not in (None, *BINARY_IDS):
            raise SourceError(f"--binary-ids {self.binary_ids!r}: expected {' or '.join(BINARY_IDS)}")

    @property
    def is_text(self) -> bool:
        """Whether files are lines of text."""
        return self.kind in TEXT_FORMATS

    def with_options(self, **options: Any) -> "SourceFormat":
        """Replace the attributes that are given, which None does not."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})


def unescape_delimiter(text: str) -> str:
    """Read a delimiter as a shell passes it: backslash and t are a tab."""
    return text.replace("\\t", "\t")


def parse_quote(text: str) -> str:
    """Read ``--quote none|CHAR``."""
    return "" if text.lower() == "none" else text


def describe_columns(present: Sequence[str], most: int = 20) -> str:
    """List column names for a sentence, the first ``most`` of them."""
    return ", ".join(present[:most]) + (f" and {len(present) - most} more" if len(present) > most else "")
