"""From an event to a changed answer of /v1/rank, by Kafka and by Delta; events per second of a backlog; memory while it is worked off.

make bench-freshness USERS=100000 ITEMS=50000
"""

import argparse
import datetime as dt
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from measuring import ROOT, report
from night_process import RUN_DATE, Warehouse, trained_bundle

from recsys_batch.config import Config, load_config
from recsys_batch.schemas import TABLES
from recsys_batch.spark.session import get_session
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.stream.runner import run_stream

sys.path.insert(0, str(ROOT / "tools"))
from kafka_broker import KafkaBroker
from model_servers import free_ports
from process_usage import list_family, read_status

TOPIC = "events"
GIVE_UP_SECONDS = 60.0


class Probes:
    """Asks for users who just did something until the answer knows it; each was idle before."""

    def __init__(self, port: int, first_user: int) -> None:
        self.seconds: list[float] = []
        self.lost = 0
        self._port, self._next = port, first_user
        self._pending: dict[int, tuple[float, dt.datetime]] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> "Probes":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        until = time.monotonic() + GIVE_UP_SECONDS
        while self._pending and time.monotonic() < until:
            time.sleep(0.1)
        self.lost = len(self._pending)
        self._stop.set()
        self._thread.join()

    def new(self, n: int) -> list[tuple[int, dt.datetime]]:
        """Choose the next users, and note that they do something now."""
        now = dt.datetime.now(dt.UTC)
        with self._lock:
            users = list(range(self._next, self._next + n))
            self._next += n
            self._pending |= {user: (time.monotonic(), now) for user in users}
        return [(user, now) for user in users]

    def _poll(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        while not self._stop.wait(0.1):
            for user, (sent, when) in list(self._pending.items()):
                connection.request("POST", "/v1/rank", json.dumps({"user_id": user, "k": 10}), {"content-type": "application/json"})
                answer = json.loads(connection.getresponse().read())
                through = answer.get("events_through")
                if answer.get("lists") == "live" and through and dt.datetime.fromisoformat(through) >= when.replace(microsecond=0):
                    self.seconds.append(time.monotonic() - sent)
                    with self._lock:
                        del self._pending[user]


def events_of(rng: np.random.Generator, arguments: argparse.Namespace, probes: list[tuple[int, dt.datetime]]) -> list[dict[str, Any]]:
    """A second's events: of users at random, and of the probes."""
    n, now = arguments.rate - len(probes), dt.datetime.now(dt.UTC)
    users, items = rng.integers(1, arguments.users // 2, n).tolist(), rng.integers(1, arguments.items, n + len(probes)).tolist()
    rows = [(user, now) for user in users] + probes
    return [{"user_id": user, "item_id": item, "event_ts": when} for (user, when), item in zip(rows, items, strict=True)]


def each_second(seconds: int, send: Callable[[], None]) -> None:
    started = time.monotonic()
    for second in range(seconds):
        time.sleep(max(started + second - time.monotonic(), 0.0))
        send()


@contextmanager
def streaming(spark: Any, config: Config, batches: list[Any]) -> Iterator[None]:
    """Run the stream in a thread while the block runs."""
    stop, errors = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            run_stream(spark, config, available_now=False, trigger_seconds=1.0, stop=stop, on_batch=batches.append)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


@contextmanager
def serving(options: list[str], port: int, log: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "recsys_batch", "serve", *options, "--port", str(port), "--workers", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    try:
        until = time.monotonic() + 60
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the server did not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _is_ready(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False


def rss_mb() -> float:
    """Resident memory of this process and all below it: the driver, its JVM, Python workers."""
    return sum(read_status(process).get("RssAnon", 0) for process in list_family(os.getpid())) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--events-per-user", type=int, default=20)
    parser.add_argument("--train-seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=int, default=200, help="Events per second.")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--backlog", type=int, default=100_000)
    parser.add_argument("--set", action="append", default=["model.embedding_dim=64"], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    arguments.set.append(f"retrieval.n_candidates={arguments.k}")
    with (
        tempfile.TemporaryDirectory(prefix="bench-freshness-") as name,
        KafkaBroker(Path(name) / "kafka", ROOT / ".jars-kafka-broker") as broker,
    ):
        folder = Path(name)
        kafka = [f"stream.bootstrap_servers={broker.address}", f"stream.topic={TOPIC}", f"paths.kafka_jars={ROOT / '.jars-kafka'}"]
        arguments.set += [*kafka, "stream.source=kafka"]  # the first session of this process has its jars
        ours = [*arguments.set, f"online.snapshots={folder / 'snapshots'}", "online.live=table"]
        trained_bundle(min(10_000, arguments.users), arguments.items, arguments, folder / "bundle")
        warehouse = Warehouse(arguments.users, arguments.items, arguments.events_per_user, arguments.seed, ours, folder / "bundle")
        try:
            measure(arguments, warehouse, folder, broker)
        finally:
            warehouse.remove()


def measure(arguments: argparse.Namespace, warehouse: Warehouse, folder: Path, broker: KafkaBroker) -> None:
    admin = AdminClient({"bootstrap.servers": broker.address})
    admin.create_topics([NewTopic(TOPIC, 2, 1)])[TOPIC].result(30)
    producer = Producer({"bootstrap.servers": broker.address, "linger.ms": 5})
    warehouse.command("nightly", "--run-date", RUN_DATE)
    warehouse.command("export-snapshot")
    config = load_config(warehouse.options[1], warehouse.options[3::2])
    spark, rng, port = get_session(config), np.random.default_rng(arguments.seed), free_ports()
    tables, schema = WarehouseTables(spark, config), TABLES["interactions"].arrow_schema(WarehouseTables(spark, config).require_ids())

    def produce(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            producer.produce(TOPIC, json.dumps({**row, "event_ts": row["event_ts"].isoformat()}))
            producer.poll(0)
        producer.flush()

    def append(rows: list[dict[str, Any]]) -> None:
        more = {"event_type": "view", "weight": 1.0}
        table = pa.Table.from_pylist([{**row, **more, "event_date": row["event_ts"].date()} for row in rows], schema=schema)
        tables.append("interactions", spark.createDataFrame(table), {"by": "benchmark"})

    found: dict[str, Any] = {}
    batches: dict[str, list[Any]] = {"kafka": [], "delta": [], "backlog": []}
    with serving(warehouse.options, port, folder / "server.log"):
        delta = config.model_copy(update={"stream": config.stream.model_copy(update={"source": "delta"})})
        for number, (name, of_source, send) in enumerate((("kafka", config, produce), ("delta", delta, append))):
            first = arguments.users // 2 + number * arguments.users // 4
            with streaming(spark, of_source, batches[name]):
                each_second(5, lambda send=send: send(events_of(rng, arguments, [])))  # type: ignore[misc]
                time.sleep(5)  # what is warm by then is warm in production
                with Probes(port, first) as probes:
                    each_second(arguments.seconds, lambda probes=probes, send=send: send(events_of(rng, arguments, probes.new(2))))  # type: ignore[misc]
            found[name] = [*np.percentile(probes.seconds, [50, 95]).round(2).tolist(), probes.lost]
    for _ in range(arguments.backlog // 1000):
        users, items = rng.integers(1, arguments.users, 1000).tolist(), rng.integers(1, arguments.items, 1000).tolist()
        now = dt.datetime.now(dt.UTC)
        produce([{"user_id": user, "item_id": item, "event_ts": now} for user, item in zip(users, items, strict=True)])
    memory: list[float] = []

    def on_batch(batch: Any) -> None:
        batches["backlog"].append(batch)
        memory.append(rss_mb())

    started = time.perf_counter()
    smaller = config.model_copy(update={"stream": config.stream.model_copy(update={"max_events": 10_000})})
    done = run_stream(spark, smaller, available_now=True, trigger_seconds=1.0, stop=threading.Event(), on_batch=on_batch)
    seconds = time.perf_counter() - started
    third = max(len(memory) // 3, 1)
    result = {
        "kafka_p50_s": found["kafka"][0],
        "kafka_p95_s": found["kafka"][1],
        "delta_p50_s": found["delta"][0],
        "delta_p95_s": found["delta"][1],
        "lost": found["kafka"][2] + found["delta"][2],
        "backlog_events_per_s": round(done.events / seconds),
        "rss_growth": round(float(np.mean(memory[-third:]) / np.mean(memory[:third])), 3),
    }
    details = {name: [(batch.n_events, batch.n_users, round(batch.seconds, 2)) for batch in some] for name, some in batches.items()}
    report("freshness", vars(arguments), {"batches": details, "rss_mb": [round(value) for value in memory]}, result)


if __name__ == "__main__":
    main()
