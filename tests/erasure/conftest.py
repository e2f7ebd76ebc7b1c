"""A published warehouse with a user in every place that there is, and a search for that user's bytes."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from recsys_batch.config import Config
from recsys_batch.dataset.log_rows import Exposure, encode_row
from recsys_batch.dataset.log_segments import pack_segment
from recsys_batch.dataset.user_events import EVENTS
from recsys_batch.erasure.eraser import Places
from recsys_batch.online.export.published_run import open_published_run
from recsys_batch.online.export.snapshot_export import export_snapshot
from recsys_batch.online.snapshot.live_overlay import encode_live_record, open_overlay, overlays_folder
from recsys_batch.online.snapshot.user_key import user_key
from recsys_batch.online.snapshot.user_record import LiveOrigin
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.storage.artifacts import artifact_root, get_pointer, put_folder, set_pointer, state_file
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.stream.event_store import EventStore
from recsys_batch.stream.live_table import LiveTable
from recsys_batch.tables.live_records import live_record_slices
from recsys_batch.tables.slice_writer import TableSlice

IDS = IdTypes("STRING", "BIGINT")
GONE, RUN = "glutton", "2026-03-01-r1"
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
FOUND = {
    "table interactions", "table holdout", "table users", "table rejected", "table exposures", "table feedback", "table sent_log",
    "table user_embeddings", "table candidates", "table shortfalls", "table topk", "table topk_live", "artefacts: gathered",
    "artefacts: changed", "artefacts: embeddings", "artefacts: live", "artefacts: pointers", f"snapshot {RUN}", "live overlays",
    "exposure log", "stream caches", "reports in MLflow",
}  # fmt: skip


def _append(config: Config, name: str, rows: list[dict[str, Any]]) -> None:
    spec = TABLES[name]
    table = pa.Table.from_pylist(rows, schema=spec.arrow_schema(IDS))
    # Without what the log of a table that Spark made demands of a writer.
    write_deltalake(f"{config.paths.warehouse}/{name}", table, mode="append", partition_by=list(spec.partition_by) or None)


def _put_rows(config: Config) -> None:
    event = {"item_id": 20, "event_ts": NOON, "event_type": "buy", "weight": 1.0, "event_date": NOON.date()}
    of_request = {"request_id": "r", "shown_at": NOON, "shown_date": NOON.date(), "position": 1, "item_id": 20}
    for user in (GONE, "u001"):
        _append(config, "holdout", [event | {"user_id": user}])
        _append(config, "feedback", [event | {"user_id": user, "request_id": "r"}])
        _append(config, "exposures", [of_request | {"user_id": user}])
        sent = {"digest_id": "d", "run_id": RUN, "user_id": user, "slot": 1, "item_id": 20, "sent_date": NOON.date()}
        _append(config, "sent_log", [sent])
        raw = {"ingest_id": "i", "source": "a.csv", "kind": "interactions", "reason": "bad_weight", "rejected_at": NOON}
        rejected = [json.dumps({"user_id": user, "weight": "x"}), json.dumps({"_line": f"{user},1,2,3,4"})]
        _append(config, "rejected", [raw | {"row": row} for row in rejected])
    _append(config, "users", [{"user_id": GONE, "segment": "even", "attributes": [("plan", "free")]}])


def _put_live_lists(config: Config) -> None:
    folder, spec = f"{config.paths.warehouse}/topk_live", TABLES["topk_live"]
    write_deltalake(folder, spec.arrow_schema(IDS).empty_table(), partition_by=list(spec.partition_by))
    where = TableSlice(folder, spec, IDS, {"run_id": RUN}, 2**26)
    candidates, embeddings = live_record_slices(artifact_root(config.paths.warehouse), RUN, where)
    fixed = {"run_date": NOON.date(), "rank": 1, "score": 1.0, "candidate_rank": 1, "source": "model", "model_version": "1"}
    for batch, users in ((5, [GONE, "u001"]), (6, [GONE])):
        rows = [fixed | {"user_id": user, "item_id": 20, "generated_at": NOON, "batch_id": batch, "events_through": NOON} for user in users]
        lists = [{"user_id": user, "items": [{"item_id": 20, "score": 1.0}], "run_id": RUN} for user in users]
        vectors = [{"user_id": user, "embedding": [1.0] * 64, "n_events": 1, "run_id": RUN} for user in users]
        tables = {"topk_live": (where, rows), "candidates": (candidates, lists), "user_embeddings": (embeddings, vectors)}
        files = {
            name: list(place.write(pa.Table.from_pylist(content, schema=place.spec.arrow_schema(IDS)).to_batches(), 0))
            for name, (place, content) in tables.items()
        }
        LiveTable(where, "interactions of a test").commit(files, batch)


def _put_artefacts(config: Config) -> None:
    root, users = artifact_root(config.paths.warehouse), pa.table({"user_id": ["aunt", GONE, "u001"]})
    changed = put_folder(root, "changed", lambda target: pq.write_table(users, target / "changed.parquet")).rpartition("/")[2]
    set_pointer(root, "2026-02-28-r9", "base", {"run_id": "2026-02-27-r1", "changed": changed, "gained": [], "same_items": True})
    gathered = get_pointer(root, RUN, "gathered")
    set_pointer(root, RUN, "gathered", gathered | {"cuts": [GONE, *gathered["cuts"]]})
    registered = Path(root) / "embeddings" / "user_id-3-00"
    registered.mkdir(parents=True)
    pq.write_table(users.append_column("embedding", pa.array([[1.0], [2.0], [3.0]])), registered / "part-0.parquet")
    (registered / ".part-0.parquet.crc").write_bytes(b"sums")


def _put_online(config: Config) -> None:
    snapshots, log = Path(config.online.snapshots), Path(str(config.online.exposures))
    export_snapshot(open_published_run(config.paths.warehouse, NodeCache.from_paths(config.paths)), snapshots, n_samples=200)
    key = user_key(GONE, "STRING")
    assert key is not None
    overlays_folder(snapshots).mkdir(parents=True)
    overlay = open_overlay(overlays_folder(snapshots) / RUN, "a table")
    overlay.add([(key, encode_live_record(LiveOrigin(5, NOON, NOON), b"list"))], 1)
    overlay.close()
    log.mkdir()
    for kind in ("exposures", "feedback"):
        pq.write_table(pa.table({"user_id": [GONE, "u001"], "request_id": ["a", "b"]}), log / f"{kind}-1.parquet", compression="zstd")
        pq.write_table(pa.table({"user_id": [GONE]}), log / f"{kind}-2.parquet", compression="zstd")
    shown = [Exposure("r", NOON, user, RUN, "7", "ranker", None, ["i"], [1.0]) for user in (GONE, "u001")]
    (log / "exposures-3.segment").write_bytes(pack_segment([list(map(encode_row, shown))]))
    page = Path(config.paths.state) / "mlartifacts" / "report.html"
    page.parent.mkdir()
    page.write_text(f"<h3>User u001 </h3><h3>User {GONE} <span>model</span></h3>")
    (page.parent / "other.html").write_text(f"<h3>User u001 </h3> not {GONE[:-1]}")
    events = EventStore(state_file(config.paths.warehouse, config.paths.state, "stream", f"{RUN}.sqlite"), IDS, 0)
    row = {"user_id": GONE, "item_id": 20, "event_us": 1, "weight": 1.0, "before": False}
    events.add_events(pa.Table.from_pylist([row], schema=EVENTS.arrow_schema(IDS)), 1)
    events.close()


def _config_in(config: Config, folder: Path) -> Config:
    online = {"snapshots": str(folder / "snapshots"), "exposures": str(folder / "log")}
    paths = {"warehouse": str(folder / "warehouse"), "state": str(folder / "state")}
    updates = {"online": config.online.model_copy(update=online), "paths": config.paths.model_copy(update=paths)}
    return config.model_copy(update=updates)


@pytest.fixture(scope="session")
def everywhere(published: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The published warehouse with the user in every place. Read only."""
    folder = tmp_path_factory.mktemp("everywhere")
    config = _config_in(published, folder)
    shutil.copytree(published.paths.warehouse, config.paths.warehouse)
    (folder / "state").mkdir()
    _put_rows(config)
    _put_live_lists(config)
    _put_artefacts(config)
    _put_online(config)
    return config


