"""Parquet files with rows of erased users: found, and written again without them, under another name or their own."""

import datetime as dt
import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.schemas import TIMESTAMP
from recsys_batch.storage.atomic import publish
from recsys_batch.storage.filesystems import is_remote, join, list_entries, local_path, open_output, parquet_file, remove
from recsys_batch.tables.user_ranges import select_row_groups

DRAFT_PREFIX = ".erasing-"
_SCANS_AT_ONCE = 8


@dataclass(frozen=True)
class Replacement:
    """Replacement of a file that had rows of erased users.

    Attributes:
        path: within the folder; None where no row is left, and no file.
        minima, maxima: of each plain column. nulls: of each column.
    """

    path: str | None
    n_bytes: int = 0
    n_rows: int = 0
    minima: Mapping[str, Any] = field(default_factory=dict)
    maxima: Mapping[str, Any] = field(default_factory=dict)
    nulls: Mapping[str, int] = field(default_factory=dict)


def list_parquet(root: str) -> list[str]:
    """List the Parquet files of a folder by their paths in it, the log's left out, hidden drafts of an erasure removed."""
    paths = []
    for entry in list_entries(root, recursive=True):
        path = entry.location[len(root.rstrip("/")) + 1 :]
        if entry.name.startswith(DRAFT_PREFIX):
            remove(entry.location)
        elif not entry.is_folder and entry.name.endswith(".parquet") and not path.startswith("_delta_log/"):
            paths.append(path)
    return paths


def find_rows(root: str, paths: Iterable[str], users: ErasedUsers) -> dict[str, int]:
    """Count the rows of these users in files of a folder, by path; files without any are left out."""
    listed = list(paths)
    with ThreadPoolExecutor(_SCANS_AT_ONCE) as pool:
        counts = pool.map(lambda path: count_rows(join(root, path), users), listed)
        return {path: n for path, n in zip(listed, counts, strict=True) if n}


def count_rows(location: str, users: ErasedUsers) -> int:
    """Count the rows of these users in a Parquet file; 0 where it is gone, or has no users."""
    return sum(rows.num_rows for rows in _iterate_user_rows(location, users, None))


def read_user_rows(location: str, users: ErasedUsers, columns: list[str]) -> pa.Table:
    """Read these users' rows of a Parquet file with a user_id that holds some."""
    return pa.concat_tables([_plain(rows) for rows in _iterate_user_rows(location, users, columns)], promote_options="permissive")


def _iterate_user_rows(location: str, users: ErasedUsers, columns: list[str] | None) -> Iterator[pa.Table]:
    try:
        with parquet_file(location, coerce_int96_timestamp_unit="us") as file:
            names = file.schema_arrow.names
            if "user_id" not in names and "row" not in names:
                return
            by_id = "user_id" in names
            groups = select_row_groups(file, users.has_key_between) if by_id else range(file.num_row_groups)
            wanted = ["user_id" if by_id else "row"] if columns is None else columns
            for number in groups:
                rows = file.read_row_group(number, columns=wanted, use_threads=False)
                yield rows.filter(users.mark_rows(rows))
    except FileNotFoundError:
        return


def name_replacement(path: str, users: ErasedUsers) -> str:
    """Name the file that stands in the place of one: the same whenever these users are erased from it, so that it can be done again."""
    folder, slash, name = path.rpartition("/")
    digest = hashlib.sha256("\n".join([name, *sorted(users.ids)]).encode(errors="surrogatepass")).hexdigest()
    return f"{folder}{slash}part-00000-{digest[:32]}.parquet"


def write_without(root: str, path: str, users: ErasedUsers, target: str) -> Replacement:
    """Write a file's other rows, in their order and row groups, to ``target`` in the same folder; whole or not at all."""
    minima, maxima, nulls, n_rows = dict[str, Any](), dict[str, Any](), dict[str, int](), 0
    writer: pq.ParquetWriter | None = None
    with parquet_file(join(root, path), coerce_int96_timestamp_unit="us") as file, _open_draft(join(root, target)) as draft:
        for number in range(file.num_row_groups):
            rows = file.read_row_group(number, use_threads=False)
            rows = _plain(rows.filter(pc.invert(users.mark_rows(rows))))
            if rows.num_rows == 0:
                continue
            if writer is None:
                draft.open()
                writer = pq.ParquetWriter(draft.sink, rows.schema, **_writer_options(file))
            writer.write_table(rows, row_group_size=rows.num_rows)
            n_rows += rows.num_rows
            _add_bounds(rows, minima, maxima, nulls)
        if writer is None:
            return Replacement(None)
        writer.close()
        n_bytes = draft.close()
    return Replacement(target, n_bytes, n_rows, minima, maxima, nulls)


def _writer_options(file: pq.ParquetFile) -> dict[str, Any]:
    codec = file.metadata.row_group(0).column(0).compression.lower()
    return {"compression": "none" if codec == "uncompressed" else codec, "store_schema": False}


def _plain(rows: pa.Table) -> pa.Table:
    """Give times the type that the contract has: Spark writes them in another; its notes on the schema go."""
    fields = [field.with_type(TIMESTAMP) if pa.types.is_timestamp(field.type) else field for field in rows.schema]
    return rows.cast(pa.schema(fields)).replace_schema_metadata(None)


def _add_bounds(rows: pa.Table, minima: dict[str, Any], maxima: dict[str, Any], nulls: dict[str, int]) -> None:
    for name in rows.schema.names:
        column = rows[name]
        nulls[name] = nulls.get(name, 0) + column.null_count
        if pa.types.is_nested(column.type) or pa.types.is_boolean(column.type) or column.null_count == len(column):
            continue
        bounds = pc.min_max(column)
        least, most = bounds["min"].as_py(), bounds["max"].as_py()
        minima[name], maxima[name] = min(minima.get(name, least), least), max(maxima.get(name, most), most)


def format_bound(value: Any, *, is_greatest: bool) -> Any:
    """Write a bound as the log has it: times in whole milliseconds, the greatest rounded up."""
    if isinstance(value, dt.datetime):
        rest = value.microsecond % 1000
        rounded = value - dt.timedelta(microseconds=rest) + dt.timedelta(milliseconds=1 if is_greatest and rest else 0)
        return rounded.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, dt.date) else value


class _Draft:
    """A file that has its name once it is whole; in a store it is not there before it is closed."""

    def __init__(self, location: str) -> None:
        self._location = location
        self.sink: pa.NativeFile | None = None
        self._path: Path | None = None

    def open(self) -> None:
        if is_remote(self._location):
            self.sink = open_output(self._location)
            return
        target = Path(local_path(self._location))
        self._path = target.with_name(f"{DRAFT_PREFIX}{uuid.uuid4().hex}")
        self.sink = pa.OSFile(str(self._path), "wb")

    def close(self) -> int:
        assert self.sink is not None
        n_bytes = int(self.sink.tell())
        self.sink.close()
        if self._path is not None:
            publish(self._path, Path(local_path(self._location)))
        return n_bytes

    def discard(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@contextmanager
def _open_draft(location: str) -> Iterator[_Draft]:
    draft = _Draft(location)
    try:
        yield draft
    finally:
        draft.discard()


def replace_in_place(root: str, path: str, users: ErasedUsers) -> None:
    """Write a file again under its own name without these users' rows; remove it where none is left."""
    folder, slash, name = path.rpartition("/")
    remove(join(root, f"{folder}{slash}.{name}.crc"))  # of Hadoop: it would not fit any more
    if write_without(root, path, users, path).path is None:
        remove(join(root, path))
