"""Turn a published run into a snapshot: ``export-snapshot`` without its words. Loads no Spark; what fills a remote store is given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from recsys_batch.online.export.published_run import PublishedRun
from recsys_batch.online.serving.traffic_split import read_traffic_split
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.manifest import SnapshotManifest, read_manifest
from recsys_batch.online.snapshot.writer import write_snapshot


class RecordStore(Protocol):
    """A store of users' records beside the snapshots."""

    def has_records(self, snapshot_id: str) -> bool:
        """Whether the store says that it has all records of a snapshot."""

    def fill(self, run: PublishedRun) -> int:
        """Put the records of all users of a run; how many."""


@dataclass(frozen=True)
class ExportResult:
    """Result of an export.

    Attributes:
        written: manifest of the new snapshot; None where the folder had it already.
        refilled: records that were put again, as the store had lost them; 0 where it had not.
        activated: whether CURRENT names it only since this export.
        removed: ids of older snapshots that were deleted.
    """

    snapshot_id: str
    written: SnapshotManifest | None
    refilled: int
    activated: bool
    removed: list[str]


def export_snapshot(
    run: PublishedRun,
    folder: Path,
    store: RecordStore | None = None,
    *,
    n_samples: int = 0,
    activate: bool = True,
    keep: int | None = None,
) -> ExportResult:
    """Write a run's snapshot into the folder of snapshots unless it is there, make it current, and delete old ones.

    Where it is there, and the store beside it has lost its users' records, these are put again.

    Args:
        store: takes the users' records; None writes them into the snapshot.
        n_samples: users whose newest items the snapshot keeps to be looked at.
        activate: whether servers go over to it.
        keep: newest snapshots that are kept, beside those in use; None deletes nothing.
    """
    written, refilled = None, 0
    if run.run_id not in repository.list_snapshots(folder):
        contents = run.contents(with_records=store is None, n_samples=n_samples)
        written = write_snapshot(folder, contents, None if store is None else lambda: store.fill(run))
    elif store is not None and read_manifest(folder / run.run_id).store != "lmdb" and not store.has_records(run.run_id):
        refilled = store.fill(run)
    activate = activate and repository.read_pointers(folder).current != run.run_id
    if activate:
        repository.set_current(folder, run.run_id)
    removed = repository.delete_old(folder, keep, read_traffic_split(folder).snapshot_ids) if keep is not None else []
    return ExportResult(run.run_id, written, refilled, activate, removed)
