"""Remove what no reader and no unfinished run needs: old runs' rows, their artefacts, files that nothing names. Needs no JVM, unless a
clustered table has many small files.

Every part can be done again, and is safe beside a night and a stream: what a running one has written and not named yet is younger than
what is removed, rows go by run, and live lists are compacted by replacing files that were read, whatever is appended meanwhile.
"""

import datetime as dt
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.transaction import CommitProperties

from recsys_batch.config import Config
from recsys_batch.night.run_locks import publish_lock, user_rows_lock
from recsys_batch.night.run_store import runs_with_gathered_events
from recsys_batch.read import rows_in
from recsys_batch.schemas import TABLES
from recsys_batch.storage.artifacts import artifact_root, get_pointer, has_pointer, list_pointers, remove_folder
from recsys_batch.storage.filesystems import Entry, file_sizes, join, list_entries
from recsys_batch.tables import run_manifest
from recsys_batch.tables.delta_log import open_delta_table
from recsys_batch.tables.live_lists import compact_live_lists, topk_live_slice
from recsys_batch.tables.run_manifest import Run

_OUTPUTS = tuple(name for name, spec in TABLES.items() if "run_id" in spec.partition_by)
_COMPACTED = ("runs", "rejected", "holdout", "exposures", "feedback")
"""Tables of many small commits that deltalake compacts."""
_CLUSTERED = ("interactions",)
"""Likewise, but clustered, which only Spark's OPTIMIZE keeps."""
_SMALL_FILES = 20
_UNFINISHED = ("RUNNING", "AUDITED", "FAILED")
_YOUNG_SECONDS = 24 * 3600
"""Artefacts younger than this stay, named or not: a night may be about to name them."""
_NAMED_BY = {"bundle": ("bundles", "folder"), "catalogue": ("catalogues", "folder"), "popularity": ("popularity", "folder")}
_NAMED_BY |= {"base": ("changed", "changed")}


@dataclass
class MaintenanceReport:
    """Result of maintenance: what was removed, or would be.

    Attributes:
        runs: run_ids whose rows go. rows: by table, in topk_live superseded ones of the published run, too.
        artefacts: their paths under the warehouse's artefact folder.
        n_bytes: of artefacts and vacuumed files. vacuumed: files by table. compacted: files before, by table.
    """

    runs: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    artefacts: list[str] = field(default_factory=list)
    vacuumed: dict[str, int] = field(default_factory=dict)
    compacted: dict[str, int] = field(default_factory=dict)
    n_bytes: int = 0


def run_maintenance(
    config: Config,
    folders: Mapping[str, str],
    keep_runs: int,
    now: dt.datetime,
    *,
    optimize: Callable[[str], None] | None = None,
    dry_run: bool = False,
) -> MaintenanceReport:
    """Remove runs, artefacts and files that are old enough, except the newest published runs' and those of runs that can be resumed.

    Args:
        folders: of each table that exists.
        keep_runs: published runs that stay, the one that readers see among them whatever its age.
        optimize: compacts a clustered table's folder; called only where one has many small files.
        now: UTC; unfinished runs begun within ``tables.retention_days`` stay.

    Raises:
        Busy: another process changes what readers see, or erases users.
    """
    with user_rows_lock(config):
        return _run_maintenance(config, folders, keep_runs, now, optimize, dry_run)


def _run_maintenance(
    config: Config, folders: Mapping[str, str], keep_runs: int, now: dt.datetime, optimize: Callable[[str], None] | None, dry_run: bool
) -> MaintenanceReport:
    report = MaintenanceReport()
    unfinished_since = now - dt.timedelta(days=config.tables.retention_days)
    # Nobody rolls back to a run between the decision that it goes and its going.
    with publish_lock(config):
        rows = rows_in(folders["runs"]) if "runs" in folders else []
        states, root = run_manifest.latest_state_by_run(rows), artifact_root(config.paths.warehouse)
        current = run_manifest.newest_published(rows)
        kept = runs_to_keep(states, current, keep_runs, unfinished_since)
        unfinished = {run_id for run_id in kept if states[run_id].status in _UNFINISHED}
        # What unfinished incremental runs go on from.
        kept |= {str(get_pointer(root, run_id, "base")["run_id"]) for run_id in unfinished if has_pointer(root, run_id, "base")}
        # A run that began after the manifest was read is not known here, and stays.
        _remove_rows(folders, set(states) - kept, report, dry_run)
        _remove_artefacts(root, kept, unfinished, report, dry_run, runs_with_gathered_events(root, rows, kept))
    if current is not None and "topk_live" in folders:
        where = topk_live_slice(folders["topk_live"], current.run_id, config.tables.target_file_mb * 2**20)
        compaction = compact_live_lists(where, dry_run=dry_run)
        if compaction is not None:
            report.compacted["topk_live"] = compaction.n_files
            if compaction.n_superseded:
                report.rows["topk_live"] = report.rows.get("topk_live", 0) + compaction.n_superseded
    for name, folder in folders.items():
        _compact(name, folder, report, None if dry_run else optimize, dry_run)
        table = open_delta_table(folder)
        hours = config.tables.retention_days * 24
        orphans = table.vacuum(retention_hours=hours, dry_run=True, enforce_retention_duration=True, full=True)
        sizes = list(file_sizes(folder, orphans).values())
        if sizes:
            report.vacuumed[name], report.n_bytes = len(sizes), report.n_bytes + sum(sizes)
            if not dry_run:
                table.vacuum(retention_hours=hours, dry_run=False, enforce_retention_duration=True, full=True)
    return report


