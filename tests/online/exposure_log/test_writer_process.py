"""A log never keeps a request waiting, never grows beyond its bounds, shows whole files only, and counts every row that it took."""

import datetime as dt
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK
from recsys_batch.errors import UsageError
from recsys_batch.online.exposure_log import log_writer, rotating_parquet, writer_process
from recsys_batch.online.exposure_log.log_rows import Exposure, FeedbackEvent
from recsys_batch.online.exposure_log.log_writer import LOG_KINDS, LogStats, LogWriter, open_log
from recsys_batch.online.exposure_log.rotating_parquet import RotatingParquet, RotationPolicy
from recsys_batch.online.exposure_log.writer_process import LogWriterClient, write_logs
from recsys_batch.schemas import IdTypes

SCHEMA = pa.schema([pa.field("n", pa.int64(), False), pa.field("text", pa.string())])
IDS = IdTypes("BIGINT", "BIGINT")
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def encode(rows: Sequence[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(rows, pa.int64()), pa.array([f"row {n}" for n in rows])], schema=SCHEMA)


def log_to(folder: Path, queue_rows: int = 100_000, **limits: Any) -> LogWriter[int]:
    return LogWriter(RotatingParquet(folder, "rows", SCHEMA, os.getpid(), RotationPolicy(**limits)), encode, queue_rows)


def files_in(folder: Path, kind: str = "rows") -> list[Path]:
    return sorted(folder.glob(f"{kind}-*.parquet"))


def rows_in(folder: Path) -> list[int]:
    return [n for file in files_in(folder) for n in pq.read_table(file)["n"].to_pylist()]


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for what another thread or process does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


def adds_up(stats: LogStats) -> bool:
    return stats.recorded == stats.written + stats.pending + stats.queued + stats.lost + stats.invalid


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(log_writer, "_LONGEST_PAUSE_SECONDS", 0.05)


@given(bursts=st.lists(st.integers(0, 1_200), max_size=5), rotate_rows=st.integers(1, 800), group_rows=st.integers(1, 100))
@settings(max_examples=25, deadline=None)
def test_rows_come_back_in_order_and_each_is_written(bursts: list[int], rotate_rows: int, group_rows: int) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        log, n_rows = log_to(folder, rotate_rows=rotate_rows, group_rows=group_rows), 0
        for burst in bursts:
            log.record(range(n_rows, n_rows := n_rows + burst))
            assert adds_up(log.stats())
        log.close()
        stats = log.stats()
        assert rows_in(folder) == list(range(n_rows))
        assert (stats.recorded, stats.written) == (n_rows, n_rows)
        assert stats.files == len(files_in(folder)) and adds_up(stats)
        # A file is full at rotate_rows, give or take the batch that filled it.
        assert all(pq.read_metadata(file).num_rows < rotate_rows + 500 for file in files_in(folder))
        assert [path for path in folder.iterdir() if path.name.startswith(".")] == []
    finally:
        shutil.rmtree(folder)


def test_a_log_without_rows_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    log_to(tmp_path / "log").close()
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_files_go_and_are_counted(tmp_path: Path) -> None:
    (tmp_path / "rows-20200101T000000.000000Z-other-1-1.parquet").write_bytes(b"x")
    (tmp_path / "others-1.parquet").write_bytes(b"x")
    log = log_to(tmp_path, rotate_rows=1, max_files=3)
    for number in range(6):
        log.record([number])
        log.write()
        assert log.stats().files == number + 1
    log.close()
    assert rows_in(tmp_path) == [3, 4, 5]
    assert log.stats().removed_files == 4
    assert (tmp_path / "others-1.parquet").exists()
    n_bytes = files_in(tmp_path)[0].stat().st_size
    log = log_to(tmp_path, max_mb=2.5 * n_bytes / 1e6)
    log.record([6])
    log.close()
    assert rows_in(tmp_path) == [5, 6]


_WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_writer_process import log_to
log, number = log_to(Path(sys.argv[1]), rotate_rows=3000, group_rows=100), 0
while True:
    log.record([number])
    number += 1
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
    finally:
        # Stopped before it is killed: a draft is there most of the time, but not all of it.
        for attempt in range(100):
            process.send_signal(signal.SIGSTOP)
            if any(draft.stat().st_size > 10_000 for draft in drafts()):
                break
            process.send_signal(signal.SIGCONT)
            time.sleep(0.003 * (attempt % 7))
        process.send_signal(signal.SIGKILL)
        process.wait()
    monkeypatch.setattr(rotating_parquet, "_YOUNG_SECONDS", -1)
    numbers = rows_in(tmp_path)
    assert numbers == list(range(len(numbers))) and len(numbers) >= 9_000
    assert len(drafts()) == 1
    log = log_to(tmp_path)
    log.record([-1])
    log.close()
    assert drafts() == []
    assert rows_in(tmp_path) == [*numbers, -1]


def test_the_draft_of_a_writer_that_lives_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotating_parquet, "_YOUNG_SECONDS", -1)
    one, other = (RotatingParquet(tmp_path, "rows", SCHEMA, worker, RotationPolicy(group_rows=1)) for worker in (1, 2))
    one.append([encode([1])])
    other.append([encode([2])])
    other.rotate()
    one.append([encode([3])])
    one.rotate()
    assert sorted(rows_in(tmp_path)) == [1, 2, 3]


