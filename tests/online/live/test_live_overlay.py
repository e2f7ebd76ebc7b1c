"""An overlay: what is written is read back by other processes, the newest batch wins, and damage costs freshness only."""

import datetime as dt
import signal
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from recsys_batch.online.snapshot.live_overlay import (
    LiveOverlay,
    LiveReader,
    OverlayDamaged,
    decode_live_record,
    open_overlay,
    remove_overlay,
)
from recsys_batch.online.snapshot.user_record import LiveOrigin
from tests.online.live.overlay_values import WRITTEN, live_value


def codes_in(folder: Path, key: bytes) -> list[int] | None:
    reader = LiveReader(folder)
    record = reader.get(key)
    reader.close()
    return None if record is None else record.codes.tolist()


def write(folder: Path, batch_id: int, records: dict[bytes, list[int]], source: str = "table") -> None:
    overlay = open_overlay(folder, source)
    overlay.add([(key, live_value(batch_id, codes)) for key, codes in records.items()], batch_id)
    overlay.close()


def write_elsewhere(code: str, *arguments: str) -> int:
    """Run code in a process of its own; its exit code."""
    imports = "import sys, os\nfrom recsys_batch.online.snapshot import live_overlay\nfrom tests.online.live.test_live_overlay import *\n"
    return subprocess.run([sys.executable, "-c", imports + code, *arguments], cwd=Path(__file__).parents[3], check=False).returncode


@pytest.mark.parametrize("through", [None, WRITTEN, dt.datetime(1969, 12, 31, tzinfo=dt.UTC)])
def test_a_live_record_reads_back_with_where_it_is_from(through: dt.datetime | None) -> None:
    record = decode_live_record(live_value(41, [5, 3], through))
    assert record.live == LiveOrigin(41, WRITTEN, through)
    assert (record.codes.tolist(), record.top_places.tolist(), record.n_events) == ([5, 3], [0, 1], 3)


def test_a_reader_finds_an_overlay_that_comes_later_and_reads_a_deleted_one_until_there_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    reader = LiveReader(folder)
    assert reader.get(b"user") is None and len(reader) == 0
    assert write_elsewhere("write(Path(sys.argv[1]), 1, {b'user': [1], b'other': [7]})", str(folder)) == 0
    reader.poll()
    found = reader.get(b"user")
    assert found is not None and found.codes.tolist() == [1] and len(reader) == 2
    remove_overlay(folder)
    reader.poll()
    assert reader.get(b"user") is not None
    assert write_elsewhere("write(Path(sys.argv[1]), 2, {b'user': [2]})", str(folder)) == 0
    reader.poll()
    found = reader.get(b"user")
    assert found is not None and found.codes.tolist() == [2] and reader.get(b"other") is None
    reader.close()


def test_an_overlay_grows_by_need_while_others_map_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write(folder, 1, {b"user": [1]})
    reader = LiveReader(folder)
    before = reader.get(b"user")
    code = "write(Path(sys.argv[1]), 2, {b'%06d' % n: [n] * 500 for n in range(10_000)})"
    assert write_elsewhere(code, str(folder)) == 0
    assert (folder / "data.mdb").stat().st_size > 40 * 2**20
    for n in (0, 5_000, 9_999):
        record = reader.get(b"%06d" % n)
        assert record is not None and record.codes.tolist() == [n] * 500
    assert before is not None and before.codes.tolist() == [1] and len(reader) == 10_001
    reader.close()


def test_a_writer_that_is_killed_within_a_batch_leaves_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write(folder, 1, {b"user": [1]})
    killed = "live_overlay.json.dumps = lambda _: os.kill(os.getpid(), 9)\nwrite(Path(sys.argv[1]), 2, {b'user': [2]})"
    assert write_elsewhere(killed, str(folder)) == -signal.SIGKILL
    overlay = open_overlay(folder, "table")
    assert overlay.version == 1
    overlay.close()
    assert codes_in(folder, b"user") == [1]
    write(folder, 2, {b"user": [2]})
    assert codes_in(folder, b"user") == [2]


@pytest.mark.parametrize("harm", ["garbage", "cut short", "empty"])
def test_a_damaged_overlay_is_refused_by_its_writer_and_its_readers_and_made_anew(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "run"
    write(folder, 1, {b"%d" % n: [n] * 100 for n in range(500)})
    data = folder / "data.mdb"
    content = data.read_bytes()
    data.write_bytes({"garbage": b"\xff" * len(content), "cut short": content[: len(content) // 2], "empty": b""}[harm])
    with pytest.raises(OverlayDamaged):
        LiveOverlay(folder, "table")
    assert codes_in(folder, b"7") is None
    write(folder, 1, {b"7": [3]})
    assert codes_in(folder, b"7") == [3]


def test_a_reader_that_finds_a_damaged_record_gives_up_removes_the_overlay_and_takes_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write(folder, 1, {b"good": [1]})
    with lmdb.open(str(folder)) as env, env.begin(write=True) as txn:
        txn.put(b"bad", b"\x00" * 30)
    reader = LiveReader(folder)
    assert reader.get(b"good") is not None
    assert reader.get(b"bad") is None and reader.get(b"good") is None and not folder.exists()
    assert write_elsewhere("write(Path(sys.argv[1]), 1, {b'good': [2]})", str(folder)) == 0
    reader.poll()
    found = reader.get(b"good")
    assert found is not None and found.codes.tolist() == [2]
    reader.close()
