"""The audit: read the night back and hold it against the gates. What fails here is never published."""

from __future__ import annotations

import datetime as dt
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
from recsys_batch.night.incremental.base_run import BaseRun, changed_users_path, list_slice_files, load_base
from recsys_batch.night.open_run import MODEL_METRIC
from recsys_batch.night.run_context import RunContext
from recsys_batch.night.run_store import load_run_rows
from recsys_batch.night.steps.range_tasks import add_range_number, only_changed, read_changed_interactions
from recsys_batch.schemas import ALL_SEGMENTS, spark_ddl
from recsys_batch.spark.executors.verify import COUNTS_SCHEMA, LISTED, VERIFY_COUNTS, BaseRunFiles, VerifyTask, make_verifier
from recsys_batch.storage.filesystems import join, read_parquet
from recsys_batch.tables import run_manifest
from recsys_batch.tables.user_ranges import UserSortedFiles, ranges_of_files

_HEAD = 0.01
"""Share of the catalogue that counts as its head."""


def audit_run(night: RunContext) -> tuple[list[Gate], dict[str, float]]:
    """Every gate with its value, and all that was measured."""
    measured = measure_run(night)
    return evaluate_gates(measured, night.config.audit), measured


def measure_run(night: RunContext) -> dict[str, float]:
    """Read the run's topk back, a range of users at a time beside what the inputs say of these users, and count.

    An incremental night's carried rows are held against the rows of the night they come from, which was audited, and against all
    that happened since; where items were merged into lists, or may be in some only, everybody's rows are verified as new.
    """
    base = load_base(night)
    if base is not None and (len(base.new_items) or (night.config.retrieval.eligibility and not base.same_items)):
        base = None
    topk = night.slice_files("topk")
    bounds = ranges_of_files(topk.parts)
    segments = list(night.config.retrieval.eligibility)
    folder = night.put_folder("audits", lambda target: pq.write_table(_items(night), target / "items.parquet"))
    task = VerifyTask(
        topk=topk,
        shortfalls=night.slice_files("shortfalls"),
        embeddings=night.slice_files("user_embeddings"),
        items=join(folder, "items.parquet"),
        segments=segments,
        default=segments.index(ALL_SEGMENTS) if ALL_SEGMENTS in segments else -1,
        top_k=night.config.scoring.top_k,
        bounds=bounds,
        earlier=_earlier(night, base),
    )
    ranges_alone = night.spark.range(len(bounds)).select(F.col("id").cast("int").alias("range"))
    said = add_range_number(_said(night, base), bounds).unionByName(ranges_alone, allowMissingColumns=True)
    counts = said.repartitionById(len(bounds), "range").mapInArrow(make_verifier(task), spark_ddl(COUNTS_SCHEMA)).toArrow()
    found = {name: float(pc.sum(counts[name]).as_py() or 0) for name in VERIFY_COUNTS}
    if base is not None:
        found["n_known"] += base.run.metrics["audit.n_known"] - found["n_known_before"]
    # Who has seen all there is has no rows, and a shortfall that says so.
    nothing_left = sum(pc.sum(pc.equal(batch["n_items"], 0)).as_py() or 0 for batch in task.shortfalls.batches())
    return {
        **found,
        "user_coverage": (found["n_users"] + nothing_left) / max(found["n_known"], 1.0),
        "knn_recall": night.run.metrics.get("knn_recall", float("nan")),
        "popular_share": found["n_popular"] / max(found["n_users"], 1.0),
        "list_fill": found["n_rows"] / max(found["n_users"] * task.top_k, 1.0),
        "catalogue_coverage": _coverage(counts[LISTED], read_parquet(task.items)),
        "head_share": found["n_head"] / max(found["n_rows"], 1.0),
        **_since_published(night, topk),
        **_input_age(night),
    }


