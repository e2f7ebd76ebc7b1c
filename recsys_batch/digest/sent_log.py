"""What digests have sent to whom: a Delta table, appended once per digest, in one commit that carries the digest's id.

The id is the application id of a Delta transaction: a second append of the same digest is refused by the log itself, also where two
processes try it at once.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError

from recsys_batch.errors import Busy
from recsys_batch.read import has_table, open_table, read_table
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.storage.filesystems import absolute, storage_options
from recsys_batch.tables.delta_log import make_add_actions
from recsys_batch.tables.slice_writer import DataFile, TableSlice
from recsys_batch.tables.user_ranges import UserRange

SENT_LOG_NAME = "sent_log"


class SentLog:
    """The log of a warehouse; the table is made by the first digest."""

    def __init__(self, warehouse: str, ids: IdTypes) -> None:
        self._warehouse, self._ids = warehouse, ids

    def run_of(self, digest_id: str) -> str | None:
        """The run that a digest was made from; None where it is not logged. "" where it sent nothing to anybody."""
        if (
            not has_table(self._warehouse, SENT_LOG_NAME)
            or open_table(self._warehouse, SENT_LOG_NAME).transaction_version(digest_id) is None
        ):
            return None
        rows = read_table(self._warehouse, SENT_LOG_NAME, columns=["run_id"], where=pc.field("digest_id") == digest_id)
        return str(rows["run_id"][0].as_py()) if rows.num_rows else ""

    def of_digest(self, digest_id: str, bounds: UserRange) -> pa.Table:
        """user_id, slot, item_id that a digest sent to a range's users, in order of user and slot."""
        where = _between(bounds, pc.field("digest_id") == digest_id)
        rows = read_table(self._warehouse, SENT_LOG_NAME, columns=["user_id", "slot", "item_id"], where=where)
        return rows.sort_by([("user_id", "ascending"), ("slot", "ascending")])

    def lately(self, since: dt.date, digest_id: str, bounds: UserRange) -> pa.Table:
        """user_id, item_id of what others than this digest sent to a range's users on that day or later."""
        if not has_table(self._warehouse, SENT_LOG_NAME):
            return pa.table({"user_id": pa.array([], self._ids.user_arrow), "item_id": pa.array([], self._ids.item_arrow)})
        where = (pc.field("sent_date") >= since) & (pc.field("digest_id") != digest_id)
        return read_table(self._warehouse, SENT_LOG_NAME, columns=["user_id", "item_id"], where=_between(bounds, where))

    def slice_on(self, day: dt.date) -> TableSlice:
        """Where rows of that day go."""
        return TableSlice(f"{absolute(self._warehouse)}/{SENT_LOG_NAME}", TABLES[SENT_LOG_NAME], self._ids, {"sent_date": day}, 2**26)

    def make(self) -> None:
        """Create the table where it is not there yet."""
        where, spec = self.slice_on(dt.date.min), TABLES[SENT_LOG_NAME]
        fields = [pa.field(one.name, one.arrow(self._ids).type, one.nullable, {"comment": one.comment}) for one in spec.columns]
        DeltaTable.create(
            where.root,
            pa.schema(fields),
            mode="ignore",
            partition_by=list(spec.partition_by),
            description=spec.comment,
            configuration={"delta.dataSkippingStatsColumns": ",".join(spec.stats_columns(self._ids)), "delta.checkpointPolicy": "classic"},
            storage_options=storage_options(where.root),
        )

    def append(self, digest_id: str, where: TableSlice, parts: Iterable[DataFile], metadata: dict[str, str]) -> None:
        """Make the files that were written the digest's rows.

        Raises:
            Busy: another process logged the same digest meanwhile.
        """
        table = open_table(self._warehouse, SENT_LOG_NAME)
        properties = CommitProperties(custom_metadata=metadata, app_transactions=[Transaction(digest_id, 1)])
        try:
            if table.transaction_version(digest_id) is not None:
                raise CommitFailedError("logged already")
            table.create_write_transaction(
                make_add_actions(where, list(parts)), "append", table.schema(), list(where.spec.partition_by), commit_properties=properties
            )
        except CommitFailedError as error:
            raise Busy(f"digest {digest_id} was logged by another process meanwhile ({error}): run this command again") from error


def _between(bounds: UserRange, where: pc.Expression) -> pc.Expression:
    after, upto = bounds
    if after is not None:
        where &= pc.field("user_id") > after
    return where & (pc.field("user_id") <= upto) if upto is not None else where


def sent_rows(schema: pa.Schema, columns: dict[str, Any]) -> pa.RecordBatch:
    """A batch in the log's order of columns."""
    return pa.RecordBatch.from_arrays([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
