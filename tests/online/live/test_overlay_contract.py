"""What a follower counts on, of overlays in files and in Redis alike."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from recsys_batch.online.live.overlay_stores import LocalOverlays, OtherWriter, Overlay, OverlayStore, RedisOverlays
from recsys_batch.online.snapshot.live_overlay import LiveReader, decode_live_record, remove_overlay
from recsys_batch.online.snapshot.redis_store import live_key, progress_key
from tests.online.live.overlay_values import key_of, live_value


class LocalKind:
    """Overlays of files, and what their readers and an operator do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, LocalOverlays(folder)

    def codes(self, run_id: str, user: int) -> list[int] | None:
        reader = LiveReader(self.folder / run_id)
        record = reader.get(key_of(user))
        reader.close()
        return None if record is None else record.codes.tolist()

    def delete(self, run_id: str) -> None:
        remove_overlay(self.folder / run_id)


class RedisKind:
    """The same of Redis."""

    def __init__(self, url: str) -> None:
        self.client, self.store = redis.Redis.from_url(url), RedisOverlays(redis.Redis.from_url(url), 3600)

    def codes(self, run_id: str, user: int) -> list[int] | None:
        value = self.client.get(live_key(run_id, key_of(user)))
        return None if value is None else decode_live_record(value).codes.tolist()

    def delete(self, run_id: str) -> None:
        self.client.delete(progress_key(run_id), *self.client.keys(f"recs:{run_id}:live:*"))


@pytest.fixture(params=["files", "redis"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalKind | RedisKind]:
    made = LocalKind(tmp_path / "overlays") if request.param == "files" else RedisKind(request.getfixturevalue("server").url)
    yield made
    made.store.close()


def open_to_write(store: OverlayStore, run_id: str = "run", source: str = "table") -> Overlay:
    overlay = store.open(run_id, source)
    assert not isinstance(overlay, OtherWriter)
    return overlay


def write(kind: Any, batch_id: int, lists: dict[int, list[int]], run_id: str = "run") -> None:
    overlay = open_to_write(kind.store, run_id)
    overlay.add([(key_of(user), live_value(batch_id, codes)) for user, codes in lists.items()], batch_id)
    overlay.note_checked()
    overlay.close()


def test_of_a_users_lists_that_of_the_greatest_batch_stays_in_whatever_order_they_come(kind: Any) -> None:
    for batch_id, codes in ((5, [1]), (9, [2]), (7, [3])):
        write(kind, batch_id, {1: codes, batch_id: codes})
    assert [kind.codes("run", user) for user in (1, 5, 7, 9)] == [[2], [1], [3], [2]]


def test_a_batch_that_is_written_again_is_as_before(kind: Any) -> None:
    write(kind, 5, {1: [1]})
    write(kind, 5, {1: [1], 2: [2]})
    assert [kind.codes("run", user) for user in (1, 2)] == [[1], [2]]


def test_a_writer_goes_on_where_it_was_and_begins_anew_over_another_table(kind: Any) -> None:
    new = open_to_write(kind.store)
    assert new.version is None and new.is_in_place
    new.close()
    write(kind, 5, {1: [1]})
    same = open_to_write(kind.store)
    assert same.version == 5
    same.add((), 6)
    assert same.version == 6
    same.close()
    other = open_to_write(kind.store, source="recreated table")
    assert other.version is None
    other.close()


def test_a_writer_is_told_that_its_overlay_was_deleted_and_begins_anew(kind: Any) -> None:
    write(kind, 5, {1: [1]})
    overlay = open_to_write(kind.store)
    assert overlay.is_in_place
    kind.delete("run")
    assert not overlay.is_in_place
    overlay.close()
    assert open_to_write(kind.store).version is None and kind.codes("run", 1) is None


def test_runs_have_their_own_lists(kind: Any) -> None:
    write(kind, 5, {1: [1]}, run_id="one")
    write(kind, 4, {1: [2]}, run_id="other")
    assert [kind.codes(run_id, 1) for run_id in ("one", "other", "third")] == [[1], [2], None]
    kind.store.keep_only({"one", "other"})
    assert [kind.codes(run_id, 1) for run_id in ("one", "other")] == [[1], [2]]
