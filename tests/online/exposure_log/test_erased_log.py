"""Log files lose an erased user: closed ones at once, one that a server appends to once it is closed, and one that was torn for good."""

import datetime as dt
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK
from recsys_batch.dataset.log_rows import Exposure, FeedbackEvent, decode_rows, encode_row
from recsys_batch.dataset.log_segments import read_frames
from recsys_batch.erasure import exposure_files
from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.erasure.exposure_files import erase_from_log_files, find_in_log_files
from recsys_batch.errors import UsageError
from recsys_batch.online.exposure_log.segment_writer import SegmentWriter

USERS, NOON = ErasedUsers(frozenset(["erase-me", "7"])), dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def shown(request_id: str, user_id: int | str) -> bytes:
    return encode_row(Exposure(request_id, NOON, user_id, "snap", "7", "ranker", None, ["i"], [1.0], [1.0], [1]))


def rows_in(folder: Path, kind: str = EXPOSURES) -> list[Any]:
    arrays = [array for path in sorted(folder.glob(f"{kind}-*.segment")) for array in read_frames(path.read_bytes())[0]]
    return [row for array in arrays for row in decode_rows(array, kind)[0]]


def requests_in(folder: Path) -> list[str]:
    return [row.request_id for row in rows_in(folder)]


@pytest.fixture(autouse=True)
def moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure_files, "_FLUSH_SECONDS", 0.05)
    monkeypatch.setattr(exposure_files, "_POLL_SECONDS", 0.02)


def test_closed_files_lose_the_rows_of_the_user_and_keep_their_names_and_times(tmp_path: Path) -> None:
    writer, feedback = SegmentWriter(tmp_path, EXPOSURES, 1), SegmentWriter(tmp_path, FEEDBACK, 1)
    writer.append([shown("a", "erase-me"), shown("b", "u1"), shown("c", 7)])
    writer.append([shown("d", "7")])
    writer.append([shown("e", 8)])
    writer.rotate()
    writer.append([shown("f", "erase-me")])
    writer.rotate()
    feedback.append([encode_row(FeedbackEvent(None, user, "i", NOON, "click")) for user in ("erase-me", "u1")])
    feedback.rotate()
    first, second = sorted(tmp_path.glob("exposures-*"))
    os.utime(first, (1_000, 2_000))
    assert sum(find_in_log_files(tmp_path, USERS).values()) == 5
    assert erase_from_log_files(tmp_path, USERS) == 0
    assert requests_in(tmp_path) == ["b", "e"] and [row.user_id for row in rows_in(tmp_path, FEEDBACK)] == ["u1"]
    assert first.stat().st_mtime == 2_000 and not second.exists()
    assert find_in_log_files(tmp_path, USERS) == {}
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_a_file_that_is_being_written_is_waited_for_where_it_has_the_user(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, EXPOSURES, 1)
    writer.append([shown("a", "u1")])
    assert erase_from_log_files(tmp_path, USERS, wait_seconds=30.0) == 0  # at once
    writer.append([shown("b", "erase-me")])
    assert erase_from_log_files(tmp_path, USERS, wait_seconds=0.0) == 1
    assert requests_in(tmp_path) == ["a", "b"]
    closing = threading.Timer(0.3, writer.rotate)
    closing.start()
    assert erase_from_log_files(tmp_path, USERS, wait_seconds=30.0) == 0
    closing.join()
    assert requests_in(tmp_path) == ["a"]


def test_rows_that_a_server_has_in_memory_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure_files, "_FLUSH_SECONDS", 0.6)
    writer = SegmentWriter(tmp_path, EXPOSURES, 1)
    writer.append([shown("a", "u1")])

    def append() -> None:
        writer.append([shown("b", "erase-me"), shown("c", "u1")])
        writer.rotate()

    appending = threading.Timer(0.3, append)
    appending.start()
    assert erase_from_log_files(tmp_path, USERS, wait_seconds=30.0) == 0
    appending.join()
    assert requests_in(tmp_path) == ["a", "c"]


def test_a_torn_end_goes_as_nobody_can_say_whose_it_is(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, EXPOSURES, 1)
    writer.append([shown("a", "u1")])
    writer.append([shown("b", "erase-me")])
    writer.rotate()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert erase_from_log_files(tmp_path, USERS) == 0
    assert read_frames(file.read_bytes())[1] == 0 and requests_in(tmp_path) == ["a"]


def test_a_file_that_is_no_segment_ends_the_erasure_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "exposures-1.segment").write_bytes(b"PAR1 erase-me")
    with pytest.raises(UsageError, match=r"exposures-1.segment cannot be read: it is no segment .* move it out of the log's folder"):
        find_in_log_files(tmp_path, USERS)


def test_what_a_dead_writer_of_an_older_release_left_is_removed_once_it_is_old_enough_to_be_its(tmp_path: Path) -> None:
    left, young = tmp_path / ".exposures-1.parquet", tmp_path / ".feedback-2.parquet"
    for path in (left, young):
        path.write_bytes(b"PAR1 erase-me")
    os.utime(left, (time.time() - 100, time.time() - 100))
    assert erase_from_log_files(tmp_path, USERS, wait_seconds=0.0) == 1
    assert [path.name for path in tmp_path.iterdir()] == [young.name]
