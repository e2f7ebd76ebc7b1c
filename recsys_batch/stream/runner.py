"""Run the stream: one micro-batch after the other, until nothing is left or somebody ends it."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pyspark.sql import SparkSession

from recsys_batch.config import Config
from recsys_batch.storage.file_lock import file_lock, lock_file
from recsys_batch.stream.kafka_source import KafkaSource
from recsys_batch.stream.refresher import RefreshedBatch
from recsys_batch.stream.run_follower import RunFollower

logger = logging.getLogger("recsys_batch.stream")

_POPULAR_SECONDS = 30.0
"""Popular lists move with everybody's events: least seconds between two times that those of refreshed users are made again."""

BatchCallback = Callable[[RefreshedBatch], None]


@dataclass
class StreamSummary:
    """Counts a stream's micro-batches, their events, the users refreshed (each time that they were) and the rows written."""

    batches: int = 0
    events: int = 0
    users: int = 0
    rows: int = 0

    def add(self, batch: RefreshedBatch) -> None:
        self.batches, self.events = self.batches + 1, self.events + batch.n_events
        self.users, self.rows = self.users + batch.n_users, self.rows + batch.n_rows


def run_stream(
    spark: SparkSession,
    config: Config,
    *,
    available_now: bool,
    trigger_seconds: float,
    stop: threading.Event,
    on_batch: BatchCallback = lambda batch: None,
) -> StreamSummary:
    """Refresh the users who did something, until ``stop`` is set, or with ``available_now`` until all is handled that is there.

    A run that is published meanwhile is followed from the next micro-batch on.

    Args:
        trigger_seconds: between the beginnings of two micro-batches, where the first took less.

    Raises:
        Busy: another stream of the warehouse is at work.
        InputMissing: nothing is published, or what the lists rest on is no longer what the night read.
    """
    summary = StreamSummary()
    with file_lock(lock_file(config.paths.warehouse, config.paths.state, "stream.lock"), "a stream of this warehouse", "is at work"):
        _prepare_session(spark)
        follower = RunFollower(spark, config)
        popular_due = time.monotonic() + _POPULAR_SECONDS

        def catch_up(last: RefreshedBatch | None = None) -> None:
            """Report the batch that was refreshed last, and refresh what else has come since."""
            nonlocal popular_due
            while True:
                if last is not None:
                    logger.info("refreshed users=%d events=%d rows=%d seconds=%.1f", last.n_users, last.n_events, last.n_rows, last.seconds)
                    summary.add(last)
                    on_batch(last)
                refresher = follower.follow()
                last = None if stop.is_set() else refresher.refresh(config.stream.max_events)
                if last is None:
                    break
            if time.monotonic() > popular_due:
                refresher.refresh_popular_lists()
                popular_due = time.monotonic() + _POPULAR_SECONDS

        try:
            catch_up()
            if config.stream.source == "kafka":
                source = KafkaSource(spark, config)
                source.run(follower, catch_up, available_now=available_now, trigger_seconds=trigger_seconds, stop=stop)
            while config.stream.source == "delta" and not available_now and not stop.is_set():
                started = time.monotonic()
                catch_up()
                stop.wait(max(trigger_seconds - (time.monotonic() - started), 0.0))
            follower.follow().refresh_popular_lists()
        finally:
            follower.close()
    return summary


def _prepare_session(spark: SparkSession) -> None:
    """Set what makes small jobs cheap: a shuffle, and a look at a table's log, of as many tasks as there are cores."""
    for name in ("spark.sql.shuffle.partitions", "spark.databricks.delta.snapshotPartitions"):
        spark.conf.set(name, spark.sparkContext.defaultParallelism)
