"""Events of a real broker's topic: good ones in interactions once, bad ones in rejected with their place and reason."""

from __future__ import annotations

import datetime as dt
import json
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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

ROOT = Path(__file__).parent.parent.parent
TOPIC = "events"


def event(user: Any, item: Any, second: int = 0, **more: Any) -> bytes:
    when = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC) + dt.timedelta(seconds=second)
    return json.dumps({"user_id": user, "item_id": item, "event_ts": when.isoformat(), **more}).encode()


@pytest.fixture(scope="session")
def broker_class() -> Any:
    return runpy.run_path(str(ROOT / "tools" / "kafka_broker.py"))["KafkaBroker"]


@pytest.fixture
def broker(broker_class: Any, tmp_path: Path) -> Iterator[Any]:
    from confluent_kafka.admin import AdminClient, NewTopic

    with broker_class(tmp_path / "kafka", ROOT / ".jars-kafka-broker") as running:
        admin = AdminClient({"bootstrap.servers": running.address})
        admin.create_topics([NewTopic(TOPIC, 2, 1)])[TOPIC].result(30)
        yield running


@pytest.fixture
def config(fresh_published: Config, broker: Any) -> Config:
    settings = {"source": "kafka", "bootstrap_servers": broker.address, "topic": TOPIC}
    return fresh_published.model_copy(update={"stream": fresh_published.stream.model_copy(update=settings)})


@pytest.fixture
def send(broker: Any) -> Callable[..., None]:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker.address})

    def run(*messages: bytes | None) -> None:
        for message in messages:
            producer.produce(TOPIC, message)
        assert producer.flush(30) == 0

    return run


def available_now(spark: SparkSession, config: Config) -> Any:
    return run_stream(spark, config, available_now=True, trigger_seconds=1.0, stop=threading.Event())


def sent_pairs(config: Config) -> list[tuple[str, int]]:
    rows = read_table(config.paths.warehouse, "interactions", columns=["user_id", "item_id"]).to_pylist()
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
    spark: SparkSession, config: Config, send: Any, live_lists: Any, full_night_lists: Any
) -> None:
    send(event("sent 1", 450), event("u003", 460, weight=2.5), *(message for message, _ in POISON), event("sent 2", "30", 1))
    done = available_now(spark, config)
    assert (done.events, done.users) == (3, 3)
    rejected = read_table(config.paths.warehouse, "rejected").to_pylist()
    assert sorted(row["reason"] for row in rejected) == sorted(reason for _, reason in POISON)
    places = [json.loads(row["row"]) for row in rejected]
    assert {(place["topic"], place["partition"]) for place in places} <= {(TOPIC, 0), (TOPIC, 1)}
    assert len({(place["partition"], place["offset"]) for place in places}) == len(POISON)
    assert {row["source"] for row in rejected} == {f"kafka:{TOPIC}"}
    users = {"sent 1", "sent 2", "u003"}
    live = live_lists(config)
    assert {row[0] for row in live} == users
    assert live == full_night_lists(config, users)
    assert available_now(spark, config).batches == 0


def test_an_event_that_is_sent_twice_is_told_as_a_duplicate(spark: SparkSession, config: Config, send: Any) -> None:
    send(event("sent", 450), event("sent", 450))
    available_now(spark, config)
    assert sent_pairs(config) == [("sent", 450)]
    assert read_table(config.paths.warehouse, "rejected")["reason"].to_pylist() == ["duplicate"]


def test_a_checkpoint_of_another_topic_says_so(spark: SparkSession, config: Config, send: Any) -> None:
    available_now(spark, config)
    other = config.model_copy(update={"stream": config.stream.model_copy(update={"topic": "others"})})
    with pytest.raises(InputMissing, match="is the checkpoint of topic events, and this stream reads others"):
        available_now(spark, other)


def test_a_topic_that_is_not_there_is_named(spark: SparkSession, config: Config) -> None:
    other = config.model_copy(update={"stream": config.stream.model_copy(update={"topic": "nowhere"})})
    with pytest.raises(InputMissing, match="has no topic nowhere"):
        available_now(spark, other)


def test_a_topic_that_was_made_anew_is_data_loss(spark: SparkSession, config: Config, broker: Any, send: Any) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    send(*(event(f"sent {n}", 450) for n in range(20)))
    available_now(spark, config)
    admin = AdminClient({"bootstrap.servers": broker.address})
    admin.delete_topics([TOPIC])[TOPIC].result(30)
    time.sleep(2)
    admin.create_topics([NewTopic(TOPIC, 2, 1)])[TOPIC].result(30)
    send(event("sent again", 450))
    with pytest.raises(InputMissing, match="no longer has messages that were not read yet"):
        available_now(spark, config)


def test_a_broker_that_is_away_is_named(spark: SparkSession, config: Config, broker: Any) -> None:
    broker.stop()
    with pytest.raises(RecsysBatchError, match="no broker of Kafka answers"):
        available_now(spark, config)


def started(config: Config, options: Any, log: Path) -> subprocess.Popen[bytes]:
    stream, paths = config.stream, [f"paths.kafka_jars={ROOT / '.jars-kafka'}"]
    settings = [f"stream.{key}={getattr(stream, key)}" for key in ("source", "bootstrap_servers", "topic")]
    command = [sys.executable, "-m", "recsys_batch", "stream", "--trigger", "500ms", *options(config)]
    command += [part for setting in [*settings, *paths] for part in ("--set", setting)]
    with log.open("ab") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)


def await_users(config: Config, n: int, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while len({user for user, _ in sent_pairs(config)}) < n:
        assert time.monotonic() < until, "the events did not arrive"
        time.sleep(0.2)


def await_lines(log: Path, n: int, seconds: float = 120.0) -> None:
    """Wait until the log says n times that a stream is at work."""
    until = time.monotonic() + seconds
    while not log.exists() or log.read_text(errors="replace").count("refreshing lists of run") < n:
        assert time.monotonic() < until, "the stream did not start"
        time.sleep(0.2)


def test_killed_drivers_and_a_killed_broker_lose_and_double_nothing(
    spark: SparkSession, config: Config, broker: Any, send: Any, options: Any, live_lists: Any, full_night_lists: Any, tmp_path: Path
) -> None:
    log, n = tmp_path / "log", 0
    for number in range(3):
        process = started(config, options, log)
        await_lines(log, number + 1)
        for _ in range(8):
            send(*(event(f"sent {n + k}", 10 * (2 + (n + k) % 80), n + k) for k in range(5)))
            n += 5
            time.sleep(0.3)
        await_users(config, n - 20)  # it is at work on the others
        process.send_signal(signal.SIGKILL)
        process.wait()
        if number == 1:
            broker.stop()
            broker.start()
    last = tmp_path / "last"
    process = started(config, options, last)
    send(*(event(f"sent {n + k}", 10 * (2 + (n + k) % 80), n + k) for k in range(5)))
    n += 5
    await_users(config, n)
    process.send_signal(signal.SIGTERM)  # it is past its start: the new events are there
    assert process.wait(60) == 0, last.read_text(errors="replace")[-3000:]
    available_now(spark, config)
    pairs = sent_pairs(config)
    assert pairs == sorted((f"sent {k}", 10 * (2 + k % 80)) for k in range(n))
    users = {user for user, _ in pairs}
    assert live_lists(config) == full_night_lists(config, users)
    assert "Exception" not in last.read_text(errors="replace")
