"""What export-snapshot does with a run that is there already, without a night."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recsys_batch.online.export.snapshot_export import export_snapshot
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.manifest import file_checksums
from recsys_batch.online.snapshot.repository import Pointers


class Store:
    """A store that has the records of these snapshots, and counts how often it is filled."""

    def __init__(self, *snapshot_ids: str) -> None:
        self.snapshot_ids, self.fills = set(snapshot_ids), 0

    def has_records(self, snapshot_id: str) -> bool:
        return snapshot_id in self.snapshot_ids

    def fill(self, run: Any) -> int:
        self.snapshot_ids.add(run.run_id)
        self.fills += 1
        return 10


def run_of(run_id: str) -> Any:
    """A published run whose snapshot is there: nothing of it but its id is needed."""
    return SimpleNamespace(run_id=run_id)


@pytest.fixture
def in_redis(make: Any) -> Path:
    folder: Path = make("first", users=10, items=30, with_ranker=False)
    (folder / "first" / "users.lmdb").unlink()
    manifest = json.loads((folder / "first" / "manifest.json").read_text())
    manifest |= {"store": "redis", "files": file_checksums(folder / "first")}
    (folder / "first" / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_store_that_lost_a_snapshots_records_is_filled_again_once(in_redis: Path) -> None:
    store = Store()
    done = export_snapshot(run_of("first"), in_redis, store)
    assert (done.written, done.refilled, done.activated) == (None, 10, True)
    done = export_snapshot(run_of("first"), in_redis, store)
    assert (done.refilled, done.activated, store.fills) == (0, False, 1)


def test_a_snapshot_that_has_its_lists_itself_fills_no_store(make: Any) -> None:
    store = Store()
    assert export_snapshot(run_of("first"), make("first", users=10, items=30, with_ranker=False), store).refilled == store.fills == 0


def test_a_nights_export_keeps_the_one_before_for_a_roll_back(make: Any) -> None:
    for name in ("first", "second", "third", "fourth"):
        folder = make(name, users=5, items=20, with_ranker=False)
    for name in ("first", "fourth"):
        done = export_snapshot(run_of(name), folder, keep=1)
    assert done.removed == [] and repository.read_pointers(folder) == Pointers("fourth", "first")
    assert repository.list_snapshots(folder) == ["first", "fourth"]


def test_a_current_that_cannot_be_read_is_written_anew(make: Any) -> None:
    folder = make("first", users=5, items=20, with_ranker=False)
    (folder / "CURRENT").write_bytes(b"\xff")
    assert export_snapshot(run_of("first"), folder, keep=1).activated and repository.read_current(folder) == "first"
