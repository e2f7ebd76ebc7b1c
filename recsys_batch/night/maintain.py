"""Remove what no reader and no unfinished run needs: old runs' rows, their artefacts, files that nothing names. Needs no JVM, unless a
clustered table has many small files.

Every part can be done again, and is safe beside a night: what a running one has written and not named yet is younger than what is
removed, and rows go by run.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.transaction import CommitProperties

from recsys_batch.artifacts import artifact_root
from recsys_batch.config import Config
from recsys_batch.night import manifest
from recsys_batch.night.manifest import Run
from recsys_batch.night.turns import what_readers_see
from recsys_batch.read import rows_in
from recsys_batch.schemas import TABLES

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
class Maintained:
    """What was removed, or would be.

    Attributes:
        runs: run_ids whose rows go; rows by table. artefacts: their paths under the warehouse's artefact folder.
        n_bytes: of artefacts and vacuumed files. vacuumed: files by table. compacted: files before, by table.
    """

    runs: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    artefacts: list[str] = field(default_factory=list)
    vacuumed: dict[str, int] = field(default_factory=dict)
    compacted: dict[str, int] = field(default_factory=dict)
    n_bytes: int = 0


def maintain(
    config: Config,
    folders: Mapping[str, str],
    keep_runs: int,
    now: dt.datetime,
    *,
    optimize: Callable[[str], None] | None = None,
    dry_run: bool = False,
) -> Maintained:
    """Keep the newest published runs and those that can be resumed; remove everything else that is old enough.

    Args:
        folders: of each table that exists.
        keep_runs: published runs that stay, the one that readers see among them whatever its age.
        optimize: compacts a clustered table's folder; called only where one has many small files.
        now: UTC; unfinished runs begun within ``tables.retention_days`` stay.

    Raises:
        Busy: another process changes what readers see.
    """
    done = Maintained()
    since = now - dt.timedelta(days=config.tables.retention_days)
    # Nobody rolls back to a run between the decision that it goes and its going.
    with what_readers_see(config):
        rows = rows_in(folders["runs"]) if "runs" in folders else []
        states, root = manifest.fold(rows), artifact_root(config.paths.warehouse)
        kept = kept_runs(states, manifest.current(rows), keep_runs, since)
        unfinished = {run_id for run_id in kept if states[run_id].status in _UNFINISHED}
        kept |= _bases(root, unfinished)
        # A run that began after the manifest was read is not known here, and stays.
        _drop_rows(folders, set(states) - kept, done, dry_run)
        _drop_artefacts(root, kept, unfinished, done, dry_run)
    for name, folder in folders.items():
        _compact(name, folder, done, None if dry_run else optimize, dry_run)
        table = DeltaTable(folder)
        hours = config.tables.retention_days * 24
        gone = table.vacuum(retention_hours=hours, dry_run=True, enforce_retention_duration=True, full=True)
        sizes = [path.stat().st_size for path in (Path(folder) / name for name in gone) if path.is_file()]
        if sizes:
            done.vacuumed[name], done.n_bytes = len(sizes), done.n_bytes + sum(sizes)
            if not dry_run:
                table.vacuum(retention_hours=hours, dry_run=False, enforce_retention_duration=True, full=True)
    return done


def kept_runs(states: Mapping[str, Run], current: Run | None, keep_runs: int, unfinished_since: dt.datetime) -> set[str]:
    """run_ids that stay: the current one, the newest published ones, and unfinished ones that were begun since then."""
    published = [run for run in states.values() if run.status in ("PUBLISHED", "ROLLED_BACK")]
    published.sort(key=lambda run: (run.run_date, run.published_at or run.started_at), reverse=True)
    kept = {run.run_id for run in published[: max(keep_runs, 1)]}
    kept |= {run.run_id for run in states.values() if run.status in _UNFINISHED and run.started_at >= unfinished_since}
    return kept | ({current.run_id} if current else set())


def _bases(root: Path, unfinished: set[str]) -> set[str]:
    """Runs that unfinished incremental ones go on from."""
    files = [root / "runs" / run_id / "base.json" for run_id in unfinished]
    return {str(json.loads(path.read_text(encoding="utf-8"))["run_id"]) for path in files if path.is_file()}


def _drop_rows(folders: Mapping[str, str], dropped: set[str], done: Maintained, dry_run: bool) -> None:
    for name in _OUTPUTS:
        if name not in folders:
            continue
        table = DeltaTable(folders[name])
        files = pa.table(table.get_add_actions(flatten=True))
        if files.num_rows == 0:
            continue
        runs = files["partition.run_id"].cast(pa.string())
        old = sorted(set(runs.to_pylist()) & dropped)
        if not old:
            continue
        done.runs = sorted({*done.runs, *old})
        done.rows[name] = int(pc.sum(files.filter(pc.is_in(runs, value_set=pa.array(old)))["num_records"]).as_py() or 0)
        if not dry_run:
            listed = ", ".join("'" + run.replace("'", "''") + "'" for run in old)
            note = CommitProperties(custom_metadata={"userMetadata": json.dumps({"by": "maintain", "runs": old})})
            table.delete(f"run_id IN ({listed})", commit_properties=note)


def _drop_artefacts(root: Path, kept: set[str], unfinished: set[str], done: Maintained, dry_run: bool) -> None:
    named = {path for run_id in kept for path in _named(root, run_id)}
    for folder in _candidates(root):
        # Drafts of a published run are of no use to anybody.
        holders = unfinished if folder.parent.name in ("drafts", "downloads") else kept
        if folder in named or folder.name in holders or time.time() - folder.stat().st_mtime < _YOUNG_SECONDS:
            continue
        files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else [folder]
        done.artefacts.append(str(folder.relative_to(root)))
        done.n_bytes += sum(path.stat().st_size for path in files)
        if not dry_run:
            shutil.rmtree(folder, ignore_errors=True) if folder.is_dir() else folder.unlink(missing_ok=True)


def _candidates(root: Path) -> Iterator[Path]:
    """Everything that belongs to runs: content by its hash, pointers and drafts by run_id."""
    for kind in ("bundles", "catalogues", "popularity", "changed", "audits", "indexes", "runs", "drafts", "downloads"):
        if (root / kind).is_dir():
            yield from sorted((root / kind).iterdir())


def _named(root: Path, run_id: str) -> Iterator[Path]:
    """Artefacts that a run's pointers name."""
    for path in (root / "runs" / run_id).glob("*.json"):
        pointer = json.loads(path.read_text(encoding="utf-8"))
        if path.stem in _NAMED_BY:
            kind, key = _NAMED_BY[path.stem]
            yield root / kind / str(pointer[key])
        elif path.stem == "index":
            yield from (root / "indexes" / name for name in _file_names(pointer))


def _file_names(value: Any) -> Iterator[str]:
    """Names of files in an index's description, wherever they stand in it."""
    if isinstance(value, dict):
        if "name" in value and "sha256" in value:
            yield str(value["name"])
        for inner in value.values():
            yield from _file_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _file_names(inner)


def _compact(name: str, folder: str, done: Maintained, optimize: Callable[[str], None] | None, dry_run: bool) -> None:
    if name not in (*_COMPACTED, *_CLUSTERED):
        return
    table = DeltaTable(folder)
    n_files = len(table.file_uris())
    if n_files <= _SMALL_FILES or (name in _CLUSTERED and not dry_run and optimize is None):
        return
    done.compacted[name] = n_files
    if dry_run:
        return
    if name in _CLUSTERED:
        assert optimize is not None
        optimize(folder)
    else:
        table.optimize.compact(commit_properties=CommitProperties(custom_metadata={"userMetadata": json.dumps({"by": "maintain"})}))
