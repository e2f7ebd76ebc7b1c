"""Processes of a stream are killed, at chosen points and at random times; the same command goes on, and no event is lost or doubled."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from recsys_batch.config import Config
from recsys_batch.read import read_table

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
RANDOM_KILLS = int(os.environ.get("STREAM_KILLS", "0"))
"""`make fault-test KILLS=20` has all points, and so many random kills; without it every third point, and two."""

DIES_AT = """
import importlib, os, signal, sys
module, owner, name, moment, *command = sys.argv[1:]
target = importlib.import_module(module)
for part in owner.split("."):
    target = getattr(target, part) if part else target
function = getattr(target, name)

def dying(*arguments, **options):
    if moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    function(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(target, name, dying)
from recsys_batch.cli import main
sys.argv[1:] = command
main()
"""
"""The command line in a process that kills itself before or after a function is called for the first time."""

SOURCE, REFRESHER = "recsys_batch.stream.kafka_source", "recsys_batch.stream.refresher"
POINTS = [
    (SOURCE, "", "split_by_validity", "before"),
    (SOURCE, "", "split_by_validity", "after"),
    (SOURCE, "KafkaSource", "_append", "before"),  # of rejected, as each batch has one
    (SOURCE, "KafkaSource", "_append", "after"),
    (REFRESHER, "Refresher", "make_lists_ahead", "before"),  # interactions are being appended
    (REFRESHER, "EventStore", "prepare", "after"),
    (REFRESHER, "EventStore", "add_events", "after"),
    (REFRESHER, "Refresher", "make_lists_ahead", "after"),
    (REFRESHER, "Refresher", "commit_ahead", "before"),  # interactions have the events
    (REFRESHER, "LiveTable", "commit", "before"),
    (REFRESHER, "LiveTable", "commit", "after"),
    (SOURCE, "KafkaSource", "_handle", "after"),  # all is done but for Spark's own note
]


class Topic:
    """Sends good and bad events, and knows what must have come of them."""

    def __init__(self, address: str) -> None:
        from confluent_kafka import Producer

        self._producer = Producer({"bootstrap.servers": address})
        self.pairs: list[tuple[str, int]] = []
        self.bad: list[str] = []

    def send(self, n: int) -> None:
        """Send n events, each of a user of its own, and one that is none."""
        for _ in range(n):
            user, item = f"sent {len(self.pairs)}", 10 * (2 + len(self.pairs) % 80)
            self.pairs.append((user, item))
            self._producer.produce("events", json.dumps({"user_id": user, "item_id": item, "event_ts": "2026-03-01T12:00:00Z"}))
        self.bad.append(f"bad {len(self.bad)}")
        self._producer.produce("events", self.bad[-1])
        assert self._producer.flush(60) == 0


@pytest.fixture
def topic(kafka_broker: Any) -> Topic:
    return Topic(kafka_broker.address)


@pytest.fixture
def command(kafka_config: Config, options: Any) -> list[str]:
    stream = kafka_config.stream
    settings = [f"stream.{key}={getattr(stream, key)}" for key in ("source", "bootstrap_servers", "topic")]
    settings.append(f"paths.kafka_jars={ROOT / '.jars-kafka'}")
    return ["stream", *options(kafka_config), *(part for setting in settings for part in ("--set", setting))]


@pytest.fixture
def start(command: list[str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a stream, in a session of its own; what it says goes to a file of that number."""
    running: list[subprocess.Popen[bytes]] = []

    def run(number: int, *more: str, before: tuple[str, ...] = ("-m", "recsys_batch")) -> subprocess.Popen[bytes]:
        with (tmp_path / f"log-{number}").open("wb") as output:
            arguments = [sys.executable, *before, *command, *more]
            running.append(subprocess.Popen(arguments, cwd=ROOT, stdout=output, stderr=output, start_new_session=True))
        return running[-1]

    yield run
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


def check(config: Config, topic: Topic, live_lists: Any, full_night_lists: Any) -> None:
    """Each event is in interactions once, each bad one in rejected once, and each user's list is a full night's."""
    rows = read_table(config.paths.warehouse, "interactions", columns=["user_id", "item_id"]).to_pylist()
    assert sorted((row["user_id"], row["item_id"]) for row in rows if row["user_id"].startswith("sent")) == sorted(topic.pairs)
    rejected = [json.loads(row["row"])["value"] for row in read_table(config.paths.warehouse, "rejected").to_pylist()]
    assert sorted(rejected) == sorted(topic.bad)
    users = {user for user, _ in topic.pairs}
    live = live_lists(config)
    assert {row[0] for row in live} == users
    assert live == full_night_lists(config, users)


def test_a_driver_that_is_killed_at_each_point_loses_and_doubles_nothing(
    spark: SparkSession, kafka_config: Config, topic: Topic, start: Any, live_lists: Any, full_night_lists: Any, tmp_path: Path
) -> None:
    points = POINTS if RANDOM_KILLS else POINTS[::3]
    for number, point in enumerate(points):
        topic.send(3)
        process = start(number, "--available-now", before=("-c", DIES_AT, *point))
        assert process.wait(180) == -signal.SIGKILL, (point, (tmp_path / f"log-{number}").read_text(errors="replace")[-2000:])
    topic.send(3)
    last = start(len(points), "--available-now")
    assert last.wait(180) == 0, (tmp_path / f"log-{len(points)}").read_text(errors="replace")[-2000:]
    check(kafka_config, topic, live_lists, full_night_lists)


def test_processes_that_are_killed_at_random_times_lose_and_double_nothing(
    spark: SparkSession,
    kafka_config: Config,
    kafka_broker: Any,
    topic: Topic,
    start: Any,
    live_lists: Any,
    full_night_lists: Any,
    tmp_path: Path,
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    n_kills = RANDOM_KILLS or 2
    for number in range(n_kills):
        process, log = start(number, "--trigger", "500ms"), tmp_path / f"log-{number}"
        until = time.monotonic() + 120
        while "refreshing lists of run" not in log.read_text(errors="replace"):
            assert process.poll() is None and time.monotonic() < until, log.read_text(errors="replace")[-2000:]
            time.sleep(0.1)
        ends = time.monotonic() + rng.uniform(0.2, 6.0)
        while time.monotonic() < ends:
            topic.send(3)
            time.sleep(0.2)
        victim = rng.choice(("driver", "jvm", "worker", "broker"))
        if victim == "broker":
            kafka_broker.stop()
            kafka_broker.start()
        for pid in [] if victim == "broker" else [process.pid] if victim == "driver" else children(process.pid, victim):
            with contextlib.suppress(ProcessLookupError):  # idle Python workers end by themselves
                os.kill(pid, signal.SIGKILL)
        time.sleep(rng.uniform(0.0, 2.0))
        process.kill()  # whatever the victim's death made of it
        process.wait()
    topic.send(3)
    last, log = start(n_kills, "--trigger", "500ms"), tmp_path / f"log-{n_kills}"
    until = time.monotonic() + 120
    while "refreshed users=" not in log.read_text(errors="replace"):
        assert last.poll() is None and time.monotonic() < until, log.read_text(errors="replace")[-2000:]
        time.sleep(0.1)
    last.send_signal(signal.SIGTERM)  # the batch at work is finished
    assert last.wait(60) == 0, log.read_text(errors="replace")[-2000:]
    assert start(n_kills, "--available-now").wait(180) == 0, log.read_text(errors="replace")[-2000:]
    check(kafka_config, topic, live_lists, full_night_lists)


def children(pid: int, kind: str) -> list[int]:
    """The Java process below a driver, or the Python processes below that; none where there is none at the moment."""
    below, found = [pid], []
    while below:
        parent = below.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            for child in task.read_text().split():
                below.append(int(child))
                name = Path(f"/proc/{child}/comm").read_text().strip()
                if (name == "java") == (kind == "jvm"):
                    found.append(int(child))
    return found
