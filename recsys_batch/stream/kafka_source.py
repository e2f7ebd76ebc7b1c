"""Events of a Kafka topic, appended to interactions exactly once: what the stream then refreshes, it finds there as any other's.

Spark keeps the offsets in a checkpoint beside the tables. A batch that is done again after a crash has the same offsets and the same
number, which the commit with its rows names.
"""

import datetime as dt
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from recsys_batch.config import Config
from recsys_batch.dataset.user_events import EVENTS
from recsys_batch.errors import InputMissing, RecsysBatchError, UsageError
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.sources.typed_rows import REASON, ROW
from recsys_batch.spark.executors.changed_events import to_events
from recsys_batch.spark.ingest.pipeline import ITEMS_DECLARED
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import artifact_root
from recsys_batch.storage.filesystems import join, list_entries, read_bytes, remove, write_bytes
from recsys_batch.stream.kafka_messages import parse_messages, split_by_validity
from recsys_batch.stream.refresher import RefreshedBatch
from recsys_batch.stream.run_follower import RunFollower
from recsys_batch.tables.delta_log import batch_metadata, find_last_batch, open_delta_table
from recsys_batch.tables.tombstones import keep_living, read_tombstones

logger = logging.getLogger("recsys_batch.stream")

_POLL_SECONDS = 0.1


