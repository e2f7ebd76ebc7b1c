"""A log never keeps a request waiting, never fails one, and counts every row that came to it."""

import datetime as dt
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK
from recsys_batch.dataset.log_rows import Exposure, FeedbackEvent, decode_rows
from recsys_batch.dataset.log_segments import read_frames
from recsys_batch.online.exposure_log import buffered_log
from recsys_batch.online.exposure_log.buffered_log import BufferedLog, LogStats, RowLog
from recsys_batch.online.exposure_log.segment_writer import SegmentWriter

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def exposure(request_id: str = "r", **changed: Any) -> Exposure:
    values = {"user_id": 1, "snapshot_id": "s", "model_version": "7", "source": "ranker", "degraded": None}
    return Exposure(**{"request_id": request_id, "shown_at": NOON, "item_ids": [10], "scores": [0.5], **values, **changed})


def click(number: int = 1) -> FeedbackEvent:
    return FeedbackEvent("r", number, 10, NOON, "click")


def rows_in(folder: Path, kind: str = EXPOSURES) -> list[Any]:
    arrays = [array for file in sorted(folder.glob(f"{kind}-*.segment")) for array in read_frames(file.read_bytes())[0]]
    return [row for array in arrays for row in decode_rows(array, kind)[0]]


def requests_in(folder: Path) -> list[str]:
    return [row.request_id for row in rows_in(folder)]


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for what another thread or process does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


def adds_up(stats: LogStats) -> bool:
    return stats.recorded == stats.written + stats.waiting + stats.full + stats.invalid + stats.lost


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BufferedLog]:
    log = BufferedLog(tmp_path / "log", max_mb=100, queue_rows=100)
    yield log
    assert log.close(20)


def row_log(folder: Path, queue_rows: int = 20) -> RowLog:
    return RowLog(SegmentWriter(folder, EXPOSURES, 1), queue_rows)


def test_rows_are_in_files_moments_later_without_any_closing(log: BufferedLog, tmp_path: Path) -> None:
    for number in range(50):
        log.log_exposure(exposure(str(number)))
    assert log.log_feedback([click(1), click(2)]) == 2
    until(lambda: len(rows_in(tmp_path / "log")) == 50 and len(rows_in(tmp_path / "log", FEEDBACK)) == 2)
    assert requests_in(tmp_path / "log") == [str(number) for number in range(50)]
    assert log.close(20)
    stats = log.stats()
    assert (stats[EXPOSURES].recorded, stats[EXPOSURES].written, stats[FEEDBACK].written) == (50, 50, 2)
    assert all(map(adds_up, stats.values()))


