"""Events of a real broker's topic: good ones in interactions once, bad ones in rejected with their place and reason."""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from recsys_batch.config import Config
from recsys_batch.errors import InputMissing, RecsysBatchError
from recsys_batch.read import read_table
from recsys_batch.stream.runner import run_stream

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.slow

TOPIC = "events"


def event(user: Any, item: Any, second: int = 0, **more: Any) -> bytes:
    when = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC) + dt.timedelta(seconds=second)
    return json.dumps({"user_id": user, "item_id": item, "event_ts": when.isoformat(), **more}).encode()


@pytest.fixture
def send(kafka_broker: Any) -> Callable[..., None]:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": kafka_broker.address})

    def run(*messages: bytes | None) -> None:
        for message in messages:
            producer.produce(TOPIC, message)
        assert producer.flush(30) == 0

    return run


def available_now(spark: SparkSession, kafka_config: Config) -> Any:
    return run_stream(spark, kafka_config, available_now=True, trigger_seconds=1.0, stop=threading.Event())


def sent_pairs(kafka_config: Config) -> list[tuple[str, int]]:
    rows = read_table(kafka_config.paths.warehouse, "interactions", columns=["user_id", "item_id"]).to_pylist()
    return sorted((row["user_id"], row["item_id"]) for row in rows if row["user_id"].startswith("sent"))


POISON: list[tuple[bytes | None, str]] = [
    (b"not json", "malformed_line"),
    (b'{"user_id": "u1", "item_id"', "malformed_line"),
    (None, "malformed_line"),
    (b"[1, 2]", "malformed_line"),
    (b'"text"', "malformed_line"),
    (b"null", "malformed_line"),
    (b"\xff\xfe", "malformed_line"),
    (b"", "malformed_line"),
    (b"{}", "null_user_id"),
    (event(None, 30), "null_user_id"),
    (event("u001", None), "null_item_id"),
    (event("u001", "seven"), "bad_item_id"),
    (event("u001", 2**70), "bad_item_id"),
    (json.dumps({"user_id": "u001", "item_id": 30, "event_ts": "yesterday"}).encode(), "bad_event_ts"),
    (json.dumps({"user_id": "u001", "item_id": 30}).encode(), "null_event_ts"),
    (event("u001", 30, weight="heavy"), "bad_weight"),
]


def test_good_events_change_lists_and_poison_is_told_with_its_place(
    spark: SparkSession, kafka_config: Config, send: Any, live_lists: Any, full_night_lists: Any
) -> None:
    send(event("sent 1", 450), event("u003", 460, weight=2.5), *(message for message, _ in POISON), event("sent 2", "30", 1))
    done = available_now(spark, kafka_config)
    assert (done.events, done.users) == (3, 3)
    rejected = read_table(kafka_config.paths.warehouse, "rejected").to_pylist()
    assert sorted(row["reason"] for row in rejected) == sorted(reason for _, reason in POISON)
    places = [json.loads(row["row"]) for row in rejected]
    assert {(place["topic"], place["partition"]) for place in places} <= {(TOPIC, 0), (TOPIC, 1)}
    assert len({(place["partition"], place["offset"]) for place in places}) == len(POISON)
    assert {row["source"] for row in rejected} == {f"kafka:{TOPIC}"}
    users = {"sent 1", "sent 2", "u003"}
    live = live_lists(kafka_config)
    assert {row[0] for row in live} == users
    assert live == full_night_lists(kafka_config, users)
    assert available_now(spark, kafka_config).batches == 0


def test_an_event_that_is_sent_twice_is_told_as_a_duplicate(spark: SparkSession, kafka_config: Config, send: Any) -> None:
    send(event("sent", 450), event("sent", 450))
    available_now(spark, kafka_config)
    assert sent_pairs(kafka_config) == [("sent", 450)]
    assert read_table(kafka_config.paths.warehouse, "rejected")["reason"].to_pylist() == ["duplicate"]


def test_half_a_file_of_first_offsets_is_no_beginning(spark: SparkSession, kafka_config: Config, send: Any) -> None:
    """As a stream leaves it that is killed in its first moment; Spark by itself refuses to begin there."""
    offsets = Path(kafka_config.paths.warehouse) / "_artifacts" / "stream" / "kafka" / "spark" / "offsets"
    offsets.mkdir(parents=True)
    (offsets / ".0.4f1c.tmp").write_text("v1")
    send(event("sent", 450))
    assert available_now(spark, kafka_config).events == 1
    send(event("sent again", 450))
    assert available_now(spark, kafka_config).events == 1  # the checkpoint stays now
    assert sent_pairs(kafka_config) == [("sent", 450), ("sent again", 450)]


def test_a_checkpoint_of_another_topic_says_so(spark: SparkSession, kafka_config: Config, send: Any) -> None:
    available_now(spark, kafka_config)
    other = kafka_config.model_copy(update={"stream": kafka_config.stream.model_copy(update={"topic": "others"})})
    with pytest.raises(InputMissing, match="is the checkpoint of topic events, and this stream reads others"):
        available_now(spark, other)


def test_a_topic_that_is_not_there_is_named(spark: SparkSession, kafka_config: Config) -> None:
    other = kafka_config.model_copy(update={"stream": kafka_config.stream.model_copy(update={"topic": "nowhere"})})
    with pytest.raises(InputMissing, match="has no topic nowhere"):
        available_now(spark, other)


def test_a_topic_that_was_made_anew_is_data_loss(spark: SparkSession, kafka_config: Config, kafka_broker: Any, send: Any) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    send(*(event(f"sent {n}", 450) for n in range(20)))
    available_now(spark, kafka_config)
    admin = AdminClient({"bootstrap.servers": kafka_broker.address})
    admin.delete_topics([TOPIC])[TOPIC].result(30)
    time.sleep(2)
    admin.create_topics([NewTopic(TOPIC, 2, 1)])[TOPIC].result(30)
    send(event("sent again", 450))
    with pytest.raises(InputMissing, match="no longer has messages that were not read yet"):
        available_now(spark, kafka_config)


def test_a_broker_that_is_away_is_named(spark: SparkSession, kafka_config: Config, kafka_broker: Any) -> None:
    kafka_broker.stop()
    with pytest.raises(RecsysBatchError, match="no broker of Kafka answers"):
        available_now(spark, kafka_config)
