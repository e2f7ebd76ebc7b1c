"""Compaction of live lists drops what no longer holds, and neither loses nor doubles what a stream appends meanwhile."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from recsys_batch.errors import Busy
from recsys_batch.read import read_table
from recsys_batch.stream.live_table import LiveTable
from recsys_batch.tables import delta_log, live_lists
from recsys_batch.tables.delta_log import list_data_files
from recsys_batch.tables.live_lists import (
    ListCompaction,
    LiveProgress,
    compact_live_lists,
    keep_newest_lists,
    read_live_progress,
    topk_live_slice,
)
from recsys_batch.tables.live_records import read_batches
from recsys_batch.tables.slice_writer import TableSlice

Put = Callable[..., None]


def stream_of(where: TableSlice) -> LiveTable:
    return LiveTable(where, "interactions of a test")


def read_run(where: TableSlice, version: int | None = None) -> pa.Table:
    warehouse, _, name = where.root.rpartition("/")
    return read_table(warehouse, name, where=pc.field("run_id") == where.partition["run_id"], version=version)


def facts(rows: pa.Table) -> list[tuple[Any, ...]]:
    """User, batch, rank and item of every row, sorted."""
    return sorted(zip(*(rows[name].to_pylist() for name in ("user_id", "batch_id", "rank", "item_id")), strict=True))


def stored(where: TableSlice, version: int | None = None) -> list[tuple[Any, ...]]:
    """Facts of every row of the run in the table."""
    return facts(read_run(where, version))


@pytest.fixture
def where(tmp_path: Path, put_live_lists: Put) -> TableSlice:
    """Lists of three users in batches 3, 5 and 9 of run r1, and one of run r2."""
    put_live_lists(str(tmp_path), "r1", 3, {"a": [1, 2], "b": [3, 4, 5]})
    put_live_lists(str(tmp_path), "r2", 4, {"a": [90]})
    put_live_lists(str(tmp_path), "r1", 5, {"a": [6], "c": [7, 8]})
    put_live_lists(str(tmp_path), "r1", 9, {"b": [9, 10]})
    return topk_live_slice(f"{tmp_path}/topk_live", "r1")


NEWEST = [("a", 5, 1, 6), ("b", 9, 1, 9), ("b", 9, 2, 10), ("c", 5, 1, 7), ("c", 5, 2, 8)]


def test_lists_of_the_greatest_batch_are_left_in_one_file_by_user_and_rank(where: TableSlice) -> None:
    assert compact_live_lists(where, dry_run=True) == ListCompaction(n_files=3, n_superseded=5)
    assert len(stored(where)) == 10
    assert compact_live_lists(where) == ListCompaction(n_files=3, n_superseded=5)
    assert stored(where) == NEWEST
    (file,) = list_data_files(where)
    assert (file.first, file.last, file.n_rows) == ("a", "c", 5)
    assert stored(topk_live_slice(where.root, "r2")) == [("a", 4, 1, 90)]


def test_a_second_compaction_finds_nothing(where: TableSlice) -> None:
    compact_live_lists(where)
    version = DeltaTable(where.root).version()
    assert compact_live_lists(where) is None and DeltaTable(where.root).version() == version
    assert compact_live_lists(topk_live_slice(where.root, "nobody")) is None


def test_rows_are_read_in_ranges_of_users_where_they_are_many(where: TableSlice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_lists, "_ROWS_AT_ONCE", 1)
    compact_live_lists(where)
    assert stored(where) == NEWEST


def test_greater_files_are_left_alone_where_only_small_ones_are_asked_for(where: TableSlice, tmp_path: Path, put_live_lists: Put) -> None:
    """Of user b the great file has a list that no longer holds, of user a the only one of batch 11."""
    put_live_lists(str(tmp_path), "r1", 11, {"a": [20], "b": [21], **{f"u{n}": list(range(60)) for n in range(60)}})
    put_live_lists(str(tmp_path), "r1", 12, {"b": [22]})
    sizes = sorted(part.n_bytes for part in list_data_files(where))
    others = [row for row in stored(where) if row[0].startswith("u")]
    assert compact_live_lists(where, max_file_bytes=sizes[-2]) == ListCompaction(n_files=4, n_superseded=7)
    assert len(list_data_files(where)) == 2
    assert facts(keep_newest_lists(read_run(where))) == [("a", 11, 1, 20), ("b", 12, 1, 22), *NEWEST[-2:], *others]


def test_what_a_stream_appends_between_reading_and_commit_stays(
    where: TableSlice, tmp_path: Path, put_live_lists: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended = iter([11, 12])
    plain = delta_log.list_data_files

    def after_an_append(*arguments: Any) -> Any:
        found = plain(*arguments)
        if (batch := next(appended, None)) is not None:
            put_live_lists(str(tmp_path), "r1", batch, {"a": [100 + batch], f"new {batch}": [batch]})
        return found

    monkeypatch.setattr(delta_log, "list_data_files", after_an_append)
    assert compact_live_lists(where) == ListCompaction(n_files=3, n_superseded=5)
    both = [("a", 11, 1, 111), ("a", 12, 1, 112), ("new 11", 11, 1, 11), ("new 12", 12, 1, 12)]
    assert stored(where) == sorted([*NEWEST, *both])
    assert stream_of(where).version() == 12


def test_of_two_compactions_at_the_same_time_one_does_nothing(where: TableSlice, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = delta_log.list_data_files

    def after_another(*arguments: Any) -> Any:
        found = plain(*arguments)
        monkeypatch.setattr(delta_log, "list_data_files", plain)
        assert compact_live_lists(where) is not None
        return found

    monkeypatch.setattr(delta_log, "list_data_files", after_another)
    assert compact_live_lists(where) is None
    assert stored(where) == NEWEST


def test_a_streams_progress_outlives_compaction_checkpoint_old_log_and_vacuum(where: TableSlice) -> None:
    compact_live_lists(where)
    DeltaTable(where.root).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False, full=True)
    DeltaTable(where.root).create_checkpoint()
    for entry in sorted(Path(where.root, "_delta_log").glob("*.json"))[:-1]:
        entry.unlink()
    assert len(list(Path(where.root).rglob("part-*.parquet"))) == 2
    assert stored(where) == NEWEST
    assert (stream_of(where).version(), stream_of(topk_live_slice(where.root, "r2")).version()) == (9, 4)
    with pytest.raises(Busy, match="refreshed run r1 up to version 9"):
        stream_of(where).commit({}, 8)


def test_a_follower_of_the_tables_history_passes_over_a_compaction(where: TableSlice) -> None:
    before = list(read_batches(DeltaTable(where.root).history()))
    compact_live_lists(where)
    assert [batch.version for batch in before] == [3, 4, 5, 9]
    assert list(read_batches(DeltaTable(where.root).history())) == before


def test_progress_says_how_many_users_and_how_far(where: TableSlice) -> None:
    progress = read_live_progress(where)
    assert progress is not None and progress == LiveProgress(3, 9, progress.events_through)
    assert str(progress.events_through) == "2026-03-01 00:09:00+00:00"
    assert read_live_progress(topk_live_slice(where.root, "nobody")) is None


APPENDING = """
import sys
sys.path.insert(0, sys.argv[2])
from conftest import append_live_lists
for batch in range(1, int(sys.argv[3]) + 1):
    append_live_lists(sys.argv[1], "r1", batch, {"same": [batch, batch + 1], f"user {batch:03d}": [batch]})
