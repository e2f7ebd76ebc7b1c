"""Files of a log hold every row that was appended, stay within their bounds, and survive disks that refuse and folders that go."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_batch.dataset.log_segments import read_frames
from recsys_batch.errors import UsageError
from recsys_batch.online.exposure_log import segment_writer
from recsys_batch.online.exposure_log.segment_writer import RotationPolicy, SegmentWriter
from recsys_batch.storage.file_lock import acquire_flock


def writer_to(folder: Path, **limits: Any) -> SegmentWriter:
    return SegmentWriter(folder, "rows", os.getpid(), RotationPolicy(**limits))


def encoded(*numbers: int) -> list[bytes]:
    return [msgspec.msgpack.encode(number) for number in numbers]


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("rows-*.segment"))


def rows_in(*folders: Path) -> list[int]:
    contents = [file.read_bytes() for folder in folders for file in files_in(folder)]
    return [n for content in contents for array in read_frames(content)[0] for n in msgspec.msgpack.decode(array)]


def torn_in(folder: Path) -> int:
    return sum(read_frames(file.read_bytes())[1] for file in files_in(folder))


@contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@given(bursts=st.lists(st.integers(1, 40), max_size=8), rotate_rows=st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_rows_are_there_in_order_as_soon_as_they_are_appended(bursts: list[int], rotate_rows: int) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        writer, n_rows = writer_to(folder, rotate_rows=rotate_rows), 0
        for burst in bursts:
            writer.append(encoded(*range(n_rows, n_rows := n_rows + burst)))
            assert rows_in(folder) == list(range(n_rows)) and writer.written == n_rows
        writer.rotate()
        assert writer.files == len(files_in(folder)) and torn_in(folder) == 0
    finally:
        shutil.rmtree(folder)


def test_a_writer_without_rows_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    writer_to(tmp_path / "log").rotate()
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_closed_when_it_is_old_though_nothing_more_comes(tmp_path: Path) -> None:
    clock = [100.0]
    writer = SegmentWriter(tmp_path, "rows", 1, RotationPolicy(rotate_seconds=60), clock=lambda: clock[0])
    writer.append(encoded(1))
    for seconds, is_locked in ((59.0, True), (2.0, False)):
        clock[0] += seconds
        writer.tick()
        with files_in(tmp_path)[0].open("rb") as file:
            assert acquire_flock(file.fileno(), shared=True) is not is_locked
    writer.append(encoded(2))
    assert len(files_in(tmp_path)) == 2 and rows_in(tmp_path) == [1, 2]


def test_the_oldest_files_of_this_and_older_releases_go_and_are_counted(tmp_path: Path) -> None:
    for name in ("rows-20200101T000000.000000Z-other-1-1.parquet", "rows-20200102T000000.000000Z-other-1-1.segment", "others-1.parquet"):
        (tmp_path / name).write_bytes(b"x")
    writer = writer_to(tmp_path, rotate_rows=1, max_files=3)
    for number in range(6):
        writer.append(encoded(number))
    assert rows_in(tmp_path) == [3, 4, 5] and len(list(tmp_path.iterdir())) == 4
    assert (writer.removed, writer.files) == (5, 6)
    n_bytes = files_in(tmp_path)[0].stat().st_size
    writer = writer_to(tmp_path, max_mb=2.5 * n_bytes / 1e6)
    writer.append(encoded(6))
    assert rows_in(tmp_path) == [5, 6]


def test_a_file_is_closed_before_it_is_much_of_what_the_folder_may_hold(tmp_path: Path) -> None:
    writer = writer_to(tmp_path, max_mb=0.1)
    rows = [msgspec.msgpack.encode(os.urandom(1_000)) for _ in range(300)]
    for row in rows:
        writer.append([row])
    writer.rotate()
    sizes = [file.stat().st_size for file in files_in(tmp_path)]
    assert max(sizes) < 15_000 and 50_000 < sum(sizes) <= 100_000


def test_a_full_disk_refuses_rows_whole_and_takes_them_when_there_is_room(tmp_path: Path) -> None:
    writer = writer_to(tmp_path)
    writer.append(encoded(1))
    n_bytes = files_in(tmp_path)[0].stat().st_size
    big = [msgspec.msgpack.encode(os.urandom(5_000))]
    with file_size_limit(1_000):
        for _ in range(3):
            with pytest.raises(OSError):
                writer.append(big)
            writer.abandon()
        assert [file.stat().st_size for file in files_in(tmp_path)] == [n_bytes]  # what did not fit was taken back
    writer.append(encoded(2))
    assert rows_in(tmp_path) == [1, 2] and torn_in(tmp_path) == 0
    assert (writer.written, writer.files) == (2, 2)


def test_what_cannot_be_taken_back_either_is_torn_and_the_next_rows_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_to(tmp_path)
    writer.append(encoded(1))

    def refuse(*_: int) -> None:
        raise OSError("no")

    monkeypatch.setattr(segment_writer.os, "ftruncate", refuse)
    with file_size_limit(1_000), pytest.raises(OSError):
        writer.append([msgspec.msgpack.encode(os.urandom(5_000))])
    writer.abandon()
    writer.append(encoded(2))
    assert rows_in(tmp_path) == [1, 2] and torn_in(tmp_path) > 0


@pytest.mark.parametrize("gone", ["the file", "the folder"])
def test_rows_whose_file_was_removed_meanwhile_go_to_a_new_one(tmp_path: Path, gone: str) -> None:
    folder = tmp_path / "log"
    writer = writer_to(folder)
    writer.append(encoded(1))
    shutil.rmtree(folder) if gone == "the folder" else files_in(folder)[0].unlink()
    writer.append(encoded(2))
    writer.append(encoded(3))
    assert rows_in(folder) == [2, 3]


def test_a_folder_that_was_moved_away_takes_its_rows_along_and_the_next_file_is_in_a_new_one(tmp_path: Path) -> None:
    writer = writer_to(tmp_path / "log")
    writer.append(encoded(1))
    (tmp_path / "log").rename(tmp_path / "moved")
    writer.append(encoded(2))
    writer.rotate()
    writer.append(encoded(3))
    assert rows_in(tmp_path / "moved", tmp_path / "log") == [1, 2, 3]


_WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_segment_writer import encoded, writer_to
writer, number = writer_to(Path(sys.argv[1]), rotate_rows=3000), 0
while True:
    writer.append(encoded(number))
    print(number, flush=True)
    number += 1
"""


def test_a_writer_that_is_killed_leaves_every_row_that_it_appended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITER, str(tmp_path), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(4_000):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    n_told = 4_000 + process.stdout.read().count("\n")
    process.wait()
    numbers = rows_in(tmp_path)
    assert numbers == list(range(len(numbers))) and len(numbers) >= n_told and len(files_in(tmp_path)) >= 2
    for file in files_in(tmp_path):
        with file.open("rb") as opened:
            assert acquire_flock(opened.fileno())  # it is nobody's any more


@pytest.mark.parametrize("name", ["rotate_rows", "rotate_seconds", "max_files", "max_mb"])
def test_bounds_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} of a log is 0"):
        RotationPolicy(**{name: 0})


def test_a_file_that_another_process_has_locked_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_to(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(segment_writer, "acquire_flock", lambda _: False)
        with pytest.raises(OSError, match="locked by another process"):
            writer.append(encoded(1))
    writer.append(encoded(2))
    assert rows_in(tmp_path) == [2] and len(files_in(tmp_path)) == 1
