"""The audit: read a run's rows back, measure them, and hold the values against the gates; what fails is never published.

Called by the runner. The night's own catalogue and executor results are not asked: only the tables and the configuration.
"""

import datetime as dt
from functools import partial, reduce
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recsys_batch.dataset.popularity import counts_path, users_by_item
from recsys_batch.evaluation.drift import compare_runs, population_stability_index
from recsys_batch.night.gates import Gate, evaluate_gates
from recsys_batch.night.incremental import BaseRun, changed_users_path, list_slice_files, load_base
from recsys_batch.night.open_run import MODEL_METRIC
from recsys_batch.night.run_context import RunContext
from recsys_batch.night.run_store import load_run_rows
from recsys_batch.night.steps.range_tasks import add_range_number, only_changed, read_changed_interactions
from recsys_batch.schemas import ALL_SEGMENTS, spark_ddl
from recsys_batch.spark.concurrent_jobs import run_concurrently
from recsys_batch.spark.executors.verify import COUNTS_SCHEMA, LISTED, VERIFY_COUNTS, BaseRunFiles, VerifyTask, make_verifier
from recsys_batch.spark.versions import partition_by_number
from recsys_batch.storage.filesystems import join, read_parquet
from recsys_batch.tables import run_manifest
from recsys_batch.tables.tombstones import read_erasure
from recsys_batch.tables.user_ranges import UserSortedFiles, ranges_of_files

_HEAD = 0.01
"""Share of the catalogue that counts as its head."""


def audit_run(context: RunContext) -> tuple[list[Gate], dict[str, float]]:
    """Audit a run: every gate with its value, and all measured values by name."""
    measured = measure_run(context)
    return evaluate_gates(measured, context.config.audit), measured


def measure_run(context: RunContext) -> dict[str, float]:
    """Measure a run by reading its topk back, a range of users at a time beside what the inputs say of these users.

    An incremental night's carried rows are held against the rows of the night they come from, which was audited, and against all
    that happened since; where items were merged into lists, or may be in some only, everybody's rows are verified as new.
    """
    base = load_base(context)
    if base is not None and (len(base.new_items) or (context.config.retrieval.eligibility and not base.same_items)):
        base = None
    topk = context.slice_files("topk")
    bounds = ranges_of_files(topk.parts)
    segments = list(context.config.retrieval.eligibility)
    folder = context.put_folder("audits", lambda target: pq.write_table(_build_item_flags(context), target / "items.parquet"))
    task = VerifyTask(
        topk=topk,
        shortfalls=context.slice_files("shortfalls"),
        embeddings=context.slice_files("user_embeddings"),
        items=join(folder, "items.parquet"),
        segments=segments,
        default=segments.index(ALL_SEGMENTS) if ALL_SEGMENTS in segments else -1,
        top_k=context.config.scoring.top_k,
        bounds=bounds,
        seen=context.run_artifacts.seen_policy,
        base=_base_run_files(context, base),
    )
    ranges_alone = context.spark.range(len(bounds)).select(F.col("id").cast("int").alias("range"))
    evidence = add_range_number(_collect_evidence(context, base), bounds).unionByName(ranges_alone, allowMissingColumns=True)
    verified = partition_by_number(evidence, len(bounds), "range").mapInArrow(make_verifier(task), spark_ddl(COUNTS_SCHEMA))
    compare, measure_age = partial(_compare_with_published, context, topk), partial(_measure_input_age, context)
    counts, compared, age = run_concurrently(context.spark, verified.toArrow, compare, measure_age)
    totals = {name: float(pc.sum(counts[name]).as_py() or 0) for name in VERIFY_COUNTS}
    if base is not None:
        n_erased = len(read_erasure(context.root, base.run.run_id).get("users", []))
        totals["n_known"] += base.run.metrics["audit.n_known"] - n_erased - totals["n_known_before"]
    # Who has seen all there is has no rows, and a shortfall that says so.
    n_exhausted = sum(pc.sum(pc.equal(batch["n_items"], 0)).as_py() or 0 for batch in task.shortfalls.batches())
    return {
        **totals,
        "user_coverage": (totals["n_users"] + n_exhausted) / max(totals["n_known"], 1.0),
        "knn_recall": context.run.metrics.get("knn_recall", float("nan")),
        "popular_share": totals["n_popular"] / max(totals["n_users"], 1.0),
        "list_fill": totals["n_rows"] / max(totals["n_users"] * task.top_k, 1.0),
        "catalogue_coverage": _measure_coverage(counts[LISTED], read_parquet(task.items)),
        "head_share": totals["n_head"] / max(totals["n_rows"], 1.0),
        **compared,
        **age,
    }


