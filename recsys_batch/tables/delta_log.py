"""Commits of slices in the Delta log, and the data files that it lists for one."""

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, CommitProperties, Transaction

from recsys_batch.storage.filesystems import storage_options
from recsys_batch.tables.slice_writer import DataFile, TableSlice

_MAX_COMMITS = 5


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
    versions = [entry["version"] for entry in open_delta_table(where.root).history(20) if entry.get("userMetadata") == token]
    return int(str(versions[0]))


def make_add_actions(where: TableSlice, parts: Sequence[DataFile]) -> list[AddAction]:
    """Describe written files as a commit's add actions."""
    now = int(time.time() * 1000)
    partition = {name: str(value) for name, value in where.partition.items()}
    return [AddAction(part.path, part.n_bytes, partition, now, True, _stats_json(part, where.key)) for part in parts]


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
