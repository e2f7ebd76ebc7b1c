"""Lists of refreshed users are, row for row, those of a full night over the same events and the same model."""

from __future__ import annotations

import datetime as dt
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from recsys_batch.config import Config
from recsys_batch.dataset.user_events import EVENTS as EVENTS_SPEC
from recsys_batch.errors import InputMissing
from recsys_batch.night.runner import run_night
from recsys_batch.read import read_table
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.executors.changed_events import to_events
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import state_file
from recsys_batch.stream import refresher as module
from recsys_batch.stream.event_store import EventStore
from recsys_batch.stream.live_table import LiveTable
from recsys_batch.stream.refresher import Refresher
from recsys_batch.stream.run_follower import RunFollower
from recsys_batch.tables.delta_log import batch_metadata

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Event = tuple[str, int, float]
Lists = list[tuple[Any, ...]]

EVENTS: list[Event] = [
    ("u003", 450, 1.0),
    ("u003", 460, 2.0),
    ("u003", 450, 1.0),  # again
    ("newcomer", 30, 1.0),
    ("clicked only", 70, -1.0),
    ("quiet", 80, 1.0),  # until now in users alone
    ("returner", 50, -1.0),
    ("u010", 99_990, 1.0),  # an item that nobody knows
    ("somebody", 99_991, 1.0),
    ("glutton", 900, 1.0),
    *(("busy", 10 * n, 1.0) for n in range(2, 60)),
    *((f"u{n:03d}", 10 * (90 - n), 1.0) for n in range(20, 40)),
]


USERS = {user for user, _, _ in EVENTS}


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def catch_up(follower: RunFollower) -> None:
    refresher = follower.follow()
    while refresher.refresh(10):
        pass
    refresher.refresh_popular_lists()


@pytest.mark.parametrize("seed", [1, 2])
def test_refreshed_users_have_the_rows_of_a_full_night(
    spark: SparkSession, fresh_published: Config, append_events: Any, live_lists: Any, full_night_lists: Any, seed: int
) -> None:
    events, rng = list(EVENTS), random.Random(seed)
    rng.shuffle(events)
    follower = RunFollower(spark, fresh_published)
    refresher = follower.follow()
    assert refresher.refresh(1000) is None
    while events:
        n = rng.randint(1, 40)
        append_events(fresh_published, events[:n])
        events = events[n:]
        if rng.random() < 0.7:
            refresher.refresh(1000)
    catch_up(follower)
    live = live_lists(fresh_published)
    assert {row[0] for row in live} == USERS
    assert live == full_night_lists(fresh_published, USERS)


POINTS: dict[str, tuple[Any, str, bool]] = {
    "while the log is read": (module, "list_appended_versions", False),
    "before the lists are made": (Refresher, "_run_job", False),
    "when the lists are made": (Refresher, "_run_job", True),
    "before counts are kept": (EventStore, "prepare", False),
    "when counts are kept": (EventStore, "prepare", True),
    "when events are kept": (EventStore, "add_events", True),
    "before the commit": (LiveTable, "commit", False),
    "when it is committed": (LiveTable, "commit", True),
    "when it is confirmed": (EventStore, "confirm", True),
    "before popular lists are noted": (EventStore, "mark_listed", False),
}


def test_a_stream_that_dies_at_every_point_in_turn_loses_and_doubles_nothing(
    spark: SparkSession, fresh_published: Config, append_events: Any, live_lists: Any, full_night_lists: Any
) -> None:
    append_events(fresh_published, EVENTS[:30])
    died = set()
    for number, (name, (holder, function, after)) in enumerate(POINTS.items()):
        append_events(fresh_published, EVENTS[30 + 4 * number : 34 + 4 * number])
        with pytest.MonkeyPatch.context() as patch:
            real = getattr(holder, function)

            def dying(*arguments: Any, _real: Any = real, _after: bool = after, _name: str = name, **named: Any) -> Any:
                if _name in died:
                    return _real(*arguments, **named)
                died.add(_name)
                if _after:
                    _real(*arguments, **named)
                raise Killed

            patch.setattr(holder, function, dying)
            with pytest.raises(Killed):
                catch_up(RunFollower(spark, fresh_published))
    append_events(fresh_published, EVENTS[30 + 4 * len(POINTS) :])
    catch_up(RunFollower(spark, fresh_published))
    assert died == set(POINTS)
    rows = read_table(fresh_published.paths.warehouse, "topk_live", columns=["user_id", "batch_id", "rank"])
    assert rows.num_rows == rows.group_by(["user_id", "batch_id", "rank"]).aggregate([]).num_rows
    assert live_lists(fresh_published) == full_night_lists(fresh_published, USERS)


