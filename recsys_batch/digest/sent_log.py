"""The log of what digests sent to whom: a Delta table, appended once per digest, in one commit that carries the digest's id.

The id is the application id of a Delta transaction: a second append of the same digest is refused by the log itself, also where two
processes try it at once.
"""

import datetime as dt
from collections.abc import Iterable

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
    """The sent_log table of a warehouse; the first digest creates it."""

    def __init__(self, warehouse: str, ids: IdTypes) -> None:
        self._warehouse, self._ids = warehouse, ids

    def find_run(self, digest_id: str) -> str | None:
        """Find the run that a digest was made from; None where it is not logged, "" where it sent nothing."""
        if not has_table(self._warehouse, SENT_LOG_NAME):
            return None
        if open_table(self._warehouse, SENT_LOG_NAME).transaction_version(digest_id) is None:
            return None
        rows = read_table(self._warehouse, SENT_LOG_NAME, columns=["run_id"], where=pc.field("digest_id") == digest_id)
        return str(rows["run_id"][0].as_py()) if rows.num_rows else ""

    def read_digest(self, digest_id: str, bounds: UserRange) -> pa.Table:
        """Read what a digest sent to a range's users: user_id, slot, item_id, in order of user and slot."""
        condition = _in_range(bounds, pc.field("digest_id") == digest_id)
        rows = read_table(self._warehouse, SENT_LOG_NAME, columns=["user_id", "slot", "item_id"], where=condition)
        return rows.sort_by([("user_id", "ascending"), ("slot", "ascending")])

    def read_since(self, since: dt.date, digest_id: str, bounds: UserRange) -> pa.Table:
        """Read what other digests sent to a range's users on that day or later: user_id, item_id."""
        if not has_table(self._warehouse, SENT_LOG_NAME):
            return pa.table({"user_id": pa.array([], self._ids.user_arrow), "item_id": pa.array([], self._ids.item_arrow)})
        condition = (pc.field("sent_date") >= since) & (pc.field("digest_id") != digest_id)
        return read_table(self._warehouse, SENT_LOG_NAME, columns=["user_id", "item_id"], where=_in_range(bounds, condition))

    def slice_of_day(self, day: dt.date) -> TableSlice:
        """Make the slice that rows of a day go to."""
        return TableSlice(f"{absolute(self._warehouse)}/{SENT_LOG_NAME}", TABLES[SENT_LOG_NAME], self._ids, {"sent_date": day}, 2**26)

    def create_table(self) -> None:
        """Create the table where it does not exist yet."""
        day_slice, spec = self.slice_of_day(dt.date.min), TABLES[SENT_LOG_NAME]
        fields = [column.arrow(self._ids).with_metadata({"comment": column.comment}) for column in spec.columns]
        DeltaTable.create(
            day_slice.root,
            pa.schema(fields),
            mode="ignore",
            partition_by=list(spec.partition_by),
            description=spec.comment,
            configuration={"delta.dataSkippingStatsColumns": ",".join(spec.stats_columns(self._ids)), "delta.checkpointPolicy": "classic"},
            storage_options=storage_options(day_slice.root),
        )

    def append(self, digest_id: str, day_slice: TableSlice, files: Iterable[DataFile], metadata: dict[str, str]) -> None:
        """Commit written files as the digest's rows.

        Raises:
            Busy: another process logged the same digest meanwhile.
        """
        table, columns = open_table(self._warehouse, SENT_LOG_NAME), list(day_slice.spec.partition_by)
        properties = CommitProperties(custom_metadata=metadata, app_transactions=[Transaction(digest_id, 1)])
        try:
            if table.transaction_version(digest_id) is not None:
                raise CommitFailedError("logged already")
            added = make_add_actions(day_slice, list(files))
            table.create_write_transaction(added, "append", table.schema(), columns, commit_properties=properties)
        except CommitFailedError as error:
            raise Busy(f"digest {digest_id} was logged by another process meanwhile ({error}): run this command again") from error


def _in_range(bounds: UserRange, condition: pc.Expression) -> pc.Expression:
    after, upto = bounds
    if after is not None:
        condition &= pc.field("user_id") > after
    return condition & (pc.field("user_id") <= upto) if upto is not None else condition
