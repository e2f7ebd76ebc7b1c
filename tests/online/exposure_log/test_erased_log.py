"""Log files lose an erased user: whole ones at once, one that is being written once it is whole, and one whose writer died for good."""

import datetime as dt
import os
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from recsys_batch.online.exposure_log.log_rows import Exposure
from recsys_batch.online.exposure_log.log_writer import open_log
from recsys_batch.online.exposure_log.rotating_parquet import RotationPolicy

from recsys_batch.dataset.exposure_schema import EXPOSURES
from recsys_batch.erasure import exposure_files
from recsys_batch.erasure.erased_users import ErasedUsers
from recsys_batch.erasure.exposure_files import erase_from_log_files, find_in_log_files, list_drafts
from recsys_batch.schemas import IdTypes

IDS, USERS = IdTypes("STRING", "STRING"), ErasedUsers(frozenset(["erase-me"]))


def shown(request_id: str, user_id: str) -> Exposure:
    return Exposure(request_id, dt.datetime(2026, 3, 1, tzinfo=dt.UTC), user_id, "snap", "7", "ranker", None, ["i"], [1.0], [1.0], [1])


def requests_in(folder: Path) -> list[str]:
    return sorted(request for path in folder.glob("exposures-*.parquet") for request in pq.read_table(path)["request_id"].to_pylist())


def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(EXPOSURES, tmp_path, IDS, 1, RotationPolicy(group_rows=1))
    log.record([shown("whole", "erase-me"), shown("other", "u1")])
    log.close()
    log = open_log(EXPOSURES, tmp_path, IDS, 1, RotationPolicy(group_rows=1))
    log.record([shown("open", "erase-me"), shown("open too", "u1")])
    log.write()
    assert len(list(list_drafts(tmp_path))) == 1
    assert erase_from_log_files(tmp_path, USERS, wait_seconds=0.0) == 1
    assert requests_in(tmp_path) == ["other"]
    monkeypatch.setattr(exposure_files, "_ROTATION_SECONDS", 1.5)
    closing = threading.Timer(0.7, log.close)
    closing.start()
    assert erase_from_log_files(tmp_path, USERS, wait_seconds=30.0) == 0
    closing.join()
    assert requests_in(tmp_path) == ["open too", "other"] and find_in_log_files(tmp_path, USERS) == {}
    assert not any(b"erase-me" in path.read_bytes() for path in tmp_path.iterdir())


def test_what_a_dead_writer_left_is_removed_once_it_is_old_enough_to_be_its(tmp_path: Path) -> None:
    left, young = tmp_path / ".exposures-1.parquet", tmp_path / ".feedback-2.parquet"
    for path in (left, young):
        path.write_bytes(b"PAR1 erase-me")
    os.utime(left, (time.time() - 100, time.time() - 100))
    assert erase_from_log_files(tmp_path, USERS, wait_seconds=0.0) == 1
    assert [path.name for path in tmp_path.iterdir()] == [young.name]


def test_rows_that_a_server_has_in_memory_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure_files, "_ROTATION_SECONDS", 1.5)
    log = open_log(EXPOSURES, tmp_path, IDS, 1)
    log.record([shown("first", "u1")])
    log.close()
    log = open_log(EXPOSURES, tmp_path, IDS, 1)
    log.record([shown("in memory", "erase-me"), shown("in memory, too", "u1")])
    log.write()
    assert list(list_drafts(tmp_path)) == []
    closing = threading.Timer(0.7, log.close)
    closing.start()
    assert erase_from_log_files(tmp_path, USERS, wait_seconds=30.0) == 0
    closing.join()
    assert requests_in(tmp_path) == ["first", "in memory, too"]