def test_a_lost_store_is_filled_again(
    spark: SparkSession, fresh_published: Config, append_events: Any, live_lists: Any, full_night_lists: Any
) -> None:
    append_events(fresh_published, EVENTS[:50])
    follower = RunFollower(spark, fresh_published)
    catch_up(follower)
    follower.close()
    for path in state_file(fresh_published.paths.warehouse, fresh_published.paths.state, "stream", "").iterdir():
        path.unlink()
    append_events(fresh_published, EVENTS[50:])
    catch_up(RunFollower(spark, fresh_published))
    assert live_lists(fresh_published) == full_night_lists(fresh_published, USERS)


def test_lists_of_the_newest_batch_are_not_written_again_where_the_store_is_lost_or_did_not_note_them(
    spark: SparkSession, fresh_published: Config, append_events: Any
) -> None:
    append_events(fresh_published, EVENTS[:20])
    append_events(fresh_published, EVENTS[20:50])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EventStore, "mark_listed", lambda *_: None)  # a stream that is killed right before
        follower = RunFollower(spark, fresh_published)
        catch_up(follower)
        follower.close()
    state = state_file(fresh_published.paths.warehouse, fresh_published.paths.state, "stream", "")
    for is_lost in (False, True):
        for path in state.iterdir() if is_lost else ():
            path.unlink()
        follower = RunFollower(spark, fresh_published)
        catch_up(follower)
        follower.close()
        rows = read_table(fresh_published.paths.warehouse, "topk_live", columns=["user_id", "batch_id", "rank"])
        assert rows.num_rows == rows.group_by(["user_id", "batch_id", "rank"]).aggregate([]).num_rows


def test_a_compaction_of_interactions_changes_nothing(spark: SparkSession, fresh_published: Config, append_events: Any) -> None:
    append_events(fresh_published, EVENTS[:5])
    append_events(fresh_published, EVENTS[5:10])
    spark.sql(f"OPTIMIZE delta.`{WarehouseTables(spark, fresh_published).folder('interactions')}` FULL")
    refresher = RunFollower(spark, fresh_published).follow()
    batch = refresher.refresh(1000)
    assert batch is not None and batch.n_events == 10
    assert refresher.refresh(1000) is None


def test_removed_rows_end_the_stream_with_a_sentence(spark: SparkSession, fresh_published: Config, append_events: Any) -> None:
    append_events(fresh_published, EVENTS[:5])
    WarehouseTables(spark, fresh_published).delta("interactions").delete("user_id = 'u001'")
    refresher = RunFollower(spark, fresh_published).follow()
    assert refresher.refresh(1000) is not None
    with pytest.raises(InputMissing, match=r"rows of interactions were removed or replaced in version \d+. Run `recsys-batch nightly`"):
        refresher.refresh(1000)


def test_a_log_that_no_longer_reaches_back_ends_the_stream_with_a_sentence(
    spark: SparkSession, fresh_published: Config, append_events: Any
) -> None:
    append_events(fresh_published, EVENTS[:5])
    append_events(fresh_published, EVENTS[5:10])
    refresher = RunFollower(spark, fresh_published).follow()
    folder = Path(WarehouseTables(spark, fresh_published).folder("interactions"))
    DeltaTable(str(folder)).create_checkpoint()
    for entry in sorted((folder / "_delta_log").glob("*.json"))[:-1]:  # as the table's retention does
        entry.unlink()
    with pytest.raises(InputMissing, match=r"the log of interactions no longer has version \d+. Run `recsys-batch nightly`"):
        refresher.refresh(1000)


def test_a_newly_published_run_is_followed_between_two_batches(
    spark: SparkSession, fresh_published: Config, append_events: Any, live_lists: Any, full_night_lists: Any
) -> None:
    append_events(fresh_published, EVENTS[:40])
    follower = RunFollower(spark, fresh_published)
    catch_up(follower)
    run = run_night(spark, fresh_published, dt.date(2026, 3, 2), incremental=True)
    append_events(fresh_published, EVENTS[40:])
    catch_up(follower)
    rows = read_table(fresh_published.paths.warehouse, "topk_live", where=pc.field("run_id") == run.run_id)
    of_new_run = set(rows["user_id"].to_pylist())
    assert of_new_run == {user for user, _, _ in EVENTS[40:]}
    newest = [row for row in live_lists(fresh_published) if row[0] in of_new_run]
    assert newest == full_night_lists(fresh_published, of_new_run)


def test_topk_live_is_read_without_spark_or_new_protocols(spark: SparkSession, fresh_published: Config, append_events: Any) -> None:
    append_events(fresh_published, EVENTS[:3])
    catch_up(RunFollower(spark, fresh_published))
    table = DeltaTable(f"{fresh_published.paths.warehouse}/topk_live")
    assert table.protocol().min_reader_version == 1
    assert set(table.to_pyarrow_table()["run_id"].to_pylist()) == {"2026-03-01-r1"}


