"""Manifest rows of a warehouse: read and appended."""

from collections.abc import Collection

import pyarrow as pa

from recsys_batch.read import rows_in
from recsys_batch.schemas import TABLES
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import base_chain
from recsys_batch.tables import run_manifest
from recsys_batch.tables.delta_log import append
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.slice_writer import TableSlice


def slice_of_no_run(tables: WarehouseTables, name: str) -> TableSlice:
    """A table that is there, of no run yet."""
    return TableSlice(tables.folder(name), TABLES[name], tables.require_ids(), {}, 2**26)


def load_run_rows(tables: WarehouseTables) -> list[Run]:
    """Read every manifest row of the warehouse; empty before the first night."""
    return rows_in(tables.folder("runs")) if tables.exists("runs") else []


def runs_with_gathered_events(root: str, rows: list[Run], kept: Collection[str] | None = None) -> set[str]:
    """Choose the run_ids whose gathered events a stream may read: of the published run and the one before it, with those that they go
    on from.

    Args:
        kept: runs that stay, where not all do.
    """
    current = run_manifest.newest_published(rows)
    runs = [current, run_manifest.rollback_target(rows, current)] if current is not None else []
    return {base for run in runs if run is not None and (kept is None or run.run_id in kept) for base in base_chain(root, run.run_id)}


def manifest_slice(tables: WarehouseTables) -> TableSlice:
    """Locate the table that manifest rows go to, and make it if it is missing."""
    ids = tables.require_ids()
    tables.ensure("runs", ids)
    return TableSlice(tables.folder("runs"), TABLES["runs"], ids, {}, 2**20)


def append_runs(where: TableSlice, runs: list[Run]) -> None:
    """Append manifest rows in one commit, so that a reader sees all of them or none."""
    rows = pa.Table.from_pylist([run.row() for run in runs], schema=where.schema)
    append(where, rows, {"run_ids": [run.run_id for run in runs], "status": runs[-1].status})
