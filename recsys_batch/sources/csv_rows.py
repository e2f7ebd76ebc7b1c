"""Lines of CSV to columns of text: every physical line is a row, a malformed line, or, with ``multiline``, part of a row."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.errors import SourceError
from recsys_batch.sources.file_tasks import FileTask
from recsys_batch.sources.lines import LineBlock, read_lines
from recsys_batch.sources.raw_rows import RawRows
from recsys_batch.sources.source_format import SourceFormat

_MAX_RECORD = 1 << 20  # characters that a quoted field with line ends may span
_BLANKS = " \t"


def read_csv_rows(task: FileTask, how: SourceFormat, content: bytes | None = None) -> Iterator[RawRows]:
    """Read the rows of a task's part of a CSV file.

    Raises SourceError where it is not text of its encoding, or its first line is no header.
    """
    names: tuple[str, ...] = how.names
    blocks = read_lines(task, how.encoding, content)
    if task.start and not names:
        names = read_header(task, how, content)
    elif how.header or not names:
        first = next(blocks, None)
        if first is None:
            return
        line = first.lines[0].as_py()
        names = names or parse_header(line, how, task.file.name)
        blocks = _prepend(first.skip_first() if how.header else first, blocks)
    for block in _join_records(blocks, how, len(names)) if how.multiline and how.quote else blocks:
        yield _parse_block(block, names, how, task.file.partition)


def read_header(task: FileTask, how: SourceFormat, content: bytes | None = None) -> tuple[str, ...]:
    """Read a file's column names; () where the file is empty."""
    whole = FileTask(task.file_number, task.file, task.source)
    first = next(read_lines(whole, how.encoding, content), None)
    return () if first is None else parse_header(first.lines[0].as_py(), how, task.file.name)


def parse_header(line: str, how: SourceFormat, file: str) -> tuple[str, ...]:
    """Parse column names from a first line; numbers from 1 where files have no header."""
    if any(not character.isprintable() and character != "\t" for character in line):
        raise SourceError(f"{file} is not UTF-8 text: files may be plain, or compressed with a name that says so (.gz, .bz2, .zst, .zip)")
    fields = split_fields(line, how.delimiter, how.quote, how.escape)
    if fields is None:
        raise SourceError(f"{file}: the header opens a quote that it does not close: {line[:200]!r}. Pass --quote none, or --multiline")
    if not how.header:
        return tuple(str(number) for number in range(1, len(fields) + 1))
    names: list[str] = []
    for position, name in enumerate(fields):
        # A data frame written with its index has a column without a name.
        names.append(name if name and name.lower() not in map(str.lower, names) else f"{name}_c{position}")
    return tuple(names)


def split_fields(line: str, delimiter: str, quote: str, escape: str) -> list[str] | None:
    """Split a line (or a record of several) into fields; None where a quoted field does not end.

    A field is quoted where it begins with the quote, behind blanks; a doubled quote inside stands for one. A quoted field that text
    follows is no quoted field, and a quote elsewhere is an ordinary character.
    """
    if not quote or quote not in line:
        return [field.strip(" ") if delimiter != " " else field for field in line.split(delimiter)]
    field_pattern, unescape = _patterns(delimiter, quote, escape)
    fields: list[str] = []
    position = 0
    while True:
        match = field_pattern.match(line, position)
        if match is None:
            return None
        quoted = match["quoted"]
        fields.append(unescape.sub(lambda found: found[0][-1], quoted) if quoted is not None else match["plain"].strip(" "))
        position = match.end()
        if position >= len(line):
            return fields
        position += len(delimiter)
        if position >= len(line):
            return [*fields, ""]