class KafkaSource:
    """The topic of a config, and the checkpoint that says how far it was read."""

    def __init__(self, spark: SparkSession, config: Config) -> None:
        """Open the checkpoint, or begin one at the oldest message that the topic keeps.

        Raises:
            InputMissing: the checkpoint is of another topic, or of other tables.
        """
        self._spark, self._config = spark, config
        self._tables = WarehouseTables(spark, config)
        self._ids: IdTypes = self._tables.require_ids()
        self._tables.ensure("rejected", self._ids)
        self._tombstones = read_tombstones(config.paths.warehouse)  # nobody is erased while a stream is at work
        self._checkpoint = join(artifact_root(config.paths.warehouse), "stream", "kafka")
        self._application = self._identify()
        self._pool, self._last_batches = ThreadPoolExecutor(1), dict[str, int | None]()
        declared = self._tables.exists("items") and self._tables.property("items", ITEMS_DECLARED) == "true"
        self._items_folder = self._tables.folder("items") if declared else None
        self._items_version, self._item_ids = -1, pa.array([], self._ids.item_arrow)

    def run(
        self,
        follower: RunFollower,
        after_batch: Callable[[RefreshedBatch | None], None],
        *,
        available_now: bool,
        trigger_seconds: float,
        stop: threading.Event,
    ) -> None:
        """Append micro-batches until ``stop`` is set, or with ``available_now`` until the topic is read to its end.

        Args:
            follower: gives the run whose lists of a micro-batch are made while it is appended.
            after_batch: called after each micro-batch, with it where its lists are committed; what it raises ends the stream, and is
                raised here.

        Raises:
            InputMissing: the topic is gone, or messages that were not read yet.
            RecsysBatchError: no broker answers.
        """
        batch_lock, failures = threading.Lock(), list[BaseException]()

        def handle(batch: DataFrame, number: int) -> None:
            with batch_lock:
                if stop.is_set() and not available_now:
                    # The batch is not done: it is the next stream's first. An interrupt from outside may end in a StackOverflowError.
                    raise RuntimeError("ended")
                try:
                    after_batch(self._handle(batch, number, follower))
                except BaseException as error:
                    failures.append(error)
                    raise RuntimeError("failed") from None

        trigger = {"availableNow": True} if available_now else {"processingTime": f"{round(1000 * trigger_seconds)} milliseconds"}
        writer = self._read_topic().select("topic", "partition", "offset", "value").writeStream.foreachBatch(handle).trigger(**trigger)
        query = writer.option("checkpointLocation", self._open_checkpoint()).start()
        try:
            while query.isActive and not stop.wait(_POLL_SECONDS):
                pass
            _end_between_batches(query, batch_lock)
            query.awaitTermination()
        except PySparkException as error:
            if failures:
                raise failures[0] from None
            if not stop.is_set():
                raise _explain(error, self._config) from None

    def _identify(self) -> str:
        """Read the checkpoint's name of its own, which the commits with its batches give, or give it one."""
        location = join(self._checkpoint, "source.json")
        interactions = str(open_delta_table(self._tables.folder("interactions")).metadata().id)
        ours = {"topic": self._config.stream.topic, "interactions": interactions}
        try:
            found: dict[str, Any] = json.loads(read_bytes(location))
        except FileNotFoundError:
            found = {**ours, "application": f"recsys_batch.kafka/{uuid.uuid4().hex}"}
            write_bytes(location, json.dumps(found, indent=2).encode())
        for key, value in ours.items():
            if found[key] != value:
                text = f"{self._checkpoint} is the checkpoint of {key} {found[key]}, and this stream reads {value}"
                raise InputMissing(f"{text}: name the old one, or remove that folder to read the topic from its beginning")
        return str(found["application"])

    def _open_checkpoint(self) -> str:
        """Give the location of Spark's checkpoint, without what a stream left there that was killed while it wrote its first offsets.

        Spark refuses to begin where half a file of them lies, and no batch has begun before the whole one.
        """
        location = join(self._checkpoint, "spark")
        if not any(entry.name.isdigit() for entry in list_entries(join(location, "offsets"))):
            remove(location)
        return location

    def _read_topic(self) -> DataFrame:
        stream = self._config.stream
        options = {
            "kafka.bootstrap.servers": stream.bootstrap_servers,
            "subscribe": stream.topic,
            "startingOffsets": "earliest",
            "maxOffsetsPerTrigger": str(stream.max_events),
            # A broker that restarts is waited for, a minute in all.
            "kafka.default.api.timeout.ms": "20000",
            "kafka.request.timeout.ms": "15000",
            # What is lost is said, not skipped.
            "failOnDataLoss": "true",
        }
        try:
            return self._spark.readStream.format("kafka").options(**options).load()
        except AnalysisException as error:
            if "kafka" not in str(error).lower():
                raise
            raise UsageError(
                f"this Spark has no source for Kafka, and no jars for it are in {self._config.paths.kafka_jars} (paths.kafka_jars): "
                "run `make kafka-jars`, name them in spark.jars or spark.jars.packages, or submit with spark-submit --packages"
            ) from None

    def _handle(self, batch: DataFrame, number: int, follower: RunFollower) -> RefreshedBatch | None:
        """Append a batch's usable rows to interactions, the others to rejected, and make the lists of its users meanwhile.

        The rows are on the driver for it, ``stream.max_events`` at most.
        """
        rows, n_erased = keep_living(parse_messages(batch.toArrow(), self._ids), self._tombstones, ROW, REASON)
        if n_erased:
            logger.info("left out %d messages of erased users", n_erased)
        usable, rejected = split_by_validity(rows, self._known_items())
        if rejected.num_rows:
            self._append("rejected", self._as_rejected(rejected, number), number)
        if usable.num_rows == 0:
            return None
        refresher = follower.follow()
        appending = self._pool.submit(self._append, "interactions", usable, number)
        try:
            prepared = refresher.make_lists_ahead(to_events(usable, EVENTS.arrow_schema(self._ids)))
        finally:
            appending.result()
        return refresher.commit_ahead(prepared, batch_metadata(self._application, number))

    def _append(self, name: str, rows: pa.Table, number: int) -> None:
        """Append a batch's rows, unless a stream before this one did so and ended before Spark noted it."""
        if name not in self._last_batches:
            self._last_batches[name] = find_last_batch(self._tables.folder(name), self._application)
        last = self._last_batches[name]
        if last is None or last < number:
            self._tables.append_batch(name, self._spark.createDataFrame(rows).coalesce(1), batch_metadata(self._application, number))

    def _known_items(self) -> pa.Array | None:
        """Read the item_ids of the items table, where it has another version than before; None where any item may come."""
        if self._items_folder is None:
            return None
        version = open_delta_table(self._items_folder).version()
        if version != self._items_version:
            rows = self._tables.read("items").select("item_id").toArrow()
            self._items_version, self._item_ids = version, rows["item_id"].combine_chunks()
        return self._item_ids

    def _as_rejected(self, rows: pa.Table, number: int) -> pa.Table:
        schema, n = TABLES["rejected"].arrow_schema(self._ids), len(rows)
        columns = {
            "ingest_id": pa.repeat(f"{self._application}/{number}", n),
            "source": pa.repeat(f"kafka:{self._config.stream.topic}", n),
            "kind": pa.repeat("interactions", n),
            "reason": rows[REASON],
            "row": rows[ROW],
            "rejected_at": pa.repeat(pa.scalar(dt.datetime.now(dt.UTC), schema.field("rejected_at").type), n),
        }
        return pa.table([columns[field.name] for field in schema], schema=schema)


def _end_between_batches(query: StreamingQuery, batch_lock: threading.Lock) -> None:
    """Stop a query while no batch is at work; a batch that begins meanwhile ends it by itself."""
    while query.isActive:
        with batch_lock:
            if not query.status["isTriggerActive"]:
                query.stop()
                return
        time.sleep(_POLL_SECONDS)


def _explain(error: PySparkException, config: Config) -> RecsysBatchError:
    """Say in a sentence what stopped the query."""
    text, stream = str(error), config.stream
    if "UnknownTopicOrPartition" in text:
        return InputMissing(f"Kafka at {stream.bootstrap_servers} has no topic {stream.topic}: make it, or set stream.topic")
    if "DATA_LOSS" in text.upper().replace(" ", "_") or "failOnDataLoss" in text:
        where = f"topic {stream.topic} no longer has messages that were not read yet (retention, or the topic was made anew)"
        return InputMissing(f"{where}: see docs/streaming.md for what to do")
    if "Timeout" in text:
        return RecsysBatchError(f"no broker of Kafka answers at {stream.bootstrap_servers}: is it up? The same command goes on")
    return RecsysBatchError(f"the stream of topic {stream.topic} failed: {text.splitlines()[0]}")
