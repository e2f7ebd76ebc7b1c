"""A log never waits, never grows beyond its bounds, shows whole files only, and counts every row that it took."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_batch.errors import UsageError
from recsys_batch.online.exposure_log import rotating_parquet, row_log
from recsys_batch.online.exposure_log.rotating_parquet import RotatingParquet, RotationPolicy
from recsys_batch.online.exposure_log.row_log import LogStats, RowLog

SCHEMA = pa.schema([pa.field("n", pa.int64(), False), pa.field("text", pa.string())])


def encode(rows: Sequence[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(rows, pa.int64()), pa.array([f"row {n}" for n in rows])], schema=SCHEMA)


def open_log(
    folder: Path, queue_rows: int = 100_000, encode: Callable[[Sequence[int]], pa.RecordBatch] = encode, **limits: Any
) -> RowLog[int]:
    return RowLog(RotatingParquet(folder, "rows", SCHEMA, os.getpid(), RotationPolicy(**limits)), encode, queue_rows)


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("rows-*.parquet"))


def rows_in(folder: Path) -> list[int]:
    return [n for file in files_in(folder) for n in pq.read_table(file)["n"].to_pylist()]


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


def adds_up(found: LogStats) -> bool:
    return found.recorded == found.written + found.pending + found.queued + found.lost + found.invalid


@given(
    bursts=st.lists(st.integers(0, 300), max_size=5),
    rotate_rows=st.integers(1, 200),
    group_rows=st.integers(1, 100),
    queue_rows=st.integers(1, 400),
)
@settings(max_examples=25, deadline=None)
def test_rows_come_back_in_order_and_each_is_written_or_counted_as_dropped(
    bursts: list[int], rotate_rows: int, group_rows: int, queue_rows: int
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        log = open_log(folder, queue_rows, rotate_rows=rotate_rows, group_rows=group_rows)
        taken = [number for number in range(sum(bursts)) if log.record(number)]
        assert log.close(60)
        found = log.stats()
        assert rows_in(folder) == taken
        assert (found.recorded, found.written, found.dropped) == (len(taken), len(taken), sum(bursts) - len(taken))
        assert found.files == len(files_in(folder)) and adds_up(found)
        # A file is full at rotate_rows, give or take the portion that filled it.
        assert all(pq.read_metadata(file).num_rows < rotate_rows + 64 for file in files_in(folder))
        assert [path for path in folder.iterdir() if path.name.startswith(".")] == []
    finally:
        shutil.rmtree(folder)


def test_past_the_bound_a_row_is_dropped_at_once_and_counted(tmp_path: Path) -> None:
    held = threading.Event()

    def slow(rows: Sequence[int]) -> pa.RecordBatch:
        held.wait()
        return encode(rows)

    log = open_log(tmp_path, queue_rows=10, encode=slow)
    log.record(0)
    until(lambda: log.stats().queued == 0)  # the thread has it in hand, and waits
    assert [log.record(number) for number in range(1, 14)] == [True] * 10 + [False] * 3
    assert (log.stats().recorded, log.stats().dropped, log.stats().queued) == (11, 3, 10)
    assert not log.close(0.01)
    held.set()
    assert log.close(60)
    assert rows_in(tmp_path) == list(range(11))
    assert not log.record(99)
    assert log.stats().dropped == 4


def test_a_file_is_closed_when_it_is_old_though_nothing_more_comes(tmp_path: Path) -> None:
    log = open_log(tmp_path, rotate_seconds=0.2)
    log.record(1)
    until(lambda: bool(files_in(tmp_path)))
    assert rows_in(tmp_path) == [1]
    log.record(2)
    until(lambda: len(files_in(tmp_path)) == 2)
    assert log.close()
    assert rows_in(tmp_path) == [1, 2]


def test_a_log_without_rows_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    assert open_log(tmp_path / "log").close()
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_files_go_and_are_counted(tmp_path: Path) -> None:
    (tmp_path / "rows-20200101T000000.000000Z-other-1-1.parquet").write_bytes(b"x")
    (tmp_path / "others-1.parquet").write_bytes(b"x")
    log = open_log(tmp_path, rotate_rows=1, max_files=3)
    for number in range(6):
        log.record(number)
        until(lambda number=number: log.stats().files == number + 1)  # type: ignore[misc]
    assert log.close()
    assert rows_in(tmp_path) == [3, 4, 5]
    assert log.stats().removed_files == 4
    assert (tmp_path / "others-1.parquet").exists()
    n_bytes = files_in(tmp_path)[0].stat().st_size
    log = open_log(tmp_path, max_mb=2.5 * n_bytes / 1e6)
    log.record(6)
    assert log.close()
    assert rows_in(tmp_path) == [5, 6]


_WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_row_log import open_log
log = open_log(Path(sys.argv[1]), rotate_rows=3000, group_rows=100)
number = 0
while True:
    if log.record(number):
        number += 1
    else:
        time.sleep(0.01)
"""