ITEMS = [(905, 1, True), (906, 2, True), (600, 0, False), (10, 1, True), (300, 2, True)]
"""(item_id, genre, available): two are new, one goes, one that was not available comes, one is of another genre now."""


def test_items_that_came_went_or_changed_are_in_lists_as_a_full_night_has_them(
    spark: SparkSession, fresh_published: Config, append_events: Any, live_lists: Any, full_night_lists: Any
) -> None:
    change_items(spark, fresh_published, append_events, live_lists, full_night_lists)


def test_refreshed_users_get_again_what_their_segment_may_have_again(
    spark: SparkSession, fresh: Config, market: Any, append_events: Any, live_lists: Any, full_night_lists: Any
) -> None:
    seen: dict[str, Any] = {"even": "allow", "odd": {"after_days": 14}, "all": "exclude"}  # nothing happened 14 days before either night
    config = Config.model_validate({**fresh.model_dump(), "retrieval": {**fresh.retrieval.model_dump(), "seen": seen}})
    run_night(spark, config, dt.date(2026, 3, 1))
    live = change_items(spark, config, append_events, live_lists, full_night_lists)
    segment = dict(zip(market.users["user_id"].to_pylist(), market.users["segment"].to_pylist(), strict=True))
    just_now = {(user, item) for user, item, _ in [*EVENTS, *AGAIN]}
    before = set(zip(market.interactions["user_id"].to_pylist(), market.interactions["item_id"].to_pylist(), strict=True))
    listed = {(row[0], row[2]) for row in live}
    assert {segment.get(user) for user, item in listed & just_now} == {"even"}
    assert {segment.get(user) for user, item in listed & before} == {"even", "odd"}


AGAIN: list[Event] = [("u003", 905, 1.0), ("u010", 906, 1.0), ("clicked only", 905, -1.0), ("glutton", 905, 1.0), ("u020", 300, 1.0)]


def change_items(spark: SparkSession, config: Config, append_events: Any, live_lists: Any, full_night_lists: Any) -> Lists:
    """Refresh users before and after items changed, and compare with a full night."""
    append_events(config, EVENTS[:20])
    follower = RunFollower(spark, config)
    catch_up(follower)
    since = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    rows = [(item, f"Title {item}", [f"genre {genre}"], available, since, [("year", "1991")]) for item, genre, available in ITEMS]
    columns = zip(*rows, strict=True)
    schema = TABLES["items"].arrow_schema(IdTypes("STRING", "BIGINT"))
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)
    WarehouseTables(spark, config).upsert("items", spark.createDataFrame(table), "item_id", {"by": "test"})
    append_events(config, [*AGAIN, *EVENTS[20:]])
    catch_up(follower)
    users = {user for user, _, _ in [*AGAIN, *EVENTS[20:]]}
    live = [row for row in live_lists(config) if row[0] in users]
    assert {905, 906, 10} <= {row[2] for row in live}
    assert 600 not in {row[2] for row in live}
    assert live == full_night_lists(config, users)
    return live


def test_lists_made_ahead_hold_only_for_the_commit_that_they_were_made_for(
    spark: SparkSession, fresh_published: Config, append_events: Any, live_lists: Any, full_night_lists: Any
) -> None:
    tables, follower = WarehouseTables(spark, fresh_published), RunFollower(spark, fresh_published)
    refresher = follower.follow()
    schema = TABLES["interactions"].arrow_schema(IdTypes("STRING", "BIGINT"))
    when = dt.datetime(2026, 3, 1, 13, tzinfo=dt.UTC)

    def rows_of(user: str, item: int) -> pa.Table:
        row = {"user_id": user, "item_id": item, "event_ts": when, "event_type": "buy", "weight": 1.0, "event_date": when.date()}
        return pa.Table.from_pylist([row], schema=schema)

    def append(rows: pa.Table, number: int) -> None:
        tables.append_batch("interactions", spark.createDataFrame(rows), batch_metadata("test", number))

    events = EVENTS_SPEC.arrow_schema(IdTypes("STRING", "BIGINT"))
    first, second = rows_of("ahead", 450), rows_of("beaten", 460)
    prepared = refresher.make_lists_ahead(to_events(first, events))
    append(first, 1)
    assert refresher.commit_ahead(prepared, batch_metadata("test", 1)) is not None
    prepared = refresher.make_lists_ahead(to_events(second, events))
    append_events(fresh_published, [("somebody else", 470, 1.0)])
    append(second, 2)
    assert refresher.commit_ahead(prepared, batch_metadata("test", 2)) is None
    catch_up(follower)
    users = {"ahead", "beaten", "somebody else"}
    assert {row[0] for row in live_lists(fresh_published)} == users
    assert live_lists(fresh_published) == full_night_lists(fresh_published, users)
