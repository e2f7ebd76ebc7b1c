"""Maintenance of a warehouse in a store keeps and removes what it does on a path."""

import datetime as dt
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from recsys_batch.config import Config, load_config
from recsys_batch.night import maintenance
from recsys_batch.night.maintenance import MaintenanceReport, run_maintenance
from recsys_batch.read import read_table
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.storage.artifacts import artifact_root, put_folder, set_pointer
from recsys_batch.storage.filesystems import basename, join, list_entries, storage_options, write_bytes
from recsys_batch.tables.delta_log import append, commit
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.slice_writer import TableSlice

IDS = IdTypes("STRING", "BIGINT")
NOW = dt.datetime(2026, 3, 20, tzinfo=dt.UTC)


def config_of(warehouse: str, folder: Path) -> Config:
    return load_config(None, [f"paths.warehouse={warehouse}", f"paths.state={folder / 'state'}"])


def artefacts_of_two_runs(root: str) -> dict[str, list[str]]:
    """Of "old" and "new", and what belongs to neither; locations."""
    found: dict[str, list[str]] = {"old": [], "new": [], "nobody": []}
    for run in ("old", "new"):
        folder = put_folder(root, "bundles", lambda target, run=run: (target / "bundle.json").write_text(run) and None)  # type: ignore[misc]
        set_pointer(root, run, "bundle", {"folder": basename(folder)})
        index = {"vectors": [{"name": f"vectors-{run}.npy", "sha256": "0"}], "lists": None}
        write_bytes(join(root, "indexes", f"vectors-{run}.npy"), b"vectors")
        set_pointer(root, run, "index", {"index": index})
        write_bytes(join(root, "drafts", run, "events", "part-0.parquet"), b"rows")
        found[run] = [folder, join(root, "indexes", f"vectors-{run}.npy"), join(root, "runs", run)]
        found["nobody"].append(join(root, "drafts", run))
    lost = join(root, "catalogues", "0123")
    write_bytes(join(lost, "item_ids.arrow"), b"upload that was cut short")
    found["nobody"].append(lost)
    return found


def left_in(root: str) -> set[str]:
    kinds = ("bundles", "indexes", "runs", "drafts", "catalogues")
    return {entry.location for kind in kinds for entry in list_entries(join(root, kind))}


@pytest.mark.parametrize("place", ["path", "store"])
def test_artefacts_of_kept_runs_and_young_ones_stay(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root = str(tmp_path / "root") if place == "path" else join(request.getfixturevalue("store"), "root")
    found = artefacts_of_two_runs(root)
    for path in tmp_path.rglob("*"):
        os.utime(path, (0, 0))
    young = put_folder(root, "bundles", lambda target: (target / "bundle.json").write_text("about to be named") and None)
    done = MaintenanceReport()
    maintenance._remove_artefacts(root, {"new"}, set(), done, True)
    everything = {*found["old"], *found["new"], *found["nobody"], young}
    assert left_in(root) == everything
    maintenance._remove_artefacts(root, {"new"}, set(), MaintenanceReport(), False)
    assert left_in(root) == {*found["new"], young}
    assert sorted(done.artefacts) == sorted(location.removeprefix(f"{root}/") for location in everything - {*found["new"], young})
    assert done.n_bytes > 0


def test_a_kept_run_whose_draft_goes_on_keeps_it(store: str) -> None:
    root = join(store, "root")
    artefacts_of_two_runs(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maintenance, "_YOUNG_SECONDS", -60)
        maintenance._remove_artefacts(root, {"old", "new"}, {"new"}, MaintenanceReport(), False)
    assert [entry.name for entry in list_entries(join(root, "drafts"))] == ["new"]


def test_all_of_it_works_in_s3(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders, root = {}, artifact_root(bucket)
    for name in ("runs", "user_embeddings"):
        folders[name] = join(bucket, name)
        partitions = list(TABLES[name].partition_by) or None
        options = storage_options(folders[name])
        DeltaTable.create(folders[name], TABLES[name].arrow_schema(IDS), partition_by=partitions, storage_options=options)
    runs = [_published("old", 2), _published("new", 1)]
    manifest = TableSlice(folders["runs"], TABLES["runs"], IDS, {}, 2**20)
    append(manifest, pa.Table.from_pylist([run.row() for run in runs], schema=manifest.schema), {})
    for run in runs:
        where = TableSlice(folders["user_embeddings"], TABLES["user_embeddings"], IDS, {"run_id": run.run_id}, 10**9)
        rows = pa.Table.from_pylist([{"user_id": "u", "embedding": [1.0], "n_events": 1}], schema=where.schema)
        commit(where, list(where.write(rows.to_batches(), 0)), {})
    found = artefacts_of_two_runs(root)
    monkeypatch.setattr(maintenance, "_YOUNG_SECONDS", -60)  # nothing in a store can be made to look old
    planned = run_maintenance(config_of(bucket, tmp_path), folders, 1, NOW, dry_run=True)
    assert set(pc.unique(read_table(bucket, "user_embeddings")["run_id"]).to_pylist()) == {"old", "new"}
    done = run_maintenance(config_of(bucket, tmp_path), folders, 1, NOW)
    assert done == planned
    assert (done.runs, done.rows) == (["old"], {"user_embeddings": 1})
    assert left_in(root) == set(found["new"])
    assert read_table(bucket, "user_embeddings")["run_id"].to_pylist() == ["new"]
    assert list((tmp_path / "state" / "locks").rglob("current.lock")), "publish and maintain take turns there"
    again = run_maintenance(config_of(bucket, tmp_path), folders, 1, NOW)
    assert (again.runs, again.artefacts) == ([], [])


def _published(run_id: str, days_ago: int) -> Run:
    when = NOW - dt.timedelta(days=days_ago)
    return Run(run_id, when.date(), 1, "PUBLISHED", when, {}, {}, "1", "0", "h", metrics={"started_at": when.timestamp()})
