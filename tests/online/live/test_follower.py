"""The follower brings what topk_live has of a run to its overlay: each batch once, and what it says of itself is so."""

import datetime as dt
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from recsys_batch.config import Online
from recsys_batch.errors import InputMissing
from recsys_batch.online.live import follower as follower_module
from recsys_batch.online.live.batch_records import LiveRun
from recsys_batch.online.live.follower import Follower, run_follower
from recsys_batch.online.live.overlay_stores import LocalOverlays
from recsys_batch.online.runtime.process_marks import has_started
from recsys_batch.online.settings import LIVE_MARK, ServerSettings
from recsys_batch.online.snapshot.live_overlay import LiveReader, overlays_folder
from recsys_batch.online.snapshot.repository import set_current
from recsys_batch.online.snapshot.user_key import user_key
from recsys_batch.online.snapshot.user_record import UserRecord

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


class Followed:
    """A follower of a test's warehouse, and what a worker would read after its next look."""

    def __init__(self, warehouse: Path, snapshots: Path, state: Path) -> None:
        state.mkdir()
        (state / LIVE_MARK).touch()
        self.warehouse, self.snapshots, self.state = warehouse, snapshots, state
        self.handled: list[int] = []
        set_current(snapshots, "first")

    def follow(self) -> None:
        """One look by a process that was just started."""
        follower = Follower(str(self.warehouse), self.snapshots, self.state, LocalOverlays(overlays_folder(self.snapshots)))
        try:
            follower.poll()
        finally:
            follower.close()

    def record(self, user: int, run_id: str = "first") -> UserRecord | None:
        reader = LiveReader(overlays_folder(self.snapshots) / run_id)
        record = reader.get(user_key(user, "BIGINT") or b"")
        reader.close()
        return record

    def list_of(self, user: int, run_id: str = "first") -> list[int] | None:
        record = self.record(user, run_id)
        return None if record is None else record.codes[record.top_places].tolist()

    def overlays(self) -> list[str]:
        return sorted(path.name for path in overlays_folder(self.snapshots).iterdir())


@pytest.fixture
def followed(live_warehouse: Any, snapshots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Followed]:
    found = Followed(live_warehouse.folder, snapshots, tmp_path / "state")
    build = LiveRun.records

    def counted(run: LiveRun, batch: Any, written_at: dt.datetime) -> Any:
        found.handled.append(batch.version)
        return build(run, batch, written_at)

    monkeypatch.setattr(LiveRun, "records", counted)
    yield found


def test_a_batch_becomes_records_with_candidates_embedding_and_where_they_are_from(live_warehouse: Any, followed: Followed) -> None:
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    live_warehouse.refresh(4, {5: [40, 30, 20, 10], 7: [11, 12]}, through=NOON)
    live_warehouse.refresh(6, {9000: [50]})
    followed.follow()
    record = followed.record(5)
    assert record is not None and record.embedding is not None and record.live is not None
    assert record.codes.tolist() == [40, 30, 20, 10] and record.top_places.tolist() == [0, 1, 2] and record.n_events == 7
    assert [round(float(score), 3) for score in record.retrieval] == [1.0, 0.999, 0.998, 0.997]
    assert (record.live.batch_id, record.live.events_through) == (4, NOON)
    assert before < record.live.written_at < before + dt.timedelta(minutes=1)
    assert followed.list_of(7) == [11, 12] and followed.record(8) is None
    popular = followed.record(9000)
    assert popular is not None and popular.embedding is None and popular.live is not None
    assert popular.live.events_through is None


def test_of_all_batches_in_the_log_the_newest_wins_and_other_runs_are_passed_over(live_warehouse: Any, followed: Followed) -> None:
    for batch_id in range(1, 8):
        live_warehouse.refresh(batch_id, {5: [batch_id], batch_id: [9]})
    live_warehouse.refresh(99, {5: [77], 200: [77]}, run_id="second")
    followed.follow()
    assert followed.list_of(5) == [7] and followed.list_of(3) == [9] and followed.record(200) is None
    assert followed.handled == list(range(1, 8)) and followed.overlays() == ["first"]


