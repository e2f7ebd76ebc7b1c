"""Commits of slices in the Delta log, and the data files that it lists for one."""

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, CommitProperties, RemoveAction, Transaction

from recsys_batch.storage.filesystems import join, read_bytes, storage_options
from recsys_batch.tables.slice_writer import DataFile, TableSlice

_MAX_COMMITS = 5
_MAX_REPLACEMENTS = 50
"""A replacement only looks at the log between two tries, which is soon done, and a stream may append many times a second."""


def open_delta_table(location: str, version: int | None = None) -> DeltaTable:
    """Open the Delta table of a folder."""
    return DeltaTable(location, version=version, storage_options=storage_options(location))


def commit(where: TableSlice, parts: Iterable[DataFile], metadata: Mapping[str, Any]) -> int:
    """Replace the rows of a slice by ``parts``; the committed version.

    Nothing is committed where there was nothing and there is nothing: the newest version then.
    """
    table = open_delta_table(where.root)
    parts = list(parts)
    filters = [(name, "=", str(value)) for name, value in where.partition.items()]
    if not parts and not table.file_uris(file_pruning_predicate=filters):
        return int(table.version())
    return _retry_commit(table, where, parts, metadata, mode="overwrite", partition_filters=filters)


def append(where: TableSlice, rows: pa.Table, metadata: Mapping[str, Any]) -> int:
    """Add rows to a table without partitions, in one commit; its version."""
    return _retry_commit(open_delta_table(where.root), where, list(where.write(rows.to_batches(), 0)), metadata, mode="append")


def append_files(where: TableSlice, parts: Sequence[DataFile], metadata: Mapping[str, Any], transactions: Sequence[Transaction]) -> int:
    """Add files of a slice to a table, with versions of an application's own, in one commit; its version."""
    return _retry_commit(open_delta_table(where.root), where, parts, metadata, transactions, mode="append")


def batch_metadata(application: str, number: int) -> str:
    """Name a batch of an application in its commit's userMetadata."""
    return json.dumps({"application": application, "batch": number})


def find_last_batch(location: str, application: str) -> int | None:
    """Find the number of the newest batch that an application has appended to a table; None where the log has none of it any more."""
    for commit in iterate_commits(location, open_delta_table(location).version()):
        # Of others' commits: any text, or none.
        if application in (text := commit.get("userMetadata") or ""):
            return int(json.loads(text)["batch"])
    return None


def find_commit(location: str, metadata: str) -> int | None:
    """Find the version of the newest commit with that userMetadata; None where the log has none."""
    commits = iterate_commits(location, open_delta_table(location).version())
    return next((int(commit["version"]) for commit in commits if commit.get("userMetadata") == metadata), None)


def iterate_commits(location: str, newest: int) -> Iterator[dict[str, Any]]:
    """Iterate over a table's commits from a version back, as far as the log goes: what each says of itself, and its ``version``.

    deltalake's history gives the wrong numbers where another commit came after its table was opened: it reads that one too, and counts
    from the opened version.
    """
    for version in range(newest, -1, -1):
        try:
            actions = read_log_actions(location, version)
        except FileNotFoundError:
            return
        yield next((action["commitInfo"] for action in actions if "commitInfo" in action), {}) | {"version": version}


def read_log_actions(location: str, version: int) -> list[dict[str, Any]]:
    """Read the actions of a version from a table's log. Raises FileNotFoundError: there is no such version, or no longer."""
    text = read_bytes(join(location, "_delta_log", f"{version:020d}.json")).decode()
    return [json.loads(line) for line in text.splitlines() if line]


def replace_files(where: TableSlice, old: Sequence[DataFile], new: Sequence[DataFile], metadata: Mapping[str, Any]) -> bool:
    """Replace files of a slice by others that say the same to readers, in one commit; files that are appended meanwhile stay.

    The commit is that which follows the version where all old files were seen, or none: nobody can have removed one of them between.

    Returns:
        False where nothing was done as one of the old files is gone: somebody else has replaced it.
    """
    partition = {name: str(value) for name, value in where.partition.items()}
    properties = CommitProperties({"userMetadata": json.dumps(metadata, sort_keys=True)}, max_commit_retries=0)
    for n_tried in range(1, _MAX_REPLACEMENTS + 1):
        table, now = open_delta_table(where.root), int(time.time() * 1000)
        if not {part.path for part in old} <= {part.path for part in list_data_files(where, table.version())}:
            return False
        # Not a change of data: who follows the table reads no row again.
        removed = [RemoveAction(part.path, False, now, part.n_bytes, partition) for part in old]
        added = make_add_actions(where, new, data_change=False)
        try:
            table.create_write_transaction(
                [*removed, *added], "append", table.schema(), list(where.spec.partition_by), commit_properties=properties
            )
            break
        except CommitFailedError:
            if n_tried == _MAX_REPLACEMENTS:
                raise
    return True


def _retry_commit(
    table: DeltaTable,
    where: TableSlice,
    parts: Sequence[DataFile],
    metadata: Mapping[str, Any],
    transactions: Sequence[Transaction] = (),
    **options: Any,
) -> int:
    """Commit, again where another commit came between: slices of other runs share the table, not its rows."""
    token = json.dumps({**metadata, "commit": uuid.uuid4().hex}, sort_keys=True)
    for n_tried in range(1, _MAX_COMMITS + 1):
        try:
            table.create_write_transaction(
                make_add_actions(where, parts),
                schema=table.schema(),
                partition_by=list(where.spec.partition_by),
                commit_properties=CommitProperties({"userMetadata": token}, app_transactions=list(transactions)),
                **options,
            )
            break
        except CommitFailedError:
            if n_tried == _MAX_COMMITS:
                raise
            table = open_delta_table(where.root)
    version = find_commit(where.root, token)
    assert version is not None, "a commit that was just made is in the log"
    return version


def make_add_actions(where: TableSlice, parts: Sequence[DataFile], *, data_change: bool = True) -> list[AddAction]:
    """Describe written files as a commit's add actions."""
    now = int(time.time() * 1000)
    partition = {name: str(value) for name, value in where.partition.items()}
    return [AddAction(part.path, part.n_bytes, partition, now, data_change, _stats_json(part, where.key)) for part in parts]


def list_data_files(where: TableSlice, version: int | None = None) -> list[DataFile]:
    """List the data files of a slice, by their first key."""
    table = open_delta_table(where.root, version)
    actions = pa.table(table.get_add_actions(flatten=True))
    for name, value in where.partition.items():
        actions = actions.filter(pc.equal(actions[f"partition.{name}"].cast(pa.string()), str(value)))
    parts = []
    for row in actions.to_pylist():
        first, last = row.get(f"min.{where.key}"), row.get(f"max.{where.key}")
        parts.append(DataFile(row["path"], row["size_bytes"], row["num_records"], first, last))
    return sorted(parts, key=lambda part: (part.first is not None, part.first, part.path))


def _stats_json(part: DataFile, key: str | None) -> str:
    stats: dict[str, Any] = {"numRecords": part.n_rows}
    if key is not None:
        stats |= {"minValues": {key: part.first}, "maxValues": {key: part.last}, "nullCount": {key: 0}}
    return json.dumps(stats)
