"""Readers without a JVM: the published tables as Arrow or pandas, by deltalake.

>>> from recsys_batch.read import latest_topk
>>> latest_topk("data/warehouse", user_ids=[42]).to_pandas()          # doctest: +SKIP
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import repeat
from operator import and_
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from pyarrow import fs

from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.storage.filesystems import absolute, resolve, storage_options
from recsys_batch.tables import run_manifest
from recsys_batch.tables.delta_log import list_data_files
from recsys_batch.tables.live_lists import keep_newest_lists
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.slice_writer import TableSlice
from recsys_batch.tables.user_ranges import UserSortedFiles, merge_sorted

__all__ = [
    "Run",
    "batches_of",
    "column_type",
    "current_topk",
    "has_table",
    "id_types",
    "latest_topk",
    "open_table",
    "published_before",
    "published_on",
    "published_run",
    "read_table",
    "rows_in",
    "run_files",
    "run_rows",
    "run_slice",
    "table_dataset",
    "user_segments",
]


def open_table(warehouse: str, name: str, version: int | None = None) -> DeltaTable:
    """A Delta table of the warehouse, newest or at ``version``.

    Raises:
        InputMissing: no such table or version.
    """
    path = f"{warehouse.rstrip('/')}/{name}"
    try:
        return DeltaTable(path, version=version, storage_options=_options(path))
    except TableNotFoundError:
        raise InputMissing(f"table {name} does not exist at {path}: was anything ingested or published there?") from None
    except DeltaError as error:
        raise InputMissing(f"table {name} at {path} cannot be read at version {version}: {str(error).splitlines()[0]}") from None


def has_table(warehouse: str, name: str) -> bool:
    """Whether the table exists."""
    path = f"{warehouse.rstrip('/')}/{name}"
    return bool(DeltaTable.is_deltatable(path, storage_options=_options(path)))


def read_table(
    warehouse: str, name: str, *, columns: Sequence[str] | None = None, where: pc.Expression | None = None, version: int | None = None
) -> pa.Table:
    """Rows of a table, with column projection and filter pushed into the files."""
    return table_dataset(warehouse, name, version).to_table(columns=list(columns) if columns is not None else None, filter=where)


def batches_of(warehouse: str, name: str, columns: Sequence[str], version: int | None = None) -> Iterator[pa.RecordBatch]:
    """Rows of a table a batch at a time, in no order."""
    for batch in table_dataset(warehouse, name, version).to_batches(columns=list(columns), batch_readahead=2, fragment_readahead=1):
        if batch.num_rows:
            yield batch


def user_segments(warehouse: str, version: int | None) -> tuple[pa.Table | None, tuple[str, ...]]:
    """(user_id, place) of every user with a segment, 12 bytes each, and the names; None where there is no users table, or none has one."""
    if version is None:
        return None, ()
    users = read_table(warehouse, "users", columns=["user_id", "segment"], version=version)
    users = users.filter(pc.is_valid(users["segment"])).combine_chunks()
    if users.num_rows == 0:
        return None, ()
    encoded = users["segment"].combine_chunks().dictionary_encode()
    return pa.table({"user_id": users["user_id"], "place": encoded.indices.cast(pa.int32())}), tuple(encoded.dictionary.to_pylist())


def run_rows(warehouse: str) -> list[Run]:
    """Read every row of the manifest; empty when no night ever began."""
    return rows_in(f"{warehouse.rstrip('/')}/runs") if has_table(warehouse, "runs") else []


def rows_in(folder: str) -> list[Run]:
    """Read every row of the manifest table in ``folder``."""
    table = DeltaTable(folder, storage_options=_options(folder))
    return [run_manifest.from_row(row) for row in _dataset_of(folder, table).to_table().to_pylist(maps_as_pydicts="strict")]


def published_run(warehouse: str, run_id: str | None = None) -> Run:
    """Read the manifest row that readers follow: the newest PUBLISHED one, or that of ``run_id``.

    Raises:
        InputMissing: nothing (or not that run) is published.
    """
    run = run_manifest.newest_published(run_rows(warehouse), run_id)
    if run is None:
        what = f"run {run_id} is not published" if run_id else "no night is published yet"
        raise InputMissing(f"{what} in {warehouse}: see `recsys-batch status`, run `recsys-batch nightly`")
    return run


def published_before(warehouse: str, run: Run) -> Run:
    """Read the manifest row that readers followed until ``run`` was published.

    Raises:
        InputMissing: there was none.
    """
    earlier = run_manifest.published_previously(run_rows(warehouse), run)
    if earlier is None:
        raise InputMissing(f"no other run was published before {run.run_id}: there is nothing to compare it with")
    return earlier


def published_on(warehouse: str, run_date: dt.date, run_id: str | None = None) -> Run:
    """Read the manifest row of the date's run that was published last and not rolled back since, or of that run.

    Raises:
        InputMissing: there is none.
    """
    published = run_manifest.still_published(run_rows(warehouse))
    run = run_manifest.newest_published((run for run in published if run.run_date == run_date), run_id)
    if run is not None:
        return run
    if run_id is not None:
        raise InputMissing(f"run {run_id} is not published any more: it was rolled back")
    newest = max((run.run_date for run in published), default=None)
    there = f"the newest that is published is of {newest}" if newest else "no night is published yet"
    raise InputMissing(f"no run of {run_date} is published ({there}): see `recsys-batch status`")


def latest_topk(
    warehouse: str, *, user_ids: Sequence[Any] | None = None, run_id: str | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """The published top-K, sorted by user_id and rank.

    Args:
        warehouse: folder (or object store URI) of the tables.
        user_ids: only these users; an unknown user has no rows.
        run_id: a published run other than the newest.
        columns: only these columns of topk.

    Raises:
        InputMissing: nothing is published.
    """
    return run_slice(warehouse, "topk", published_run(warehouse, run_id), user_ids=user_ids, columns=columns)


def current_topk(warehouse: str, *, user_ids: Sequence[Any] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """The newest top-K of each user of the published run, sorted by user_id and rank: refreshed by a stream, or else the night's.

    Args:
        warehouse: folder (or object store URI) of the tables.
        user_ids: only these users; an unknown user has no rows.
        columns: only these columns of topk_live. In the night's rows batch_id and events_through are null.

    Raises:
        InputMissing: nothing is published.
    """
    run = published_run(warehouse)
    schema = pa.schema([field.with_nullable(True) for field in TABLES["topk_live"].arrow_schema(id_types(warehouse))])
    wanted = schema.names if columns is None else list(columns)
    schema = pa.schema([schema.field(name) for name in dict.fromkeys([*wanted, "user_id", "rank", "batch_id"])])
    live = schema.empty_table()
    if has_table(warehouse, "topk_live"):
        live = keep_newest_lists(run_slice(warehouse, "topk_live", run, user_ids=user_ids, columns=schema.names)).cast(schema)
    of_run = {"run_id": run.run_id, "run_date": run.run_date}
    if user_ids is None:  # the night's rows are in order, and never twice in memory
        columns = [column.name for column in TABLES["topk"].columns if column.name in schema.names and column.name not in of_run]
        night = run_files(warehouse, "topk", run).batches(columns=columns)
    else:
        night = iter(run_slice(warehouse, "topk", run, user_ids=user_ids).to_batches())
    same = (_conform(batch, schema, of_run) for batch in night)
    merged = [batch for batch, _ in merge_sorted(same, pc.unique(live["user_id"]), live)]
    return pa.Table.from_batches(merged, schema).select(wanted)


def _conform(batch: pa.RecordBatch, schema: pa.Schema, constants: dict[str, Any]) -> pa.RecordBatch:
    """Give a batch the columns of a schema: those that it lacks have one value in all rows, null where there is none."""
    columns = [
        batch[field.name].cast(field.type)
        if field.name in batch.schema.names
        else pa.repeat(pa.scalar(constants.get(field.name), field.type), batch.num_rows)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def run_slice(
    warehouse: str, name: str, run: Run, *, user_ids: Sequence[Any] | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """The rows that a run wrote into ``name``, sorted by user_id and rank where it has them.

    A published slice is never written again, so the newest version of the table holds it as it was published.
    """
    dataset = table_dataset(warehouse, name)
    where = ds.field("run_id") == run.run_id
    if name == "topk":
        where &= ds.field("run_date") == pa.scalar(run.run_date, pa.date32())
    if user_ids is not None:
        where &= ds.field("user_id").isin(pa.array(user_ids, type=dataset.schema.field("user_id").type))
    wanted = list(columns) if columns is not None else dataset.schema.names
    keys = [key for key in ("user_id", "segment", "rank") if key in dataset.schema.names]
    rows = dataset.to_table(columns=list(dict.fromkeys([*wanted, *keys])), filter=where)
    return (rows.sort_by([(key, "ascending") for key in keys]) if keys else rows).select(wanted)


def run_files(warehouse: str, name: str, run: Run) -> UserSortedFiles:
    """The files of an output table that a run wrote, to read by ranges of users."""
    partition = {column: getattr(run, column) for column in TABLES[name].partition_by}
    where = TableSlice(f"{absolute(warehouse)}/{name}", TABLES[name], id_types(warehouse), partition, 2**26)
    return UserSortedFiles(where, list_data_files(where))


def id_types(warehouse: str) -> IdTypes:
    """Read the types of user and item ids, as topk has them."""

    return IdTypes.from_schema(table_dataset(warehouse, "topk").schema)


def column_type(warehouse: str, name: str, column: str) -> pa.DataType:
    """Arrow type of a column."""
    return table_dataset(warehouse, name).schema.field(column).type


def table_dataset(warehouse: str, name: str, version: int | None = None) -> ds.Dataset:
    """The table's files as a dataset."""
    return _dataset_of(f"{warehouse.rstrip('/')}/{name}", open_table(warehouse, name, version))


