"""Delta tables without erased users in any version: data files replaced by others without their rows, in the whole log.

A log is not to be changed, and here it is: its entries hold least and greatest user ids, and nights, digests and streams read versions
that they pinned. So each entry names the new file in the place of the old one, and says its bounds; every version stays readable, and is
what it would have been without these users (docs/decisions/0226-erasure.md).

It can be killed anywhere and done again. New files are there before the log names them, and old ones until no entry does. Entries are
changed from the newest down: where a file is removed both names are removed before an older entry adds the new one.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_batch.erasure.data_files import (
    Replacement,
    find_rows,
    list_parquet,
    name_replacement,
    write_without,
)
from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.erasure.log_rewriter import LogRewriter, are_bounds_named, names_user, rewrite_checkpoint
from recsys_batch.storage.filesystems import Entry, basename, join, list_entries, read_bytes, read_parquet, remove, replace_bytes

_LOG = "_delta_log"
_COMMIT = re.compile(r"\d{20}(\.\d{20}\.compacted)?\.json")
_CHECKPOINT = re.compile(r"\d{20}\.checkpoint.*\.parquet")
_MAX_PASSES = 5


@dataclass
class ErasedTable:
    """Rows found in a table's files and entries of its log that named a user; what is left after."""

    rows: int = 0
    files: int = 0
    entries: int = 0


def find_in_table(root: str, users: ErasedUsers) -> ErasedTable:
    """Count the rows of these users in all files of a table, old ones among them, and the entries of its log that name one."""
    held = find_rows(root, list_parquet(root), users)
    return ErasedTable(sum(held.values()), len(held), _is_named(root, users))


def erase_from_table(root: str, users: ErasedUsers, described: Mapping[str, Replacement] | None = None) -> None:
    """Remove these users' rows from all versions of a table, and their ids from its log.

    Args:
        described: of files beside the table that its commits describe, by path.
    """
    for _ in range(_MAX_PASSES):
        held = find_rows(root, list_parquet(root), users)
        if not (held or described or _is_named(root, users)):
            return
        known = _referenced(root)
        replacements = {path: write_without(root, path, users, name_replacement(path, users)) for path in held if path in known}
        _rewrite_log(root, replacements, described or {}, users)
        for path in held:
            folder, slash, name = path.rpartition("/")
            remove(join(root, path))
            remove(join(root, f"{folder}{slash}.{name}.crc"))
        described = None


def _log_entries(root: str) -> list[Entry]:
    """List the commits and checkpoints, newest first; of a version the commit first."""
    entries = [entry for entry in list_entries(join(root, _LOG)) if _COMMIT.fullmatch(entry.name) or _CHECKPOINT.fullmatch(entry.name)]
    return sorted(entries, key=lambda entry: (entry.name[:20], entry.name.endswith(".json")), reverse=True)


def _checksums(root: str) -> list[str]:
    """List the files in which Spark sums up versions, and lists the files of small ones with their bounds; a log is whole without."""
    return [entry.location for entry in list_entries(join(root, _LOG)) if re.fullmatch(r"\.?\d{20}\.crc(\.crc)?", entry.name)]


def _is_named(root: str, users: ErasedUsers) -> int:
    """Count the files of the log that name one of these users."""
    sums = (json.loads(read_bytes(location)) for location in _checksums(root) if not basename(location).startswith("."))
    in_sums = sum(any(are_bounds_named(add.get("stats") or "{}", users) for add in one.get("allFiles") or ()) for one in sums)
    return sum(_is_named_in(entry, users) for entry in _log_entries(root)) + in_sums


def _referenced(root: str) -> set[str]:
    """List the paths that an entry of the log names."""
    paths: set[str] = set()
    for entry in _log_entries(root):
        if entry.name.endswith(".json"):
            actions = _read_commit(entry.location)
            paths |= {unquote(action[kind]["path"]) for action in actions for kind in ("add", "remove") if kind in action}
        else:
            table = read_parquet(entry.location)
            for kind in ("add", "remove"):
                if kind in table.schema.names:
                    paths |= {unquote(path) for path in table[kind].combine_chunks().field("path").to_pylist() if path}
    return paths


def _read_commit(location: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_bytes(location).decode().splitlines() if line]


def _is_named_in(entry: Entry, users: ErasedUsers) -> bool:
    """Say whether an entry of the log names a user in what it says of files, or in its commit's notes."""
    if entry.name.endswith(".json"):
        return any(names_user(action, users) for action in _read_commit(entry.location))
    table = read_parquet(entry.location)
    columns = [table[kind].combine_chunks() for kind in ("add", "remove") if kind in table.schema.names]
    stats = [column.field("stats").to_pylist() for column in columns if column.type.get_field_index("stats") >= 0]
    return any(are_bounds_named(text, users) for texts in stats for text in texts if text)


def _rewrite_log(root: str, replacements: Mapping[str, Replacement], described: Mapping[str, Replacement], users: ErasedUsers) -> None:
    for location in _checksums(root):
        remove(location)
    entries = _log_entries(root)
    newest = next(entry.name for entry in entries if entry.name.endswith(".json"))
    for entry in entries:
        if entry.name.endswith(".json"):
            actions = _read_commit(entry.location)
            removed = {unquote(action["remove"]["path"]) for action in actions if "remove" in action}
            rewriter = LogRewriter(replacements, described, users, removed)
            rewritten = [new for action in actions for new in rewriter.rewrite(action)]
            # The newest in any case: by its time Spark sees that it is another one, and reads the log again.
            if rewritten != actions or entry.name == newest:
                text = "".join(f"{json.dumps(action, separators=(',', ':'), ensure_ascii=False)}\n" for action in rewritten)
                _replace_entry(root, entry.name, text.encode())
        else:
            table = read_parquet(entry.location)
            rewritten_table = rewrite_checkpoint(table, LogRewriter(replacements, described, users))
            if not rewritten_table.equals(table):
                sink = pa.BufferOutputStream()
                pq.write_table(rewritten_table, sink, store_schema=False)
                # What says how large it is goes first: a log is found without.
                remove(join(root, _LOG, "_last_checkpoint"))
                remove(join(root, _LOG, "._last_checkpoint.crc"))
                _replace_entry(root, entry.name, sink.getvalue().to_pybytes())


def _replace_entry(root: str, name: str, content: bytes) -> None:
    remove(join(root, _LOG, f".{name}.crc"))  # of Hadoop: it would not fit any more
    replace_bytes(join(root, _LOG, name), content)
