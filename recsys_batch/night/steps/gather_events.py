"""Gather what is known of users by ranges of user_id: the one time in a night that events are shuffled. Called by the embed step."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recsys_batch.dataset.user_events import EVENTS, USERS, VECTORS, UserEvents
from recsys_batch.night.incremental import BaseRun
from recsys_batch.night.run_context import RunContext
from recsys_batch.night.steps.range_tasks import add_range_number, only_changed, read_changed_interactions
from recsys_batch.night.task_sizing import count_user_tasks, count_users_per_task
from recsys_batch.schemas import TableSpec
from recsys_batch.spark import item_catalogue
from recsys_batch.spark.concurrent_jobs import run_concurrently
from recsys_batch.spark.versions import partition_by_number
from recsys_batch.tables.user_ranges import ranges_from_cuts

_EVENTS_PER_TASK = 3_000_000  # about 100 MB in a Python worker
_BYTES_PER_STEP = 8 * 2**20  # of interactions: one user in so many such steps is sampled, which is tens of thousands at any size


def gather_all(context: RunContext) -> UserEvents:
    """Gather all users' events, profiles and imported vectors, for a full night."""
    events = context.read_input("interactions").select(
        "user_id", "item_id", F.unix_micros("event_ts").alias("event_us"), "weight", F.lit(False).alias("before")
    )
    users, vectors = context.users_table(), None
    profiles = None if users is None else _current_profiles(users)
    if context.bundle.kind == "embeddings":
        vectors = item_catalogue.read_imported_users(context.spark, context.bundle, context.root)
    cuts = _choose_cuts(context, [rows for rows in (events, profiles, vectors) if rows is not None])
    return _write_gathered(context, cuts, events, profiles, vectors)


def gather_changed(context: RunContext, base: BaseRun) -> UserEvents:
    """Gather the events, profiles and imported vectors of users whom an incremental night computes again."""
    per_task = count_users_per_task(context.config.retrieval.n_candidates, context.bundle.embedding_dim)
    n = count_user_tasks(len(base.changed), per_task, context.spark.sparkContext.defaultParallelism)
    cut_rows = np.unique(np.linspace(-1, len(base.changed) - 1, n + 1).astype(np.int64)[1:])
    cuts = base.changed.take(pa.array(cut_rows[cut_rows >= 0])).to_pylist()
    vectors = None
    if context.bundle.kind == "embeddings":
        vectors = only_changed(context, item_catalogue.read_imported_users(context.spark, context.bundle, context.root))
    return _write_gathered(context, cuts, read_changed_interactions(context, base), _changed_profiles(context, base), vectors)


def _write_gathered(
    context: RunContext, cuts: list[Any], events: DataFrame, profiles: DataFrame | None, vectors: DataFrame | None
) -> UserEvents:
    bounds = ranges_from_cuts(cuts)

    def write(spec: TableSpec, rows: DataFrame) -> list[dict[str, Any]]:
        by_range = partition_by_number(add_range_number(rows, bounds), len(bounds), "range").sortWithinPartitions("user_id")
        return [asdict(part) for part in context.write_gathered(spec, by_range).parts]

    kinds = [(spec, rows) for spec, rows in ((EVENTS, events), (USERS, profiles), (VECTORS, vectors)) if rows is not None]
    written = run_concurrently(context.spark, *(partial(write, spec, rows) for spec, rows in kinds))
    parts = dict.fromkeys((EVENTS.name, USERS.name, VECTORS.name)) | {
        spec.name: part for (spec, _), part in zip(kinds, written, strict=True)
    }
    context.set_pointer("gathered", {"cuts": cuts, **parts})
    return context.run_artifacts.load_user_events()


def _choose_cuts(context: RunContext, sources: Sequence[DataFrame]) -> list[Any]:
    """Choose the last users of ranges with about as much work each, from a sample by a hash of user_id and its numbers of events."""
    one_in = max(1, context.tables.n_bytes("interactions") // _BYTES_PER_STEP)
    kinds = ((rows, "item_id" in rows.columns) for rows in sources)
    rows = reduce(DataFrame.unionAll, (rows.select("user_id", F.lit(int(events)).alias("n")) for rows, events in kinds))
    sampled = rows.where(F.pmod(F.xxhash64("user_id"), F.lit(one_in)) == 0).groupBy("user_id").agg(F.sum("n").alias("n")).toArrow()
    if sampled.num_rows == 0:
        return []
    sampled = sampled.sort_by("user_id")
    n_events = np.asarray(sampled["n"], dtype=np.float64)
    n_cores = context.spark.sparkContext.defaultParallelism
    per_task = count_users_per_task(context.config.retrieval.n_candidates, context.bundle.embedding_dim)
    n = count_user_tasks(one_in * len(sampled), per_task, n_cores)
    n = max(n, n_cores * math.ceil(one_in * n_events.sum() / (_EVENTS_PER_TASK * n_cores)))
    work = np.cumsum(1 / len(sampled) + n_events / max(n_events.sum(), 1.0))
    cut_rows = np.searchsorted(work, work[-1] * np.arange(1, n + 1) / n)
    return list(pc.unique(sampled["user_id"].take(pa.array(np.minimum(cut_rows, len(sampled) - 1)))).to_pylist())


def _changed_profiles(context: RunContext, base: BaseRun) -> DataFrame | None:
    """Read rows of USERS of the changed users: as they are, and the segment that they had."""
    versions = [inputs.get("users") for inputs in (context.run.input_versions, base.run.input_versions)]
    now, then = (only_changed(context, context.tables.read("users", version)) if version is not None else None for version in versions)
    if now is not None and then is None:
        return _current_profiles(now)
    if then is None:
        return None
    before = then.select("user_id", F.col("segment").alias("segment_before"))
    if now is None:
        no_profile = [_null("string").alias("segment"), _null("map<string,string>").alias("attributes"), F.lit(False).alias("in_users")]
        return before.select("user_id", *no_profile, "segment_before")
    joined = now.withColumn("in_users", F.lit(True)).join(before, "user_id", "full_outer").fillna(False, ["in_users"])
    return joined.select("user_id", "segment", "attributes", "in_users", "segment_before")


def _current_profiles(users: DataFrame) -> DataFrame:
    return users.select("user_id", "segment", "attributes", F.lit(True).alias("in_users"), _null("string").alias("segment_before"))


def _null(kind: str) -> Column:
    return F.lit(None).cast(kind)