def _dataset_of(path: str, table: DeltaTable) -> ds.Dataset:
    """Read by Arrow's own filesystem where it has one: deltalake's default calls back into Python from Arrow's threads, which can
    still be running when the interpreter ends, and then aborts the process.

    Of deltalake's dataset only the files are taken: it also holds what statistics say of each, and lets a filter on a column
    without any find nothing (delta-rs issue 3173).
    """
    try:
        filesystem, folder = resolve(absolute(path))
    except UsageError:  # a store that only deltalake reads
        return table.to_pyarrow_dataset()
    schema, files, kind = pa.schema(table.schema().to_arrow()), fs.SubTreeFileSystem(folder, filesystem), ds.ParquetFileFormat()
    known = pa.table(table.get_add_actions(flatten=True))
    within = [_within(schema, table.metadata().partition_columns, file) for file in known.to_pylist()]
    paths = [unquote(path) for path in known["path"].to_pylist()]
    return ds.FileSystemDataset([kind.make_fragment(*one) for one in zip(paths, repeat(files), within)], schema, kind, files)


def _within(schema: pa.Schema, partition: Sequence[str], file: dict[str, Any]) -> pc.Expression | None:
    """Build the condition that all rows of a file meet: values of the partition, and bounds of the ids."""
    conditions = []
    for name in partition:
        value = file[f"partition.{name}"]
        column = ds.field(name)
        conditions.append(column.is_null() if value is None else column == pa.scalar(value).cast(schema.field(name).type))
    for name in ("user_id", "item_id"):
        least, most = file.get(f"min.{name}"), file.get(f"max.{name}")
        if least is not None and most is not None:
            kind = schema.field(name).type
            conditions += [ds.field(name) >= pa.scalar(least, kind), ds.field(name) <= pa.scalar(most, kind)]
    return reduce(and_, conditions) if conditions else None


def _options(path: str) -> dict[str, str] | None:
    try:
        return storage_options(path)
    except UsageError:  # deltalake reads more stores than nights are written to, and finds its own way there
        return None
