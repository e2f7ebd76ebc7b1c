"""Files that interactions got since a version, read from the table's log, so that a compaction between is seen through. No JVM."""

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from recsys_batch.storage.filesystems import file_sizes, join
from recsys_batch.tables.delta_log import open_delta_table, read_log_actions


@dataclass(frozen=True)
class AppendedFiles:
    """Files that one version of a table added.

    Attributes:
        paths: locations. committed_ms: milliseconds since 1970.
        metadata: the commit's userMetadata.
    """

    version: int
    paths: list[str]
    n_rows: int
    committed_ms: int
    metadata: str | None


class NotAppendOnly(Exception):
    """The table did not only grow, or nobody can tell any more; the message says why."""


def list_appended_files(root: str, then: int, now: int) -> tuple[list[str], list[str]]:
    """List (files of version ``then``, files appended up to ``now``) as paths; together they have the rows of version ``now``.

    OPTIMIZE replaces files by others with the same rows and marks them so (dataChange = false); the replaced ones stay on the disk for
    ``tables.retention_days``, and are read for what they are.

    Raises:
        NotAppendOnly: rows were removed since, the log no longer reaches back, or a file is gone.
    """
    paths_then = set(pa.table(open_delta_table(root, then).get_add_actions())["path"].to_pylist())
    paths_since: set[str] = set()
    for version in range(then + 1, now + 1):
        for action in _read_log_actions(root, version):
            if "add" in action and action["add"]["dataChange"]:
                paths_since.add(unquote(action["add"]["path"]))
            if "remove" in action and action["remove"]["dataChange"]:
                raise NotAppendOnly("rows of interactions were removed since")
    names = [sorted(files) for files in (paths_then, paths_since)]
    sizes = file_sizes(root, [name for files in names for name in files])
    missing = [name for files in names for name in files if name not in sizes]
    if missing:
        raise NotAppendOnly(f"{len(missing)} files of interactions were replaced and vacuumed since")
    files_then, files_since = ([join(root, name) for name in files] for files in names)
    return files_then, files_since


def list_appended_versions(root: str, then: int, max_rows: int) -> list[AppendedFiles]:
    """List what the versions after ``then`` added, up to the newest, or to the one that reaches ``max_rows``.

    Versions that only moved rows between files, as OPTIMIZE does, have no files here.

    Raises:
        NotAppendOnly: rows were removed or replaced since, or the log no longer reaches back.
    """
    appended: list[AppendedFiles] = []
    while sum(files.n_rows for files in appended) < max_rows:
        version = then + len(appended) + 1
        try:
            actions = _read_log_actions(root, version)
        except NotAppendOnly:
            if appended or open_delta_table(root).version() < version:
                return appended
            raise
        if any("remove" in action and action["remove"]["dataChange"] for action in actions):
            if appended:
                return appended  # these first
            raise NotAppendOnly(f"rows of interactions were removed or replaced in version {version}")
        added = [action["add"] for action in actions if "add" in action and action["add"]["dataChange"]]
        info: dict[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
        n_rows = sum(int(json.loads(add.get("stats") or "{}").get("numRecords", 0)) for add in added)
        paths = [join(root, unquote(add["path"])) for add in added]
        appended.append(AppendedFiles(version, paths, n_rows, int(info.get("timestamp", 0)), info.get("userMetadata")))
    return appended


def _read_log_actions(root: str, version: int) -> list[dict[str, Any]]:
    try:
        return read_log_actions(root, version)
    except FileNotFoundError:
        raise NotAppendOnly(f"the log of interactions no longer has version {version}") from None