@lru_cache(maxsize=16)
def _patterns(delimiter: str, quote: str, escape: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    d, q, e = re.escape(delimiter), re.escape(quote), re.escape(escape)
    blanks = "[" + "".join(re.escape(blank) for blank in _BLANKS if blank not in delimiter) + "]*"
    has_escape = bool(escape) and escape != quote
    escaped = f"{q}{q}|{e}[\\s\\S]" if has_escape else f"{q}{q}"
    not_ordinary = f"{q}{e}" if has_escape else q
    inside, inside_line = f"(?:[^{not_ordinary}]|{escaped})*+", f"(?:[^{not_ordinary}\\n]|{escaped})*+"
    text = f"(?:(?!{d})[\\s\\S])*"
    # A quote that closes before other text of its line makes the field plain; one that never closes makes no field at all.
    plain = f"(?P<plain>(?!{blanks}{q}){text}|{blanks}{q}{inside_line}{q}(?!{blanks}(?:{d}|\\Z)){text})"
    field = f"(?:{blanks}{q}(?P<quoted>{inside}){q}{blanks}(?={d}|\\Z)|{plain})"
    return re.compile(field), re.compile(escaped)


def _join_records(blocks: Iterator[LineBlock], how: SourceFormat, n_fields: int) -> Iterator[LineBlock]:
    """Join the lines of records whose quoted fields hold line ends.

    A line that opens a quote which never closes, or closes into a record of another number of fields, stays as it is, and so do the
    lines behind it.
    """
    pending: list[tuple[int, str]] = []
    for block in blocks:
        lines = [*pending, *zip(block.positions.tolist(), block.lines.to_pylist(), strict=True)]
        records, pending = _join_lines(lines, how, n_fields, is_last=False)
        if records:
            yield _line_block(records)
    records, _ = _join_lines(pending, how, n_fields, is_last=True)
    if records:
        yield _line_block(records)


def _join_lines(
    lines: list[tuple[int, str]], how: SourceFormat, n_fields: int, *, is_last: bool
) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Join lines to records; returns them, and the lines of a record that is not complete yet."""
    records: list[tuple[int, str]] = []
    i = 0
    while i < len(lines):
        n_lines = _count_lines(lines, i, how, n_fields)
        if n_lines is None and not is_last and sum(len(text) for _, text in lines[i:]) < _MAX_RECORD:
            return records, lines[i:]
        end = i + (n_lines or 1)
        records.append((lines[i][0], "\n".join(text for _, text in lines[i:end])))
        i = end
    return records, []


def _count_lines(lines: Sequence[tuple[int, str]], first: int, how: SourceFormat, n_fields: int) -> int | None:
    """Count the lines of the record that begins with a line; None where it does not end among the lines, or within ``_MAX_RECORD``."""
    texts, n_characters = [lines[first][1]], 0
    if split_fields(texts[0], how.delimiter, how.quote, how.escape) is not None:
        return 1
    for _, text in lines[first + 1 :]:
        texts.append(text)
        n_characters += len(text) + 1
        if n_characters > _MAX_RECORD:
            return None
        if how.quote in text:  # only a quote can end the field
            fields = split_fields("\n".join(texts), how.delimiter, how.quote, how.escape)
            if fields is not None:
                return len(texts) if len(fields) == n_fields else 1
    return None


def _line_block(records: Sequence[tuple[int, str]]) -> LineBlock:
    return LineBlock(np.array([position for position, _ in records]), pa.array([text for _, text in records], pa.string()))


def _parse_block(block: LineBlock, names: Sequence[str], how: SourceFormat, partition: dict[str, str | None]) -> RawRows:
    n, lines = len(names), block.lines
    quotes = _lines_with(lines, how.quote)
    plain = np.flatnonzero(~quotes)
    fields = pc.split_pattern(lines.take(pa.array(plain)), how.delimiter)
    is_row = np.asarray(fields.value_lengths()) == n
    columns = [_column_of(fields.filter(pa.array(is_row)), k, n, how.delimiter) for k in range(n)]
    rows = plain[is_row]
    if quotes.any():
        texts = lines.filter(pa.array(quotes)).to_pylist()
        split = (split_fields(text, how.delimiter, how.quote, how.escape) for text in texts)
        quoted = list(zip(np.flatnonzero(quotes).tolist(), split, strict=True))
        whole = [(i, parts) for i, parts in quoted if parts is not None and len(parts) == n]
        rows = np.concatenate([rows, np.array([i for i, _ in whole], dtype=np.int64)])
        columns = [pa.concat_arrays([column, pa.array([parts[k] for _, parts in whole], pa.string())]) for k, column in enumerate(columns)]
    malformed = np.ones(len(lines), dtype=bool)
    malformed[rows] = False
    places = np.full(len(lines), -1, dtype=np.int64)
    places[rows] = np.arange(len(rows))
    order = pa.array(places, mask=malformed)
    values = {name: column.take(order) for name, column in zip(names, columns, strict=True)}
    for name, value in partition.items():
        values[name] = pa.array([value] * len(lines), pa.string()) if value is None else pa.repeat(value, len(lines))
    return RawRows(block.positions, values, pc.if_else(pa.array(malformed), lines, None))


def _lines_with(lines: pa.Array, character: str) -> np.ndarray:
    if not character:
        return np.zeros(len(lines), dtype=bool)
    return np.asarray(pc.match_substring(lines, character))


def _column_of(fields: pa.Array, k: int, n: int, delimiter: str) -> pa.Array:
    values = fields.flatten()
    column = values.take(pa.array(np.arange(k, len(values), n)))
    return pc.utf8_trim(column, " ") if delimiter != " " else column


def _prepend(block: LineBlock, blocks: Iterator[LineBlock]) -> Iterator[LineBlock]:
    if len(block.lines):
        yield block
    yield from blocks
