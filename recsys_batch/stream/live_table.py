"""Commits to topk_live, each with the version of interactions that its rows go up to: what a stream has done is read from there alone."""

from dataclasses import dataclass

from deltalake.transaction import Transaction

from recsys_batch.errors import Busy
from recsys_batch.tables.delta_log import append_files, open_delta_table
from recsys_batch.tables.live_records import LiveBatch
from recsys_batch.tables.slice_writer import DataFile, TableSlice

WrittenFiles = dict[str, list[DataFile]]
"""Files by table, of topk_live and of RECORD_TABLES."""


@dataclass(frozen=True)
class LiveTable:
    """A run's slice of topk_live.

    Attributes:
        interactions_id: the table whose versions are counted.
    """

    where: TableSlice
    interactions_id: str

    @property
    def _application(self) -> str:
        return f"recsys_batch.stream/{self.where.partition['run_id']}/{self.interactions_id}"

    def version(self) -> int | None:
        """Read the version of interactions up to which the run's live lists go; None before the first batch."""
        version = open_delta_table(self.where.root).transaction_version(self._application)
        return None if version is None else int(version)

    def commit(self, files: WrittenFiles, version: int) -> None:
        """Add a batch's files, and move the run's version on, in one commit.

        Raises:
            Busy: another stream is further already.
        """
        found, run_id = self.version(), str(self.where.partition["run_id"])
        if found is not None and found > version:
            raise Busy(f"another stream has refreshed run {run_id} up to version {found}: end one of the two")
        batch = LiveBatch(run_id, version, files)
        append_files(self.where, files.get("topk_live", []), batch.to_metadata(), [Transaction(self._application, version)])
