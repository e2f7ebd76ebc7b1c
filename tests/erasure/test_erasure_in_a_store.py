"""A user goes from a warehouse in a store as from one on a path."""

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake

from recsys_batch.config import load_config
from recsys_batch.erasure.eraser import Places, erase_users
from recsys_batch.read import read_table
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.storage.artifacts import artifact_root, get_pointer, put_folder, set_pointer
from recsys_batch.storage.filesystems import basename, join, list_entries, read_bytes, read_parquet, storage_options
from recsys_batch.tables.tombstones import read_tombstones

IDS, GONE = IdTypes("STRING", "BIGINT"), "erase-me-4711"


def test_tables_artefacts_and_tombstones_of_a_warehouse_in_s3(bucket: str, tmp_path: Path) -> None:
    warehouse = f"{bucket}/warehouse"
    config = load_config(None, [f"paths.warehouse={warehouse}", f"paths.state={tmp_path}", f"online.snapshots={tmp_path / 'snapshots'}"])
    event = {"item_id": 20, "event_type": "buy", "weight": 1.0, "event_date": dt.date(2026, 3, 1)}
    for users in ([GONE], ["u001", GONE], ["u002"]):
        rows = pa.Table.from_pylist([event | {"user_id": user} for user in users], schema=TABLES["interactions"].arrow_schema(IDS))
        write_deltalake(join(warehouse, "interactions"), rows, mode="append", storage_options=storage_options(warehouse))
    root, changed = artifact_root(warehouse), pa.table({"user_id": [GONE, "u001"]})
    folder = put_folder(root, "changed", lambda target: pq.write_table(changed, target / "changed.parquet"), str(tmp_path))
    set_pointer(root, "a-run", "base", {"run_id": "another", "changed": basename(folder)})
    report = erase_users(Places(config, {"interactions": join(warehouse, "interactions")}), [GONE])
    assert (report.found["table interactions"], report.found["artefacts: changed"], report.is_done) == (2, 1, True)
    for version, users in ((0, []), (1, ["u001"]), (2, ["u001", "u002"])):
        assert sorted(read_table(warehouse, "interactions", version=version)["user_id"].to_pylist()) == users
    now = get_pointer(root, "a-run", "base")["changed"]
    assert read_parquet(join(root, "changed", now))["user_id"].to_pylist() == ["u001"] and now != basename(folder)
    for entry in (entry for entry in list_entries(warehouse, recursive=True) if not entry.is_folder):
        assert GONE.encode() not in read_bytes(entry.location), entry.location
        assert not entry.name.endswith(".parquet") or GONE not in str(read_parquet(entry.location).to_pylist())
    assert read_tombstones(warehouse) is not None
    assert not any(erase_users(Places(config, {"interactions": join(warehouse, "interactions")}), [GONE]).found.values())