def test_a_writer_that_is_killed_leaves_whole_files_and_a_later_one_removes_its_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drafts() -> list[Path]:
        return list(tmp_path.glob(".rows-*"))

    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), str(Path(__file__).parent)])
    try:
        until(lambda: len(files_in(tmp_path)) >= 3)
        assert process.poll() is None
        until(lambda: any(draft.stat().st_size > 10_000 for draft in drafts() if draft.exists()))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    monkeypatch.setattr(rotating_parquet, "_YOUNG_SECONDS", -1)
    found = rows_in(tmp_path)
    assert found == list(range(len(found))) and len(found) >= 9_000
    assert len(drafts()) == 1
    log = open_log(tmp_path)
    log.record(-1)
    assert log.close()
    assert drafts() == []
    assert rows_in(tmp_path) == [*found, -1]


def test_the_draft_of_a_writer_that_lives_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotating_parquet, "_YOUNG_SECONDS", -1)
    one, other = (RotatingParquet(tmp_path, "rows", SCHEMA, worker, RotationPolicy(group_rows=1)) for worker in (1, 2))
    one.append([encode([1])])
    other.append([encode([2])])
    other.rotate()
    one.append([encode([3])])
    one.rotate()
    assert sorted(rows_in(tmp_path)) == [1, 2, 3]


def test_a_full_disk_costs_rows_that_are_counted_and_the_log_recovers_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_log, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(row_log, "_LONGEST_PAUSE_SECONDS", 0.05)
    log = open_log(tmp_path, rotate_rows=1_000, group_rows=100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        for number in range(1_000):
            log.record(number)
        until(lambda: log.stats().queued == 0 and log.stats().lost > 0)
        assert files_in(tmp_path) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for number in range(1_000, 2_000):
        log.record(number)
    assert log.close(60)
    found = log.stats()
    assert found.write_errors > 0 and found.lost > 0 and found.pending == 0
    assert adds_up(found)
    assert len(rows_in(tmp_path)) == found.written and set(range(1_000, 2_000)) <= set(rows_in(tmp_path))
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_file_in_place_of_the_folder_is_an_error_that_passes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_log, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(row_log, "_LONGEST_PAUSE_SECONDS", 0.05)
    folder = tmp_path / "log"
    folder.write_text("in the way")
    log = open_log(folder, rotate_rows=10, group_rows=10)
    for number in range(10):
        log.record(number)
    until(lambda: log.stats().lost == 10)
    folder.unlink()
    log.record(10)
    assert log.close()
    assert rows_in(folder) == [10]
    found = log.stats()
    assert (found.recorded, found.written, found.lost) == (11, 1, 10) and found.write_errors >= 1


def test_closing_while_the_disk_refuses_ends_and_counts(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.write_text("in the way")
    log = open_log(folder)
    for number in range(1_000):
        log.record(number)
    assert log.close(60)
    found = log.stats()
    assert (found.written, found.lost, found.pending, found.queued) == (0, 1_000, 0, 0)


@pytest.mark.parametrize("name", ["rotate_rows", "rotate_seconds", "group_rows", "max_files", "max_mb"])
def test_bounds_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} of a log is 0"):
        RotationPolicy(**{name: 0})


def test_a_queue_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="queue_rows of a log is 0"):
        open_log(tmp_path, queue_rows=0)