def test_while_the_disk_does_not_answer_rows_past_the_bound_are_refused_at_once_and_counted(
    log: BufferedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, append = threading.Event(), SegmentWriter.append

    def hang(writer: SegmentWriter, rows: list[bytes]) -> None:
        let_go.wait(20)
        append(writer, rows)

    monkeypatch.setattr(SegmentWriter, "append", hang)
    log.log_exposure(exposure("0"))
    until(lambda: not log._exposures._queue)
    slowest = 0.0
    for number in range(1, 111):
        begun = time.perf_counter()
        log.log_exposure(exposure(str(number)))
        slowest = max(slowest, time.perf_counter() - begun)
    stats = log.stats()[EXPOSURES]
    assert (stats.recorded, stats.written, stats.waiting, stats.full) == (111, 0, 101, 10) and slowest < 0.5
    assert log.log_feedback([click()]) == 1  # a full log leaves the other its room
    let_go.set()
    assert log.close(20)
    assert requests_in(tmp_path / "log") == [str(number) for number in range(101)]
    assert all(map(adds_up, log.stats().values())) and log.stats()[FEEDBACK].written == 1


def test_more_events_than_may_wait_are_taken_together_by_an_empty_log(log: BufferedLog, tmp_path: Path) -> None:
    assert log.log_feedback([click(number) for number in range(150)]) == 150
    assert log.close(20)
    assert len(rows_in(tmp_path / "log", FEEDBACK)) == log.stats()[FEEDBACK].written == 150


def test_events_are_taken_together_or_not_at_all(log: BufferedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowLog, "flush", lambda _: None)
    assert log.log_feedback([click(number) for number in range(60)]) == 60
    assert log.log_feedback([click(number) for number in range(50)]) is None
    assert log.log_feedback([click(number) for number in range(60, 100)]) == 40
    assert log.close(20)
    assert [row.user_id for row in rows_in(tmp_path / "log", FEEDBACK)] == list(range(100))
    stats = log.stats()[FEEDBACK]
    assert (stats.recorded, stats.full, stats.written) == (150, 50, 100)


UNSPEAKABLE = object()
ROWS: dict[str, tuple[dict[str, Any], bool]] = {
    "a user id beyond 64 bits": ({"user_id": 2**70}, True),
    "a context value beyond 64 bits": ({"attributes": {"n": -(2**70)}}, True),
    "half a character": ({"device": "\ud800"}, True),
    "a value that is no data": ({"attributes": {"n": UNSPEAKABLE}}, False),
    "a user id of more digits than Python writes": ({"user_id": 10**5_000}, False),
}


@pytest.mark.parametrize(("changed", "is_kept"), ROWS.values(), ids=ROWS.keys())
def test_no_row_raises_and_none_costs_another(log: BufferedLog, tmp_path: Path, changed: dict[str, Any], is_kept: bool) -> None:
    for row in (exposure("a"), exposure("x", **changed), exposure("b")):
        log.log_exposure(row)
    assert log.close(20)
    assert requests_in(tmp_path / "log") == (["a", "x", "b"] if is_kept else ["a", "b"])
    stats = log.stats()[EXPOSURES]
    assert (stats.recorded, stats.written, stats.invalid) == (3, 2 + is_kept, 1 - is_kept) and adds_up(stats)


def test_a_disk_that_refuses_is_asked_again_after_a_pause_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    folder = tmp_path / "log"
    folder.write_text("in the way")
    log = row_log(folder)
    for number in range(20):
        assert log.record(exposure(str(number)))
    assert not log.record(exposure("one too many"))
    for n_errors, pause in enumerate((0.5, 1, 2, 4, 8, 16, 30, 30), start=1):
        log.flush()
        assert log.stats().write_errors == n_errors
        clock[0] += 0.99 * pause
        log.flush()
        assert log.stats().write_errors == n_errors and adds_up(log.stats())
        clock[0] += 0.01 * pause + 1e-6
    folder.unlink()
    log.flush()
    assert requests_in(folder) == [str(number) for number in range(20)]
    stats = log.stats()
    assert (stats.recorded, stats.written, stats.full, stats.lost, stats.waiting) == (21, 20, 1, 0, 0)
    assert log.record(exposure("later"))
    log.flush()
    assert log.stats().written == 21


def test_closing_while_the_disk_refuses_ends_and_counts(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.write_text("in the way")
    log = row_log(folder)
    for _ in range(5):
        log.record(exposure())
    log.close()
    assert (log.stats().written, log.stats().lost, log.stats().waiting) == (0, 5, 0) and adds_up(log.stats())


def test_the_thread_outlives_whatever_a_file_raises(log: BufferedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffered_log, "_FIRST_PAUSE_SECONDS", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(SegmentWriter, "append", lambda *_: 1 / 0)
        log.log_exposure(exposure("a"))
        until(lambda: log.stats()[EXPOSURES].write_errors > 0)
        assert log.stats()[EXPOSURES].waiting == 1
    until(lambda: requests_in(tmp_path / "log") == ["a"])


_WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_buffered_log import BufferedLog, EXPOSURES, exposure
log = BufferedLog(Path(sys.argv[1]), 100)
before = set(sys.modules)
log.log_exposure(exposure("0", attributes={"n": 1}))
number, loaded = 1, set(sys.modules) - before
while True:
    log.log_exposure(exposure(str(number)))
    number += 1
    if number % 100 == 0:
        stats = log.stats()[EXPOSURES]
        assert stats.recorded == stats.written + stats.waiting + stats.full
        print(stats.written, *loaded, flush=True)
"""


def test_every_row_that_was_counted_as_written_outlives_a_worker_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WORKER, str(tmp_path), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    until(lambda: len(requests_in(tmp_path)) > 1_000)
    process.send_signal(signal.SIGKILL)
    told = process.stdout.read().splitlines()
    process.wait()
    assert {len(line.split()) for line in told[:-1]} == {1}  # and the first row loaded no module
    logged = list(map(int, requests_in(tmp_path)))
    assert len(logged) >= int(told[-2]) > 0 and logged == sorted(set(logged))


def test_the_logs_load_neither_spark_nor_torch_nor_mlflow() -> None:
    code = "import sys, recsys_batch.online.exposure_log.buffered_log; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pyspark", "delta", "torch", "mlflow", "faiss", "pandas"} & set(loaded)