def runs_to_keep(states: Mapping[str, Run], current: Run | None, keep_runs: int, unfinished_since: dt.datetime) -> set[str]:
    """Choose the run_ids that stay: the current one, the newest published ones, and unfinished ones begun since ``unfinished_since``."""
    published = [run for run in states.values() if run.was_published]
    published.sort(key=lambda run: (run.run_date, run.published_at or run.started_at), reverse=True)
    kept = {run.run_id for run in published[: max(keep_runs, 1)]}
    kept |= {run.run_id for run in states.values() if run.status in _UNFINISHED and run.started_at >= unfinished_since}
    return kept | ({current.run_id} if current else set())


def _remove_rows(folders: Mapping[str, str], dropped: set[str], report: MaintenanceReport, dry_run: bool) -> None:
    for name in _OUTPUTS:
        if name not in folders:
            continue
        table = open_delta_table(folders[name])
        files = pa.table(table.get_add_actions(flatten=True))
        if files.num_rows == 0:
            continue
        runs = files["partition.run_id"].cast(pa.string())
        old = sorted(set(runs.to_pylist()) & dropped)
        if not old:
            continue
        report.runs = sorted({*report.runs, *old})
        report.rows[name] = int(pc.sum(files.filter(pc.is_in(runs, value_set=pa.array(old)))["num_records"]).as_py() or 0)
        if not dry_run:
            listed = ", ".join("'" + run.replace("'", "''") + "'" for run in old)
            commit_properties = CommitProperties(custom_metadata={"userMetadata": json.dumps({"by": "maintain", "runs": old})})
            table.delete(f"run_id IN ({listed})", commit_properties=commit_properties)


def _remove_artefacts(
    root: str, kept: set[str], unfinished: set[str], report: MaintenanceReport, dry_run: bool, streamed: Collection[str] = ()
) -> None:
    """Remove what belongs to runs that go: content is named by its hash; pointers, gathered events and a stream's files by run_id.

    Args:
        unfinished: run_ids whose drafts stay. streamed: those whose gathered events and pointers stay, too, as a stream reads them.
    """
    named = {location for run_id in kept for location in _named_locations(root, run_id)}
    stays = {"runs": {*kept, *streamed}, "gathered": {*unfinished, *streamed}, "drafts": unfinished, "downloads": unfinished}
    for kind in ("bundles", "catalogues", "popularity", "changed", "audits", "indexes", "live", *stays):
        kept_folders = stays.get(kind, kept)
        for entry in list_entries(join(root, kind)):
            if entry.location in named or entry.name in kept_folders:
                continue
            content = [entry, *(list_entries(entry.location, recursive=True) if entry.is_folder else [])]
            if _is_young(content):
                continue
            report.artefacts.append(f"{kind}/{entry.name}")
            report.n_bytes += sum(item.n_bytes for item in content)
            if not dry_run:
                remove_folder(entry.location)


def _is_young(content: list[Entry]) -> bool:
    """Whether a folder or a file in it is younger than ``_YOUNG_SECONDS``: in a store only files have a time."""
    cutoff = dt.datetime.now(dt.UTC).timestamp() - _YOUNG_SECONDS
    return any(entry.modified is not None and entry.modified.timestamp() > cutoff for entry in content)


def _named_locations(root: str, run_id: str) -> Iterator[str]:
    """List the locations of artefacts that a run's pointers name."""
    for name, pointer in list_pointers(root, run_id).items():
        if name in _NAMED_BY:
            kind, key = _NAMED_BY[name]
            yield join(root, kind, str(pointer[key]))
        elif name == "index":
            yield from (join(root, "indexes", file) for file in _file_names(pointer))


def _file_names(value: Any) -> Iterator[str]:
    """List the names of files in an index's description, wherever they stand in it."""
    if isinstance(value, dict):
        if "name" in value and "sha256" in value:
            yield str(value["name"])
        for inner in value.values():
            yield from _file_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _file_names(inner)


def _compact(name: str, folder: str, report: MaintenanceReport, optimize: Callable[[str], None] | None, dry_run: bool) -> None:
    if name not in (*_COMPACTED, *_CLUSTERED):
        return
    table = open_delta_table(folder)
    n_files = len(table.file_uris())
    if n_files <= _SMALL_FILES or (name in _CLUSTERED and not dry_run and optimize is None):
        return
    report.compacted[name] = n_files
    if dry_run:
        return
    if name in _CLUSTERED:
        assert optimize is not None
        optimize(folder)
    else:
        table.optimize.compact(commit_properties=CommitProperties(custom_metadata={"userMetadata": json.dumps({"by": "maintain"})}))
