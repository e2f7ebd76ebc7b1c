"""Lines of JSON to columns: nested values by paths with dots, and one row per element where a path leads through a list."""

import ast
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_batch.sources.file_tasks import FileTask
from recsys_batch.sources.lines import read_lines
from recsys_batch.sources.raw_rows import RawRows
from recsys_batch.sources.source_format import SourceFormat

_MAX_DEPTH = 3  # of nested names that an error text lists


def read_json_rows(
    task: FileTask, how: SourceFormat, paths: Sequence[str], *, explode: bool, content: bytes | None = None
) -> Iterator[RawRows]:
    """Read the rows of a task's part of a file with a JSON object (or a Python dict) per line.

    Args:
        paths: values to read, "user.id" is id in user; a name with dots of its own is found first.
        explode: a path that leads through a list gives a row per element, and lists of several paths must be equally long; else the
            list is a value. Keys of the object that no path begins with are further columns, unless ``explode``.
    """
    for block in read_lines(task, how.encoding, content):
        rows: list[tuple[int, dict[str, Any], str | None, str | None]] = []
        position = -1
        for start, text in zip(block.positions.tolist(), block.lines.to_pylist(), strict=True):
            found = _read_object(text)
            values = None if found is None else _extract(found, paths, explode=explode)
            malformed = text if values is None else None
            spelling = text if values is not None and len(values) == 1 and text.lstrip().startswith('{"') else None
            for value in [{}] if values is None else values:
                # Events of one line are told apart by numbers that the line's own bytes leave free.
                position = max(start, position + 1)
                rows.append((position, value, spelling, malformed))
        if rows:
            yield _as_rows(rows, paths, task.file.partition)


def list_paths(document: Any, depth: int = _MAX_DEPTH, prefix: str = "") -> list[str]:
    """List the paths of an object's values, for an error text."""
    if isinstance(document, list):
        document = document[0] if document else None
    if not isinstance(document, dict) or depth == 0:
        return []
    return [path for key, value in document.items() for path in (f"{prefix}{key}", *list_paths(value, depth - 1, f"{prefix}{key}."))]


def read_first_paths(task: FileTask, how: SourceFormat, content: bytes | None = None) -> tuple[str, ...]:
    """List the paths in the first lines of a file."""
    block = next(read_lines(task, how.encoding, content), None)
    lines = [] if block is None else block.lines[:100].to_pylist()
    return tuple(dict.fromkeys(path for line in lines for path in list_paths(_read_object(line))))


def _read_object(text: str) -> dict[str, Any] | None:
    """Parse a line; older dumps of this field spell Python dicts. None where it is neither, or holds text that UTF-8 cannot."""
    for read in (json.loads, ast.literal_eval):
        try:
            document = read(text.strip())
            # An escaped half of a surrogate pair is text to JSON, and to nobody else.
            if "\\u" in text:
                json.dumps(document, ensure_ascii=False, default=str).encode()
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return document if isinstance(document, dict) else None
    return None


def _extract(document: dict[str, Any], paths: Sequence[str], *, explode: bool) -> list[dict[str, Any]] | None:
    """Extract the paths of an object: a dict per row; None where lists of one object differ in length."""
    if not explode:
        heads = {path.partition(".")[0] for path in paths if path not in document}
        others = {key: value for key, value in document.items() if key not in heads}
        return [{**others, **{path: _at(document, path)[0] for path in paths}}]
    found = {path: _at(document, path, spread=True) for path in paths}
    lengths = {len(value) for value, is_list in found.values() if is_list}
    if not lengths:
        return [{path: value for path, (value, _) in found.items()}]
    if len(lengths) > 1:
        return None
    return [{path: value[i] if is_list else value for path, (value, is_list) in found.items()} for i in range(lengths.pop())]


def _at(document: Any, path: str, *, spread: bool = False) -> tuple[Any, bool]:
    """Follow a path; with ``spread``, a list on the way gives (the rest of the path in each element, True)."""
    if not path:
        return (document, spread and isinstance(document, list))
    if isinstance(document, list):
        return [_at(element, path)[0] for element in document], spread
    if not isinstance(document, dict):
        return None, False
    if path in document:
        return _at(document[path], "", spread=spread)
    head, _, rest = path.partition(".")
    return _at(document.get(head), rest, spread=spread) if rest else (None, False)


def _as_rows(
    rows: Sequence[tuple[int, dict[str, Any], str | None, str | None]], paths: Sequence[str], partition: dict[str, str | None]
) -> RawRows:
    names = dict.fromkeys([*paths, *(name for _, values, _, _ in rows for name in values)])
    columns = {name: pa.array([spell_value(values.get(name)) for _, values, _, _ in rows], pa.string()) for name in names}
    for name, value in partition.items():
        columns[name] = pa.array([value] * len(rows), pa.string())
    positions = np.array([position for position, *_ in rows], dtype=np.int64)
    texts, malformed = (pa.array([row[k] for row in rows], pa.string()) for k in (2, 3))
    return RawRows(positions, columns, malformed, texts)


def spell_value(value: Any) -> str | None:
    """Spell a JSON value as a raw value: text as it is, nested values as JSON, null as null."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)