@pytest.mark.usefixtures("short_pauses")
def test_a_full_disk_costs_rows_that_are_counted_and_the_log_recovers_by_itself(tmp_path: Path) -> None:
    log = log_to(tmp_path, rotate_rows=1_000, group_rows=100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        log.record(range(1_000))
        until(lambda: log.write() or (log.stats().queued == 0 and log.stats().lost > 0))  # type: ignore[func-returns-value]
        assert files_in(tmp_path) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.record(range(1_000, 2_000))
    log.close()
    stats = log.stats()
    assert stats.write_errors > 0 and stats.lost > 0 and stats.pending == 0
    assert adds_up(stats)
    assert len(rows_in(tmp_path)) == stats.written and set(range(1_000, 2_000)) <= set(rows_in(tmp_path))
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_disk_that_refuses_is_asked_again_after_a_pause_and_meanwhile_rows_wait_up_to_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    folder = tmp_path / "log"
    folder.write_text("in the way")
    log = log_to(folder, queue_rows=20, rotate_rows=10, group_rows=10)
    for pause in (0.5, 1, 2, 4, 8, 16, 30, 30):
        lost = log.stats().lost
        log.record(range(10))
        log.write()
        assert log.stats().lost == lost + 10 and log.has_room
        log.record(range(10))
        assert log.has_room
        log.record(range(10))
        clock[0] += 0.99 * pause
        log.write()
        assert (log.stats().queued, log.stats().lost, log.has_room) == (20, lost + 10, False)
        clock[0] += 0.01 * pause + 1e-6
        log._queue.clear()
    folder.unlink()
    log.record([10])
    log.close()
    assert rows_in(folder) == [10]
    assert (log.stats().written, log.stats().lost, log.stats().write_errors) == (1, 80, 8)


def test_closing_while_the_disk_refuses_ends_and_counts(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.write_text("in the way")
    log = log_to(folder)
    log.record(range(1_000))
    log.record(range(1_000))
    log.close()
    stats = log.stats()
    assert (stats.written, stats.lost, stats.pending, stats.queued) == (0, 2_000, 0, 0)


@pytest.mark.parametrize("name", ["rotate_rows", "rotate_seconds", "group_rows", "max_files", "max_mb"])
def test_bounds_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} of a log is 0"):
        RotationPolicy(**{name: 0})


def exposure(request_id: str = "r", **changed: Any) -> Exposure:
    values = {"user_id": 1, "snapshot_id": "s", "model_version": "7", "source": "ranker", "degraded": None}
    return Exposure(**{"request_id": request_id, "shown_at": NOON, "item_ids": [10], "scores": [0.5], **values, **changed})


def click(number: int = 1) -> FeedbackEvent:
    return FeedbackEvent("r", number, 10, NOON, "click")


def requests_in(folder: Path) -> list[str]:
    return [name for file in files_in(folder, EXPOSURES) for name in pq.read_table(file)["request_id"].to_pylist()]


class Writing:
    """``write_logs`` in a thread, with the sending end of its pipe."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        receiver, self.pipe = Pipe(duplex=False)
        self.logs = {kind: open_log(kind, folder, IDS, 1, RotationPolicy(**limits)) for kind in LOG_KINDS}
        self.thread = threading.Thread(target=write_logs, args=(receiver, self.logs, folder.with_suffix(".json")))
        self.thread.start()

    def send(self, *rows: Exposure | FeedbackEvent) -> None:
        kind = EXPOSURES if isinstance(rows[0], Exposure) else FEEDBACK
        self.pipe.send_bytes(LOG_KINDS[kind].tag + msgspec.msgpack.encode(rows))

    def close(self) -> None:
        self.pipe.close()
        self.thread.join(20)
        assert not self.thread.is_alive()


def test_a_file_is_closed_when_it_is_old_though_nothing_more_comes(tmp_path: Path) -> None:
    writing = Writing(tmp_path / "log", rotate_seconds=0.2)
    writing.send(exposure("a"))
    until(lambda: requests_in(tmp_path / "log") == ["a"])
    writing.send(exposure("b"), exposure("c"))
    until(lambda: len(files_in(tmp_path / "log", EXPOSURES)) == 2)
    writing.close()
    assert requests_in(tmp_path / "log") == ["a", "b", "c"]


def test_a_pipe_that_closes_during_a_pause_ends_the_process_at_once(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("in the way")
    writing = Writing(tmp_path / "log", group_rows=1)
    writing.send(exposure("a"), exposure("b"))
    until(lambda: writing.logs[EXPOSURES].stats().write_errors == 1)
    writing.send(exposure("c"))
    writing.send(click())
    begun = time.monotonic()
    writing.close()
    assert time.monotonic() - begun < 5
    assert writing.logs[EXPOSURES].stats().lost == 3 and writing.logs[FEEDBACK].stats().lost == 1


def test_a_message_that_was_cut_short_ends_the_process_with_all_before_it_written(tmp_path: Path) -> None:
    writing = Writing(tmp_path / "log")
    writing.send(exposure("a"))
    os.write(writing.pipe.fileno(), b"\0\0\1\0half")
    writing.close()
    assert requests_in(tmp_path / "log") == ["a"]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[LogWriterClient]:
    log = LogWriterClient(tmp_path / "log", tmp_path / "stats.json", IDS, max_mb=100, queue_rows=100)
    yield log
    assert log.close(60)


def test_both_logs_are_written_when_the_client_closes(client: LogWriterClient, tmp_path: Path) -> None:
    assert all(client.log_exposure(exposure(str(number))) for number in range(50)) and client.log_feedback(click())
    assert client.close(60)
    assert requests_in(tmp_path / "log") == [str(number) for number in range(50)]
    counts = client.counts()
    assert (counts[EXPOSURES]["recorded"], counts[EXPOSURES]["written"], counts[EXPOSURES]["dropped"]) == (50, 50, 0)
    assert (counts[FEEDBACK]["recorded"], counts[FEEDBACK]["written"], counts[FEEDBACK]["files"]) == (1, 1, 1)


def test_while_the_process_does_not_read_rows_past_the_bound_are_dropped_at_once_and_counted(
    client: LogWriterClient, tmp_path: Path
) -> None:
    until(lambda: client.counts() != {})
    os.kill(client._process.pid, signal.SIGSTOP)
    try:
        taken, slowest = 0, 0.0
        long = exposure(attributes={"text": "x" * 10_000})
        while True:
            begun = time.perf_counter()
            was_taken = client.log_exposure(long._replace(request_id=str(taken)))
            slowest = max(slowest, time.perf_counter() - begun)
            if not was_taken:
                break
            taken += 1
            time.sleep(0.001)
        assert not client.log_exposure(long) and client.log_feedback(click())  # a full log leaves the other its room
    finally:
        os.kill(client._process.pid, signal.SIGCONT)
    assert slowest < 0.2 and taken >= 100
    assert client.close(60)
    assert requests_in(tmp_path / "log") == [str(number) for number in range(taken)]
    counts = client.counts()
    assert (counts[EXPOSURES]["written"], counts[EXPOSURES]["dropped"], counts[FEEDBACK]["written"]) == (taken, 2, 1)


@pytest.mark.parametrize(
    "changed",
    [
        {"user_id": 2**70},
        {"attributes": {"n": -(2**70)}},
        {"device": "\ud800"},
        {"shown_at": "noon"},
        {"scores": [1.0, 2.0]},
        {"attributes": 3},
    ],
    ids=str,
)
def test_a_row_that_cannot_be_is_counted_and_costs_no_other(client: LogWriterClient, tmp_path: Path, changed: dict[str, Any]) -> None:
    assert client.log_exposure(exposure("a")) and client.log_exposure(exposure("x", **changed)) and client.log_exposure(exposure("b"))
    assert client.close(60)
    assert requests_in(tmp_path / "log") == ["a", "b"]
    counts = client.counts()[EXPOSURES]
    assert (counts["recorded"], counts["written"], counts["invalid"], counts["lost"]) == (3, 2, 1, 0)


def test_a_process_that_was_killed_is_started_again_and_costs_the_rows_that_it_had(client: LogWriterClient, tmp_path: Path) -> None:
    until(lambda: client.counts() != {})
    before = client._process
    before.kill()
    before.wait()
    assert client.log_exposure(exposure("a"))
    until(lambda: client._process is not before)
    assert client.log_exposure(exposure("b"))
    assert client.close(60)
    assert requests_in(tmp_path / "log") == ["b"]
    assert (client.counts()[EXPOSURES]["written"], client.counts()[EXPOSURES]["lost"]) == (1, 1)


def test_a_process_that_cannot_be_started_again_at_once_is_started_with_later_rows(
    client: LogWriterClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: client.counts() != {})
    start, before = client._start, client._process

    def refuse() -> Any:
        monkeypatch.setattr(client, "_start", start)
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(client, "_start", refuse)
    before.kill()
    before.wait()
    assert client.log_exposure(exposure("a"))
    until(lambda: client._start == start)
    assert client.log_exposure(exposure("b"))
    until(lambda: client._process is not before)
    assert client.log_exposure(exposure("c"))
    assert client.close(60)
    assert requests_in(tmp_path / "log") == ["c"] and client.counts()[EXPOSURES]["lost"] == 2


def test_a_writer_without_room_ends_when_its_worker_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = [7, 7, 1]
    monkeypatch.setattr(writer_process.os, "getppid", lambda: parents.pop(0) if len(parents) > 1 else parents[0])
    monkeypatch.setattr(LogWriter, "has_room", False)
    writing = Writing(tmp_path / "log")
    writing.thread.join(20)
    assert not writing.thread.is_alive()


_WORKER = """
import datetime as dt, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_writer_process import IDS, LogWriterClient, exposure
log = LogWriterClient(Path(sys.argv[1]) / "log", Path(sys.argv[1]) / "stats.json", IDS, 100)
before = set(sys.modules)
log.log_exposure(exposure(attributes={"n": 1}))
print(*(set(sys.modules) - before))
time.sleep(0.5)
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_first_row_loads_no_module_and_outlives_a_worker_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WORKER, str(tmp_path), str(Path(__file__).parent)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (killed.returncode, killed.stdout.split()) == (-signal.SIGKILL, []), killed.stderr
    until(lambda: requests_in(tmp_path / "log") == ["r"])
