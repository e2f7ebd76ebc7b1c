"""The audit: read the night back and hold it against the gates. What fails here is never published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recsys_batch.artifacts import pointed, put_folder
from recsys_batch.config import Audit
from recsys_batch.night.context import Night
from recsys_batch.night.incremental import Base, changed_file, recorded_base
from recsys_batch.night.passes import interactions_of, of_changed, with_range
from recsys_batch.ranges import ranges
from recsys_batch.schemas import ALL_SEGMENTS, spark_ddl
from recsys_batch.spark.verify import COUNTS, COUNTS_SCHEMA, Earlier, VerifyTask, verifier


@dataclass(frozen=True)
class Gate:
    """One check: ``value`` must be at least (or at most) ``threshold``."""

    name: str
    value: float
    threshold: float
    at_least: bool

    @property
    def passed(self) -> bool:
        # A NaN compares false both ways, so an undefined value fails its gate.
        return self.value >= self.threshold if self.at_least else self.value <= self.threshold

    def sentence(self) -> str:
        return f"{self.name} is {self.value:.6g}, {'at least' if self.at_least else 'at most'} {self.threshold:.6g} is required"


def audit(night: Night) -> tuple[list[Gate], dict[str, float]]:
    """Every gate with its value, and the counts n_users, n_rows and n_known."""
    measured = measure(night)
    return gates(measured, night.config.audit), {name: measured[name] for name in ("n_users", "n_rows", "n_known")}


def gates(measured: Mapping[str, float], limits: Audit) -> list[Gate]:
    """The gates over measured values. Counts of broken rows have no threshold in config: one is one too many."""
    kept_out = ("rows_seen", "rows_unavailable", "rows_ineligible", "rows_ruled_out", "rows_not_carried")
    broken = ("lists_broken", "rows_not_finite", *kept_out, "lists_short_unexplained")
    return [
        *(Gate(name, measured[name], 0.0, at_least=False) for name in broken),
        Gate("user_coverage", measured["user_coverage"], limits.min_user_coverage, at_least=True),
        Gate("knn_recall", measured["knn_recall"], limits.min_recall, at_least=True),
        Gate("popular_share", measured["popular_share"], limits.max_popular_share, at_least=False),
    ]


def measure(night: Night) -> dict[str, float]:
    """Read the run's topk back, a range of users at a time beside what the inputs say of these users, and count.

    An incremental night's carried rows are held against the rows of the night they come from, which was audited, and against all
    that happened since; where items were merged into lists, or may be in some only, everybody's rows are verified as new.
    """
    base = recorded_base(night)
    if base is not None and (len(base.gained) or (night.config.retrieval.eligibility and not base.same_items)):
        base = None
    topk = night.files("topk")
    bounds = ranges(topk.parts)
    segments = list(night.config.retrieval.eligibility)
    folder = put_folder(night.root, "audits", lambda target: pq.write_table(_items(night), target / "items.parquet"))
    night.point("audit", {"items": folder.name})
    task = VerifyTask(
        topk=topk,
        shortfalls=night.files("shortfalls"),
        embeddings=night.files("user_embeddings"),
        items=folder / "items.parquet",
        segments=segments,
        default=segments.index(ALL_SEGMENTS) if ALL_SEGMENTS in segments else -1,
        top_k=night.config.scoring.top_k,
        bounds=bounds,
        earlier=_earlier(night, base, folder.name),
    )
    ranges_alone = night.spark.range(len(bounds)).select(F.col("id").cast("int").alias("range"))
    said = with_range(_said(night, base), bounds).unionByName(ranges_alone, allowMissingColumns=True)
    counts = said.repartitionById(len(bounds), "range").mapInArrow(verifier(task), spark_ddl(COUNTS_SCHEMA)).toArrow()
    found = {name: float(pc.sum(counts[name]).as_py() or 0) for name in COUNTS}
    if base is not None:
        found["n_known"] += base.run.metrics["audit.n_known"] - found["n_known_before"]
    # Who has seen all there is has no rows, and a shortfall that says so.
    nothing_left = sum(pc.sum(pc.equal(batch["n_items"], 0)).as_py() or 0 for batch in task.shortfalls.batches())
    return {
        **found,
        "user_coverage": (found["n_users"] + nothing_left) / max(found["n_known"], 1.0),
        "knn_recall": night.run.metrics.get("knn_recall", float("nan")),
        "popular_share": found["n_popular"] / max(found["n_users"], 1.0),
    }


def _earlier(night: Night, base: Base | None, items: str) -> Earlier | None:
    if base is None:
        return None
    topk, embeddings = (base.files(night.slice(name)) for name in ("topk", "user_embeddings"))
    return Earlier(topk, embeddings, changed_file(night), pointed(night.root, base.run.run_id, "audit")["items"] == items)


def _said(night: Night, base: Base | None) -> DataFrame:
    """user_id, item_id, segment, now, before: an event or a row in users each."""
    events, nothing = night.read_input("interactions"), F.lit(None).cast("string").alias("segment")
    now = F.lit(True).alias("now")
    versions = [(night.run.input_versions, True)]
    if base is None:
        said = events.select("user_id", "item_id", nothing, now, F.lit(False).alias("before"))
    else:
        said = interactions_of(night, base).select("user_id", "item_id", nothing, now, "before")
        versions.append((base.run.input_versions, False))
    for inputs, is_now in versions:
        if "users" in inputs:
            users = night.tables.read("users", inputs["users"])
            users = users if base is None else of_changed(night, users)
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


def _items(night: Night) -> pa.Table:
    """What the items table and the rules over it say, by themselves: the night's own catalogue is not asked."""
    items, rules = night.read_input("items"), night.config.rules
    ruled_out = _holds(rules.blocklist) if rules.blocklist else F.lit(False)
    if rules.max_age_days:
        age = F.datediff(F.lit(night.run.run_date), F.to_date("first_seen_ts"))
        ruled_out = ruled_out | F.coalesce(age > rules.max_age_days, F.lit(True))
    eligible = [_holds(rule).alias(f"eligible {number}") for number, rule in enumerate(night.config.retrieval.eligibility.values())]
    return items.select("item_id", "is_available", ruled_out.alias("ruled_out"), *eligible).toArrow()


def _holds(condition: str) -> Column:
    return F.coalesce(F.expr(condition), F.lit(False))
