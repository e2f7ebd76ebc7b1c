"""Erase users from everything that this warehouse and its servers keep: stage by stage, each of which can be killed and done again.

The tombstone comes first, so that nothing brings a user back meanwhile; what is counted of users is corrected while their rows are still
there; then artefacts, tables, streams' caches, snapshots, Redis and logs lose them. Nothing is kept of what was erased but the tombstone.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from recsys_batch.config import Config
from recsys_batch.erasure import exposure_files, logged_reports, redis_records, snapshots, stream_caches
from recsys_batch.erasure.data_files import find_rows, list_parquet
from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.erasure.run_artefacts import RunArtefacts
from recsys_batch.erasure.run_counts import HeldRows, RunCounts
from recsys_batch.erasure.table_history import erase_from_table, find_in_table
from recsys_batch.errors import UsageError
from recsys_batch.ids import parse_bigint
from recsys_batch.night.run_locks import erasure_lock, publish_lock
from recsys_batch.online.snapshot import repository
from recsys_batch.read import rows_in
from recsys_batch.schemas import TABLES
from recsys_batch.storage.artifacts import artifact_root
from recsys_batch.storage.filesystems import remove
from recsys_batch.tables.delta_log import open_delta_table
from recsys_batch.tables.run_manifest import Run, latest_state_by_run
from recsys_batch.tables.tombstones import Tombstones, add_tombstones

logger = logging.getLogger("recsys_batch.erasure")

USER_TABLES = tuple(name for name, spec in TABLES.items() if name == "rejected" or "user_id" in {column.name for column in spec.columns})
Progress = Callable[[str], None]


@dataclass
class ErasureReport:
    """Result of an erasure: what was found where, and what is left there.

    Attributes:
        found, left: rows, records or files by place. tombstones: of the warehouse in all.
        retention_hours: that old versions keep a file with rows of the erased users.
        other_files_days: that old versions keep every other file.
    """

    n_users: int
    found: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    tombstones: int = 0
    retention_hours: int = 0
    other_files_days: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left."""
        return not any(self.left.values())


@dataclass(frozen=True)
class Places:
    """Everything that may hold rows of users.

    Attributes:
        folders: of each table that exists. redis_url: None where no store is named.
        wait_seconds: that log files which a server is writing are waited for.
    """

    config: Config
    folders: Mapping[str, str]
    redis_url: str | None = None
    wait_seconds: float = exposure_files.WAIT_SECONDS

    @property
    def artefacts(self) -> RunArtefacts:
        return RunArtefacts(artifact_root(self.config.paths.warehouse), self.config.paths.state)

    @property
    def snapshots(self) -> Path:
        return Path(self.config.online.snapshots)

    @property
    def exposures(self) -> Path | None:
        return Path(self.config.online.exposures) if self.config.online.exposures else None

    @property
    def tables(self) -> dict[str, str]:
        """Map the tables with users to their folders."""
        return {name: self.folders[name] for name in USER_TABLES if name in self.folders}

    @cached_property
    def states(self) -> Mapping[str, Run]:
        return latest_state_by_run(rows_in(self.folders["runs"])) if "runs" in self.folders else {}

    def run_ids(self) -> Collection[str]:
        """List the runs that a store may have records of."""
        return sorted({*self.states, *repository.list_snapshots(self.snapshots)})

    def name_users(self, ids: Collection[str]) -> ErasedUsers:
        """Give ids the text that the tables' have: where those are BIGINT, "007" names the user 7."""
        folder = next((folder for name, folder in self.tables.items() if name != "rejected"), None)
        kind = None if folder is None else pa.schema(open_delta_table(folder).schema().to_arrow()).field("user_id").type
        if kind is None or not pa.types.is_integer(kind):
            return ErasedUsers(frozenset(ids))
        numbers = {text: parse_bigint(text) for text in ids}
        return ErasedUsers(frozenset(text if number is None else str(number) for text, number in numbers.items()))

    def find(self, users: ErasedUsers) -> dict[str, int]:
        """Count what there is of these users, by place."""
        found: dict[str, int] = {}
        for name, folder in self.tables.items():
            table = find_in_table(folder, users)
            found[f"table {name}"] = table.rows
            found[f"log of {name}"] = table.entries
        found |= {f"artefacts: {kind}": n for kind, n in self.artefacts.find(users).items()}
        found |= snapshots.find_in_snapshots(self.snapshots, users)
        if self.redis_url:
            found["redis"] = redis_records.find_in_redis(self.redis_url, self.run_ids(), users, cluster=self.config.online.redis_cluster)
        if self.exposures is not None:
            found["exposure log"] = sum(exposure_files.find_in_log_files(self.exposures, users).values())
        found["stream caches"] = len(stream_caches.find_stream_caches(self.config, users))
        found["reports in MLflow"] = len(logged_reports.find_logged_reports(self.config, users))
        return found


def _log_stage(stage: str) -> None:
    logger.info("erasing: %s", stage)


def erase_users(places: Places, ids: Collection[str], *, dry_run: bool = False, progress: Progress = _log_stage) -> ErasureReport:
    """Erase users, or say where they are; the same call again goes on where one was killed, and changes nothing once it is done.

    Args:
        ids: as text, of either type.

    Raises:
        Busy: somebody writes rows of users, or changes what readers see.
        UsageError: the lists are in Redis, and no server is named.
    """
    config, users = places.config, places.name_users(ids)
    if places.redis_url is None and (config.online.store == "redis" or config.online.live == "redis"):
        raise UsageError("users' lists are in Redis: name the server in RECSYS_BATCH_REDIS_URL, or their records would stay there")
    report = ErasureReport(len(users.ids), other_files_days=config.tables.retention_days)
    if dry_run:
        report.found = places.find(users)
        return report
    with erasure_lock(config), publish_lock(config):
        progress("looking")
        report.found = places.find(users)
        tombstones = add_tombstones(config.paths.warehouse, users.ids)
        report.tombstones = len(tombstones.hashes)
        n_open = _erase(places, users, tombstones, progress)
        progress("looking again")
        report.left = places.find(users)
    if n_open:
        report.left["exposure log, being written"] = n_open
        report.notes.append("servers are still writing log files: erase again once they have closed them, within a minute")
    return report


def _erase(places: Places, users: ErasedUsers, tombstones: Tombstones, progress: Progress) -> int:
    """Do every stage; returns the log files that are still being written."""
    artefacts, started = places.artefacts, time.monotonic()
    progress("counts")
    held = HeldRows(places.folders, {name: find_rows(folder, list_parquet(folder), users) for name, folder in places.tables.items()})
    RunCounts(artefacts, held, tombstones, places.config.data.min_weight).correct(places.states, users)
    progress("artefacts")
    artefacts.erase_gathered(users)
    artefacts.erase_changed(users)
    artefacts.erase_vectors(users)
    records, old_records = artefacts.replace_live_records(users)
    for name, folder in places.tables.items():
        progress(name)
        erase_from_table(folder, users, records if name == "topk_live" else None)
    for location in old_records:
        remove(location)
    progress("snapshots")
    stream_caches.remove_stream_caches(places.config, users)
    logged_reports.remove_logged_reports(places.config, users)
    if places.redis_url:
        redis_records.erase_from_redis(places.redis_url, places.run_ids(), users, cluster=places.config.online.redis_cluster)
    snapshots.erase_from_snapshots(places.snapshots, users)
    if places.exposures is None:
        return 0
    progress("exposure log")
    return exposure_files.erase_from_log_files(places.exposures, users, places.wait_seconds, started)