def test_a_batch_that_comes_while_others_are_read_is_handled_once(
    live_warehouse: Any, followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    live_warehouse.refresh(1, {5: [1]})
    list_commits, late = follower_module._commits_since, iter([2])

    def list_late(*arguments: Any) -> Any:
        for batch_id in late:
            live_warehouse.refresh(batch_id, {6: [batch_id]})
        return list_commits(*arguments)

    monkeypatch.setattr(follower_module, "_commits_since", list_late)
    followed.follow()
    assert followed.handled == [1]
    followed.follow()
    assert followed.handled == [1, 2] and [followed.list_of(user) for user in (5, 6)] == [[1], [2]]


def test_a_follower_that_is_started_again_handles_only_what_is_new(
    live_warehouse: Any, followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, list_commits = [], follower_module._commits_since
    monkeypatch.setattr(
        follower_module,
        "_commits_since",
        lambda root, newest, version, since: (asked.append(version), list_commits(root, newest, version, since))[1],
    )
    live_warehouse.refresh(1, {5: [1]})
    followed.follow()
    live_warehouse.refresh(2, {6: [2]})
    live_warehouse.refresh(3, {7: [3]}, run_id="second")
    followed.follow()
    followed.follow()
    assert asked == [None, 1]  # version 3 is another run's, and known to be
    assert followed.handled == [1, 2] and [followed.list_of(user) for user in (5, 6)] == [[1], [2]]


def test_one_that_runs_adds_each_batch_as_it_comes(live_warehouse: Any, followed: Followed) -> None:
    follower = Follower(str(followed.warehouse), followed.snapshots, followed.state, LocalOverlays(overlays_folder(followed.snapshots)))
    follower.poll()
    live_warehouse.create_table()
    follower.poll()
    for batch_id in (1, 2, 3):
        live_warehouse.refresh(batch_id, {5: [batch_id]})
        follower.poll()
        assert followed.handled == list(range(1, batch_id + 1))
    follower.close()
    assert followed.list_of(5) == [3]


def test_the_mark_says_when_all_was_known_and_not_that_somebody_tried(live_warehouse: Any, followed: Followed) -> None:
    mark, long_ago = followed.state / LIVE_MARK, time.time() - 1000
    os.utime(mark, (long_ago, long_ago))
    shutil.move(followed.warehouse, followed.warehouse.with_name("elsewhere"))
    with pytest.raises(InputMissing, match=r"has no run first, which snapshot \S+first is of: set paths.warehouse"):
        followed.follow()
    assert mark.stat().st_mtime == pytest.approx(long_ago, abs=1)
    shutil.move(followed.warehouse.with_name("elsewhere"), followed.warehouse)
    followed.follow()  # no stream has begun: there is nothing to know
    assert time.time() - mark.stat().st_mtime < 60


def test_runs_of_current_and_canary_are_followed_and_one_that_a_worker_still_has_stays(live_warehouse: Any, followed: Followed) -> None:
    live_warehouse.refresh(1, {5: [1]})
    live_warehouse.refresh(2, {5: [2]}, run_id="second")
    (followed.snapshots / "ROUTES.json").write_text(json.dumps({"canary": "second", "weight": 0.5}))
    followed.follow()
    assert (followed.list_of(5, "first"), followed.list_of(5, "second")) == ([1], [2])
    set_current(followed.snapshots, "second")
    loaded = {"pid": os.getpid(), "current": "first", "canary": None, "shadow": None}
    (followed.state / "worker-1.json").write_text(json.dumps(loaded))
    followed.follow()
    assert followed.overlays() == ["first", "second"]
    (followed.state / "worker-1.json").write_text(json.dumps({**loaded, "current": "second"}))
    followed.follow()
    assert followed.overlays() == ["second"] and followed.list_of(5, "second") == [2]


def test_an_overlay_that_somebody_deletes_is_made_anew_by_the_next_look(live_warehouse: Any, followed: Followed) -> None:
    live_warehouse.refresh(1, {5: [1]})
    follower = Follower(str(followed.warehouse), followed.snapshots, followed.state, LocalOverlays(overlays_folder(followed.snapshots)))
    follower.poll()
    shutil.rmtree(overlays_folder(followed.snapshots) / "first")
    follower.poll()
    follower.close()
    assert followed.handled == [1, 1] and followed.list_of(5) == [1]


def test_a_batch_whose_files_are_gone_or_never_were_leaves_the_lists_before(
    live_warehouse: Any, followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    live_warehouse.refresh(1, {5: [1]})
    followed.follow()
    live_warehouse.refresh(2, {5: [2], 6: [2]})
    newest = max((followed.warehouse / "_artifacts" / "live" / "first" / "candidates").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.unlink()
    live_warehouse.refresh(3, {7: [3]})
    followed.follow()
    assert [followed.list_of(user) for user in (5, 6, 7)] == [[1], None, [3]]
    assert "live lists of batch 2 are gone" in caplog.text


def test_batches_of_a_stream_without_candidates_are_told(
    live_warehouse: Any, followed: Followed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    live_warehouse.refresh(1, {5: [1]})
    read = follower_module.read_batches

    def without_candidates(history: Any) -> Any:
        for batch in read(history):
            batch.files.pop("candidates")
            yield batch

    monkeypatch.setattr(follower_module, "read_batches", without_candidates)
    followed.follow()
    assert followed.record(5) is None and "run the stream with online.live = table" in caplog.text


def test_a_compaction_of_the_table_between_two_batches_adds_nothing(live_warehouse: Any, followed: Followed) -> None:
    for batch_id in (1, 2):
        live_warehouse.refresh(batch_id, {5: [batch_id]})
    DeltaTable(followed.warehouse / "topk_live").optimize.compact()
    live_warehouse.refresh(3, {6: [3]})
    followed.follow()
    assert followed.handled == [1, 2, 3] and followed.list_of(5) == [2]


def test_whatever_a_look_raises_the_next_one_is_by_a_new_follower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    stop, looks = threading.Event(), []

    class Failing:
        def __init__(self, *_: Any) -> None:
            self.is_closed = False

        def poll(self) -> None:
            assert not self.is_closed
            looks.append(self)
            if len(looks) == 1:
                raise ValueError("the table is odd")
            if len(looks) == 3:
                stop.set()

        def close(self) -> None:
            self.is_closed = True
            if len(looks) == 1:
                raise OSError("nor can it be closed")

    monkeypatch.setattr(follower_module, "Follower", Failing)
    monkeypatch.setattr(follower_module, "_PAUSE_SECONDS", 0.01)
    section = Online(live="table", poll_ms=10)
    run_follower(ServerSettings.from_section(section, str(tmp_path), str(tmp_path / "warehouse"), snapshots=tmp_path), stop)
    assert looks[0] is not looks[1] and looks[1] is looks[2] and all(follower.is_closed for follower in looks)
    assert "following live lists failed" in caplog.text and "could not be closed" in caplog.text
    assert has_started(tmp_path, "live")
