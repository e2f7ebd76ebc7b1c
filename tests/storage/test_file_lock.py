"""A lock is held by one, tells who holds it, and dies with its holder."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from recsys_batch.errors import EXIT_MISSING, Busy
from recsys_batch.storage.file_lock import file_lock, lock_file

HOLDER = """
import sys, time
from pathlib import Path
from recsys_batch.storage.file_lock import file_lock
with file_lock(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "it"
    with file_lock(path, "a night of 2026-03-01"):
        holder = rf"a night of 2026-03-01 is being computed already by process {os.getpid()} on "
        with pytest.raises(Busy, match=holder) as refused, file_lock(path, "a night of 2026-03-01"):
            pass
        assert refused.value.exit_code == EXIT_MISSING
    with file_lock(path, "again"):
        pass


def test_a_killed_holder_leaves_it_free(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "it")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"process {process.pid}"), file_lock(tmp_path / "it", "it"):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with file_lock(tmp_path / "it", "it"):
        pass


def test_a_holders_note_that_was_cut_short_does_not_matter(tmp_path: Path) -> None:
    with file_lock(tmp_path / "it", "it"):
        (tmp_path / "it").write_text('{"host": "a', encoding="utf-8")
        with pytest.raises(Busy, match=r"it is being computed already: wait"), file_lock(tmp_path / "it", "it"):
            pass


def test_a_lock_is_waited_for_as_long_as_is_said(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "it")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        started = time.monotonic()
        with pytest.raises(Busy, match="it is being changed already"), file_lock(tmp_path / "it", "it", "is being changed", 0.3):
            pass
        assert time.monotonic() - started >= 0.3
        threading.Timer(0.3, process.kill).start()
        with file_lock(tmp_path / "it", "it", wait_seconds=20):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_lock_lies_beside_the_tables_or_for_a_store_under_state(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    assert lock_file("/mnt/recs", state, "current.lock") == Path("/mnt/recs/_artifacts/locks/current.lock")
    one = lock_file("s3a://bucket/recs", state, "current.lock")
    assert one.is_relative_to(tmp_path / "state" / "locks") and one.name == "current.lock"
    assert lock_file("s3a://bucket/recs/", state, "current.lock") == one
    assert lock_file("s3a://bucket/others", state, "current.lock") != one