"""
COMPACTING = """
import sys
from pathlib import Path
from recsys_batch.tables.live_lists import compact_live_lists, topk_live_slice
while not Path(sys.argv[1], "end").exists():
    compact_live_lists(topk_live_slice(f"{sys.argv[1]}/topk_live", "r1"))
"""
N_BATCHES = 60


def test_a_stream_and_two_compactions_at_the_same_time_lose_and_double_nothing(tmp_path: Path, put_live_lists: Put) -> None:
    """Every version in between has the lists of exactly the batches that the stream's own progress says."""
    put_live_lists(str(tmp_path), "r1", 0, {"same": [0, 1]})
    where = topk_live_slice(f"{tmp_path}/topk_live", "r1")
    python = [sys.executable, "-c"]
    stream = subprocess.Popen([*python, APPENDING, str(tmp_path), str(Path(__file__).parent.parent), str(N_BATCHES)])
    other = subprocess.Popen([*python, COMPACTING, str(tmp_path)])
    while stream.poll() is None:
        compact_live_lists(where)
    (tmp_path / "end").touch()
    assert (stream.wait(60), other.wait(60)) == (0, 0)
    compact_live_lists(where)
    newest = DeltaTable(where.root).version()
    assert newest > N_BATCHES + 3, "compactions, beside the batches"
    for version in range(1, newest + 1):
        at_version = DeltaTable(where.root, version=version)
        batch = int(at_version.transaction_version("recsys_batch.stream/r1/interactions of a test") or 0)
        rows = stored(where, version)
        assert len(rows) == len(set(rows))
        assert [row for row in rows if row[0] != "same"] == [(f"user {n:03d}", n, 1, n) for n in range(1, batch + 1)]
        assert rows[: len(rows) - batch][-2:] == [("same", batch, 1, batch), ("same", batch, 2, batch + 1)]
    assert len(stored(where)) == N_BATCHES + 2
    assert len(list_data_files(where)) == 1