@pytest.fixture
def copy_everything(everywhere: Config) -> Callable[[Path], Config]:
    """Copies the warehouse with all that belongs to it to a new folder."""

    def copy(folder: Path) -> Config:
        source = Path(everywhere.paths.warehouse).parent
        shutil.copytree(source, folder)
        config = _config_in(everywhere, folder)
        old, new = (state_file(c.paths.warehouse, c.paths.state, "stream", "x").parent for c in (everywhere, config))
        moved = Path(config.paths.state) / "stream" / old.name
        moved.rename(new)
        return config

    return copy


def places_of(config: Config) -> Places:
    """What the command erases from."""
    warehouse = Path(config.paths.warehouse)
    folders = {name: str(warehouse / name) for name in TABLES if (warehouse / name).is_dir()}
    return Places(config, folders, wait_seconds=0.0)


def find_traces(folder: Path, user: str = GONE) -> list[str]:
    """Files with the user's bytes, and Parquet files with a value that has them."""
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        if user.encode() in path.read_bytes():
            found.append(str(path))
        if path.suffix == ".parquet":
            table = pq.read_table(path, partitioning=None)
            found += [f"{path}: {column}" for column in table.schema.names if user in str(table[column].to_pylist())]
    return found


@pytest.fixture
def places() -> Callable[[Config], Places]:
    return places_of


@pytest.fixture
def traces() -> Callable[[Path], list[str]]:
    return find_traces


@pytest.fixture
def expected_places() -> set[str]:
    return FOUND
