"""The audit: read the night back and hold it against the gates. What fails here is never published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recsys_batch.artifacts import put_folder
from recsys_batch.config import Audit
from recsys_batch.night.context import Night
from recsys_batch.schemas import ALL_SEGMENTS, spark_ddl
from recsys_batch.slices import parts_of
from recsys_batch.spark import histories
from recsys_batch.spark.carry import Files, Range, ranges
from recsys_batch.spark.verify import COUNTS, COUNTS_SCHEMA, VerifyTask, verifier


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
    """Every gate with its value, and the counts n_users and n_rows."""
    measured = measure(night)
    return gates(measured, night.config.audit), {"n_users": measured["n_users"], "n_rows": measured["n_rows"]}


def gates(measured: Mapping[str, float], limits: Audit) -> list[Gate]:
    """The gates over measured values. Counts of broken rows have no threshold in config: one is one too many."""
    kept_out = ("rows_seen", "rows_unavailable", "rows_ineligible", "rows_ruled_out")
    broken = ("lists_broken", "rows_not_finite", *kept_out, "lists_short_unexplained")
    return [
        *(Gate(name, measured[name], 0.0, at_least=False) for name in broken),
        Gate("user_coverage", measured["user_coverage"], limits.min_user_coverage, at_least=True),
        Gate("knn_recall", measured["knn_recall"], limits.min_recall, at_least=True),
        Gate("popular_share", measured["popular_share"], limits.max_popular_share, at_least=False),
    ]


def measure(night: Night) -> dict[str, float]:
    """Read the run's topk back, a range of users at a time beside what they have seen, and count."""
    topk, shortfalls = (Files(where, parts_of(where)) for where in (night.slice("topk"), night.slice("shortfalls")))
    bounds = ranges(topk.parts)
    segments = list(night.config.retrieval.eligibility)
    folder = put_folder(night.root, "audits", lambda target: pq.write_table(_items(night), target / "items.parquet"))
    task = VerifyTask(
        topk=topk,
        shortfalls=shortfalls,
        items=folder / "items.parquet",
        segments=segments,
        default=segments.index(ALL_SEGMENTS) if ALL_SEGMENTS in segments else -1,
        top_k=night.config.scoring.top_k,
        bounds=bounds,
    )
    users = _known_users(night, bounds).repartitionById(len(bounds), "range")
    counts = users.mapInArrow(verifier(task), spark_ddl(COUNTS_SCHEMA)).toArrow()
    found = {name: float(pc.sum(counts[name]).as_py() or 0) for name in COUNTS}
    # Who has seen all there is has no rows, and a shortfall that says so.
    nothing_left = night.slice_of("shortfalls").where("n_items = 0").count()
    return {
        **found,
        "user_coverage": (found["n_users"] + nothing_left) / max(found["n_known"], 1.0),
        "knn_recall": night.run.metrics.get("knn_recall", float("nan")),
        "popular_share": found["n_popular"] / max(found["n_users"], 1.0),
    }


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


def _known_users(night: Night, bounds: Sequence[Range]) -> DataFrame:
    """range, user_id, seen, segment: everybody with an interaction, an embedding or a row in users; and a row without a user per range."""
    users = histories.seen_items(night.read_input("interactions"))
    users = users.join(night.slice_of("user_embeddings").select("user_id"), "user_id", "full_outer")
    table = night.users_table()
    nobody = F.lit(None).cast("string")
    users = (
        users.withColumn("segment", nobody) if table is None else users.join(table.select("user_id", "segment"), "user_id", "full_outer")
    )
    users = users.select(_range_of(bounds).alias("range"), "user_id", "seen", "segment")
    ranges = night.spark.range(len(bounds)).select(F.col("id").cast("int").alias("range"))
    return users.unionByName(ranges, allowMissingColumns=True)


def _range_of(bounds: Sequence[Range]) -> Column:
    """The place of a user_id's range, by halving."""

    def within(low: int, high: int) -> Column:
        if low == high:
            return F.lit(low)
        middle = (low + high) // 2
        return F.when(F.col("user_id") <= F.lit(bounds[middle][1]), within(low, middle)).otherwise(within(middle + 1, high))

    return within(0, len(bounds) - 1)