def _coverage(listed: pa.ChunkedArray, items: pa.Table) -> float:
    """Share of available items that some range has listed."""
    bits = [np.frombuffer(mask, dtype=np.uint8) for mask in listed.to_pylist()]
    found = np.unpackbits(np.bitwise_or.reduce(bits), count=len(items)).astype(bool) if bits else np.zeros(len(items), dtype=bool)
    available = np.asarray(items["is_available"].to_numpy(zero_copy_only=False)).astype(bool)
    return float(np.count_nonzero(found & available)) / max(int(np.count_nonzero(available)), 1)


def _earlier(night: RunContext, base: BaseRun | None) -> BaseRunFiles | None:
    if base is None:
        return None
    return BaseRunFiles(base.files(night.table_slice("topk")), base.files(night.table_slice("user_embeddings")), changed_users_path(night))


def _since_published(night: RunContext, topk: UserSortedFiles) -> dict[str, float]:
    """Against the run that readers see; nothing on the first night, or where its rows are gone."""
    run = run_manifest.newest_published(load_run_rows(night.tables))
    if run is None:
        return {}
    found: dict[str, float] = {}
    both = compare_runs(topk, list_slice_files(topk.where, run))
    if both is not None:
        found["overlap"] = float(np.mean(both.jaccard))
        if run.model_version == night.run.model_version:
            found["score_drift"] = population_stability_index(both.now, both.before)
    ours, theirs = (run.metrics.get(MODEL_METRIC) for run in (night.run, run))
    if ours is not None and theirs:
        found["model_metric_ratio"] = ours / theirs
    return found


def _input_age(night: RunContext) -> dict[str, float]:
    """Days from the newest event to the end of the run date; nothing where events have no time."""
    newest = cast("Any", night.read_input("interactions").agg(F.max(F.unix_micros("event_ts"))).head())[0]
    if newest is None:
        return {}
    end = dt.datetime.combine(night.run.run_date + dt.timedelta(days=1), dt.time(), dt.UTC)
    return {"input_age_days": (end.timestamp() - newest / 1e6) / 86_400}


def _said(night: RunContext, base: BaseRun | None) -> DataFrame:
    """user_id, item_id, segment, now, before: an event or a row in users each."""
    events, nothing = night.read_input("interactions"), F.lit(None).cast("string").alias("segment")
    now = F.lit(True).alias("now")
    versions = [(night.run.input_versions, True)]
    if base is None:
        said = events.select("user_id", "item_id", nothing, now, F.lit(False).alias("before"))
    else:
        said = read_changed_interactions(night, base).select("user_id", "item_id", nothing, now, "before")
        versions.append((base.run.input_versions, False))
    for inputs, is_now in versions:
        if "users" in inputs:
            users = night.tables.read("users", inputs["users"])
            users = users if base is None else only_changed(night, users)
            said = said.unionByName(
                users.select(
                    "user_id",
                    F.lit(None).cast(events.schema["item_id"].dataType).alias("item_id"),
                    "segment",
                    F.lit(is_now).alias("now"),
                    F.lit(not is_now).alias("before"),
                )
            )
    return said


def _items(night: RunContext) -> pa.Table:
    """What the items table and the rules over it say, by themselves: the night's own catalogue is not asked."""
    items, rules = night.read_input("items"), night.config.rules
    ruled_out = _holds(rules.blocklist) if rules.blocklist else F.lit(False)
    if rules.max_age_days:
        age = F.datediff(F.lit(night.run.run_date), F.to_date("first_seen_ts"))
        ruled_out = ruled_out | F.coalesce(age > rules.max_age_days, F.lit(True))
    eligible = [_holds(rule).alias(f"eligible {number}") for number, rule in enumerate(night.config.retrieval.eligibility.values())]
    table = items.select("item_id", "is_available", ruled_out.alias("ruled_out"), *eligible).toArrow()
    taken = users_by_item(read_parquet(counts_path(night.root, night.run.run_id)), table["item_id"].combine_chunks())
    head = np.zeros(len(table), dtype=bool)
    head[np.argsort(-taken, kind="stable")[: max(int(len(table) * _HEAD), 1)]] = True
    return table.append_column("is_head", pa.array(head & (taken > 0)))


def _holds(condition: str) -> Column:
    return F.coalesce(F.expr(condition), F.lit(False))
