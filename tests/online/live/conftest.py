"""A warehouse as a night and a stream would leave it, written without either: a row of runs, and batches of topk_live."""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from recsys_batch.schemas import TABLES, IdTypes, TableSpec
from recsys_batch.storage.artifacts import artifact_root
from recsys_batch.tables.delta_log import append_files
from recsys_batch.tables.live_records import LiveBatch, live_record_slices
from recsys_batch.tables.run_manifest import Run
from recsys_batch.tables.slice_writer import TableSlice

IDS = IdTypes("BIGINT", "BIGINT")
NIGHT = dt.datetime(2026, 3, 1, 2, tzinfo=dt.UTC)
DIM, TOP_K = 16, 3


class LiveWarehouse:
    """Lists of users 0, 1, ... of snapshots that online/export/synthetic_snapshot.py made up."""

    def __init__(self, folder: Path, *run_ids: str) -> None:
        self.folder = folder
        for run_id in run_ids:
            run = Run(run_id, NIGHT.date(), 1, "PUBLISHED", NIGHT, {}, {}, "made-up", "0", "", metrics={"event": 1.0})
            row = {name: list(value.items()) if isinstance(value, dict) else value for name, value in run.row().items()}
            write_deltalake(folder / "runs", _table(TABLES["runs"], [row]), mode="append")

    def create_table(self) -> None:
        """As a stream does before its first batch."""
        spec = TABLES["topk_live"]
        DeltaTable.create(folder := self.folder / "topk_live", spec.arrow_schema(IDS), partition_by=list(spec.partition_by))
        assert folder.is_dir()

    def refresh(
        self, batch_id: int, lists: Mapping[int, Sequence[int]], *, through: dt.datetime | None = None, run_id: str = "first"
    ) -> None:
        """Commit a micro-batch: candidates by user, best first, of which the first three are the list. User 9000 has no embedding."""
        if not (self.folder / "topk_live").exists():
            self.create_table()
        where = TableSlice(str(self.folder / "topk_live"), TABLES["topk_live"], IDS, {"run_id": run_id}, 2**20)
        slices = {one.spec.name: one for one in (where, *live_record_slices(artifact_root(str(self.folder)), run_id, where))}
        users = sorted(lists)
        about = {"run_id": run_id, "run_date": NIGHT.date(), "model_version": "made-up", "generated_at": NIGHT, "source": "model"}
        scored = {user: [{"item_id": item, "score": 1.0 - n / 1000} for n, item in enumerate(lists[user])] for user in users}
        rows = {
            "topk_live": [
                {**about, "user_id": user, "rank": n, "candidate_rank": n, "batch_id": batch_id, "events_through": through, **pair}
                for user in users
                for n, pair in enumerate(scored[user][:TOP_K], 1)
            ],
            "candidates": [{"run_id": run_id, "user_id": user, "items": scored[user]} for user in users],
            "user_embeddings": [
                {"run_id": run_id, "user_id": user, "embedding": [0.1] * DIM, "n_events": 7} for user in users if user != 9000
            ],
        }
        files = {name: list(slices[name].write(_table(TABLES[name], rows[name]).to_batches(), 0)) for name in rows}
        append_files(where, files["topk_live"], LiveBatch(run_id, batch_id, files).to_metadata(), [])


def _table(spec: TableSpec, rows: Sequence[Mapping[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=spec.arrow_schema(IDS))


@pytest.fixture
def live_warehouse(tmp_path: Path) -> LiveWarehouse:
    """With the runs "first" and "second"."""
    return LiveWarehouse(tmp_path / "warehouse", "first", "second")


@pytest.fixture
def snapshots(make: Callable[..., Path]) -> Path:
    """A folder with the snapshots "first" and "second", of which nothing is current."""
    make("first", seed=1)
    return make("second", seed=2)
