"""Events that keep items out of users' lists, read on the driver: of few items, or of the days in which they cease to count as seen."""

from functools import reduce
from operator import or_

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.dataset.seen_policy import SeenPolicy, make_seen_policy
from recsys_batch.night.run_context import RunContext
from recsys_batch.tables.run_manifest import Run


def collect_seen_pairs(context: RunContext, events: DataFrame) -> pa.Table:
    """Collect user_id, item_id of the rows of interactions that count as seen in this run."""
    policy = context.run_artifacts.seen_policy
    if policy.excludes_all:
        return events.select("user_id", "item_id").distinct().toArrow()
    rows = _collect_events(context, events)
    return rows.filter(pa.array(_mark_seen(policy, rows))).select(["user_id", "item_id"])


def find_users_with_returned_items(context: RunContext, base: Run) -> pa.Array:
    """Find the users who had an event that counted as seen at the date of the run ``base`` and does not at this run's, or the reverse."""
    now, then = context.run_artifacts.seen_policy, make_seen_policy(context.config.retrieval.seen, base.run_date)
    moved = {tuple(sorted(limits)) for limits in zip(now.limits_us.values(), then.limits_us.values(), strict=True) if len(set(limits)) > 1}
    if not moved:
        return pa.array([], type=context.ids.user_arrow)
    when = F.col("event_ts")
    days = [(when > F.timestamp_micros(F.lit(first))) & (when <= F.timestamp_micros(F.lit(last))) for first, last in moved]
    events = context.tables.read("interactions", base.input_versions["interactions"]).where(reduce(or_, days))
    rows = _collect_events(context, events)
    return rows["user_id"].filter(pa.array(_mark_seen(now, rows) != _mark_seen(then, rows))).unique()


def _collect_events(context: RunContext, events: DataFrame) -> pa.Table:
    rows = events.select("user_id", "item_id", F.unix_micros("event_ts").alias("event_us"))
    return context.join_segments(rows).select("user_id", "item_id", "event_us", "segment").toArrow().combine_chunks()


def _mark_seen(policy: SeenPolicy, rows: pa.Table) -> np.ndarray:
    return policy.mark_seen(rows["segment"].combine_chunks(), np.arange(len(rows)), rows["event_us"])