def _measure_coverage(listed: pa.ChunkedArray, items: pa.Table) -> float:
    """Measure the share of available items that are in some user's list."""
    bits = [np.frombuffer(mask, dtype=np.uint8) for mask in listed.to_pylist()]
    is_listed = np.unpackbits(reduce(np.bitwise_or, bits), count=len(items)).astype(bool) if bits else np.zeros(len(items), dtype=bool)
    is_available = np.asarray(items["is_available"].to_numpy(zero_copy_only=False)).astype(bool)
    return float(np.count_nonzero(is_listed & is_available)) / max(int(np.count_nonzero(is_available)), 1)


def _base_run_files(context: RunContext, base: BaseRun | None) -> BaseRunFiles | None:
    if base is None:
        return None
    topk, embeddings = (list_slice_files(context.table_slice(name), base.run) for name in ("topk", "user_embeddings"))
    return BaseRunFiles(topk, embeddings, changed_users_path(context))


def _compare_with_published(context: RunContext, topk: UserSortedFiles) -> dict[str, float]:
    """Measure overlap, score drift and model metric against the published run; empty on the first night, or where its rows are gone."""
    run = run_manifest.newest_published(load_run_rows(context.tables))
    if run is None:
        return {}
    metrics: dict[str, float] = {}
    comparison = compare_runs(topk, list_slice_files(topk.where, run))
    if comparison is not None:
        metrics["overlap"] = float(np.mean(comparison.jaccard))
        if run.model_version == context.run.model_version:
            metrics["score_drift"] = population_stability_index(comparison.now, comparison.before)
    metric_now, metric_published = (run.metrics.get(MODEL_METRIC) for run in (context.run, run))
    if metric_now is not None and metric_published:
        metrics["model_metric_ratio"] = metric_now / metric_published
    return metrics


def _measure_input_age(context: RunContext) -> dict[str, float]:
    """Measure the days from the newest event to the end of the run date; empty where events have no time."""
    newest = cast("Any", context.read_input("interactions").agg(F.max(F.unix_micros("event_ts"))).head())[0]
    if newest is None:
        return {}
    end = dt.datetime.combine(context.run.run_date + dt.timedelta(days=1), dt.time(), dt.UTC)
    return {"input_age_days": (end.timestamp() - newest / 1e6) / 86_400}


def _collect_evidence(context: RunContext, base: BaseRun | None) -> DataFrame:
    """Collect what the inputs say of users: user_id, item_id, segment, now, before; an event or a row in users each.

    Also event_us, where the policy of seen items needs times.
    """
    events, no_segment = context.read_input("interactions"), F.lit(None).cast("string").alias("segment")
    now, times = F.lit(True).alias("now"), ["event_us"] if context.run_artifacts.seen_policy.needs_times else []
    versions = [(context.run.input_versions, True)]
    if base is None:
        events = events.withColumn("event_us", F.unix_micros("event_ts"))
        evidence = events.select("user_id", "item_id", no_segment, now, F.lit(False).alias("before"), *times)
    else:
        evidence = read_changed_interactions(context, base).select("user_id", "item_id", no_segment, now, "before", *times)
        versions.append((base.run.input_versions, False))
    for inputs, is_now in versions:
        if "users" in inputs:
            users = context.tables.read("users", inputs["users"])
            users = users if base is None else only_changed(context, users)
            no_item = F.lit(None).cast(events.schema["item_id"].dataType).alias("item_id")
            profiles = users.select("user_id", no_item, "segment", F.lit(is_now).alias("now"), F.lit(not is_now).alias("before"))
            evidence = evidence.unionByName(profiles, allowMissingColumns=True)
    return evidence


def _build_item_flags(context: RunContext) -> pa.Table:
    """Build the flags of items from the items table and the rules over it alone: the night's own catalogue is not asked."""
    items, rules = context.read_input("items"), context.config.rules
    ruled_out = _is_true(rules.blocklist) if rules.blocklist else F.lit(False)
    if rules.max_age_days:
        age = F.datediff(F.lit(context.run.run_date), F.to_date("first_seen_ts"))
        ruled_out = ruled_out | F.coalesce(age > rules.max_age_days, F.lit(True))
    eligible = [_is_true(rule).alias(f"eligible {number}") for number, rule in enumerate(context.config.retrieval.eligibility.values())]
    table = items.select("item_id", "is_available", ruled_out.alias("ruled_out"), *eligible).toArrow()
    n_users = users_by_item(read_parquet(counts_path(context.root, context.run.run_id)), table["item_id"].combine_chunks())
    head = np.zeros(len(table), dtype=bool)
    head[np.argsort(-n_users, kind="stable")[: max(int(len(table) * _HEAD), 1)]] = True
    return table.append_column("is_head", pa.array(head & (n_users > 0)))


def _is_true(condition: str) -> Column:
    return F.coalesce(F.expr(condition), F.lit(False))
