"""Lists in topk_live: of a user's rows in a run those of the greatest batch_id hold. Compaction keeps no others."""

import datetime as dt
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.tables.delta_log import list_data_files, open_delta_table, replace_files
from recsys_batch.tables.slice_writer import DataFile, TableSlice
from recsys_batch.tables.user_ranges import UserSortedFiles, ranges_from_cuts

logger = logging.getLogger("recsys_batch.tables")

_ROWS_AT_ONCE = 1_000_000
"""Rows that a compaction has in memory, superseded ones among them: some 100 MB, and as much to sort them."""


@dataclass(frozen=True)
class LiveProgress:
    """How far a run's live lists go.

    Attributes:
        n_users: with a live list. batch_id: the greatest.
        events_through: newest event that a list knows, UTC; None where none has a time.
    """

    n_users: int
    batch_id: int
    events_through: dt.datetime | None


@dataclass(frozen=True)
class ListCompaction:
    """Result of a compaction, or what it would be: files that it replaces, and rows in them that no longer hold."""

    n_files: int
    n_superseded: int


def topk_live_slice(folder: str, run_id: str, target_bytes: int = 2**26) -> TableSlice:
    """Locate a run's rows in an existing topk_live."""
    ids = IdTypes.from_schema(pa.schema(open_delta_table(folder).schema().to_arrow()))
    return TableSlice(folder, TABLES["topk_live"], ids, {"run_id": run_id}, target_bytes)


def keep_newest_lists(rows: pa.Table) -> pa.Table:
    """Keep of each user's rows those of the greatest batch_id.

    Args:
        rows: of one run.
    """
    return _keep_batches(rows, _newest_batches(rows))


def read_live_progress(where: TableSlice) -> LiveProgress | None:
    """Read how far a run's live lists go; None where it has none."""
    lists = _read_list_facts(where, list_data_files(where))
    if lists.num_rows == 0:
        return None
    newest = [pc.max(lists[name]).as_py() for name in ("batch_id", "events_through")]
    return LiveProgress(pc.count_distinct(lists["user_id"]).as_py(), *newest)


def read_users_of_batch(where: TableSlice, batch_id: int) -> pa.Array:
    """Read the users who have a list of a batch, ascending."""
    lists = _read_list_facts(where, list_data_files(where))
    return pc.unique(lists.filter(pc.equal(lists["batch_id"], batch_id))["user_id"]).sort()


def compact_live_lists(where: TableSlice, *, max_file_bytes: int | None = None, dry_run: bool = False) -> ListCompaction | None:
    """Write a run's live lists anew into few files, in order of user_id, without superseded ones; None where there is nothing to gain.

    Batches that a stream commits meanwhile stay as they are, and so does what it has noted of its progress.

    Args:
        max_file_bytes: greater files are left alone, with what is superseded in them: for a stream, which then rewrites what came of
            late, not everything.
    """
    files = [part for part in list_data_files(where) if max_file_bytes is None or part.n_bytes <= max_file_bytes]
    lists = _read_list_facts(where, files)
    newest = _newest_batches(lists).sort_by("user_id")
    n_superseded = _count_rows(lists) - _count_rows(_keep_batches(lists, newest))
    n_small = sum(part.n_bytes < where.target_bytes // 2 for part in files)
    if n_superseded == 0 and n_small < 2:
        return None
    compaction = ListCompaction(len(files), n_superseded)
    if dry_run:
        return compaction
    parts = list(where.write(_read_lists(where, files, newest), 0))
    if not replace_files(where, files, parts, {"by": "compaction", "run_id": where.partition["run_id"]}):
        logger.info("the files of topk_live were compacted by somebody else meanwhile: nothing is left to do")
        return None
    return compaction


def _newest_batches(rows: pa.Table) -> pa.Table:
    """Find the greatest batch_id of each user."""
    return rows.group_by("user_id").aggregate([("batch_id", "max")]).rename_columns(["user_id", "batch_id"]).combine_chunks()


def _keep_batches(rows: pa.Table, newest: pa.Table) -> pa.Table:
    place = pc.index_in(rows["user_id"], value_set=newest["user_id"].combine_chunks())
    return rows.filter(pc.equal(rows["batch_id"], newest["batch_id"].take(place)))


def _read_list_facts(where: TableSlice, files: Sequence[DataFile]) -> pa.Table:
    """Read user_id, batch_id, events_through and n_rows of each list, a file at a time."""
    fields = [where.schema.field(name) for name in ("user_id", "batch_id", "events_through")]
    facts = [pa.schema([*fields, pa.field("n_rows", pa.int64())]).empty_table()]
    for part in files:
        rows = UserSortedFiles(where, [part]).between(columns=[field.name for field in fields])
        lists = rows.group_by(["user_id", "batch_id"]).aggregate([("events_through", "max"), ([], "count_all")])
        facts.append(lists.rename_columns(facts[0].schema.names).cast(facts[0].schema))
    return pa.concat_tables(facts).combine_chunks()


def _count_rows(lists: pa.Table) -> int:
    return int(pc.sum(lists["n_rows"]).as_py() or 0)


def _read_lists(where: TableSlice, files: Sequence[DataFile], newest: pa.Table) -> Iterator[pa.RecordBatch]:
    """Read the lists that hold, by user_id and rank, some ``_ROWS_AT_ONCE`` of the rows at a time."""
    n_users = max(_ROWS_AT_ONCE * newest.num_rows // sum(part.n_rows for part in files), 1)
    for bounds in ranges_from_cuts(newest["user_id"].to_pylist()[n_users - 1 :: n_users]):
        rows = _keep_batches(UserSortedFiles(where, files).between(bounds), newest)
        yield from rows.sort_by([("user_id", "ascending"), ("rank", "ascending")]).combine_chunks().to_batches()
