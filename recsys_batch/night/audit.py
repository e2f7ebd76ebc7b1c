"""The audit: read the night back and hold it against the gates. What fails here is never published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.config import Audit
from recsys_batch.night.context import Night
from recsys_batch.schemas import ALL_SEGMENTS


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
    """Read the run's topk back and count."""
    topk, top_k = night.slice_of("topk"), night.config.scoring.top_k
    lists = _lists(topk).join(night.slice_of("shortfalls").select("user_id", "n_items"), "user_id", "left")
    per_user = _row(
        lists.agg(
            F.count(F.lit(1)).alias("n_users"),
            F.sum("n_rows").alias("n_rows"),
            F.count_if("broken").alias("lists_broken"),
            F.sum("not_finite").alias("rows_not_finite"),
            F.count_if((F.col("n_rows") < top_k) & (F.coalesce("n_items", F.lit(-1)) != F.col("n_rows"))).alias("lists_short_unexplained"),
            F.count_if("popular").alias("popular"),
        )
    )
    n_users = float(per_user["n_users"])
    shared = max(n_users, 1.0)
    # Who has seen all there is has no rows, and a shortfall that says so.
    nothing_left = night.slice_of("shortfalls").where("n_items = 0").count()
    return {
        **{name: float(per_user[name] or 0) for name in ("n_rows", "lists_broken", "rows_not_finite", "lists_short_unexplained")},
        "n_users": n_users,
        "rows_seen": float(_seen_rows(night, topk)),
        "rows_unavailable": float(_unavailable_rows(night, topk)),
        "rows_ineligible": float(_ineligible_rows(night, topk)),
        "rows_ruled_out": float(_ruled_out_rows(night, topk)),
        "user_coverage": (n_users + nothing_left) / max(_known_users(night), 1),
        "knn_recall": night.run.metrics.get("knn_recall", float("nan")),
        "popular_share": float(per_user["popular"]) / shared,
    }


def _lists(topk: DataFrame) -> DataFrame:
    """One row per user: n_rows, broken (ranks not 1..n, an item twice, or scores that rise), not_finite, popular."""
    by_rank = F.sort_array(F.collect_list(F.struct("rank", "score")))
    grouped = topk.groupBy("user_id").agg(
        F.count(F.lit(1)).alias("n_rows"),
        F.count_distinct("item_id").alias("n_items_distinct"),
        by_rank.alias("ranked"),
        F.count_if(F.isnan("score") | F.col("score").isNull() | (F.abs("score") == float("inf"))).alias("not_finite"),
        (F.min("source") == "popular").alias("popular"),
    )
    scores, ranks = F.col("ranked.score"), F.col("ranked.rank")
    falling = scores == F.sort_array(scores, asc=False)
    counted = ranks == F.sequence(F.lit(1), F.col("n_rows").cast("int"))
    broken = ~counted | ~falling | (F.col("n_items_distinct") != F.col("n_rows"))
    return grouped.select("user_id", "n_rows", broken.alias("broken"), "not_finite", "popular")


def _seen_rows(night: Night, topk: DataFrame) -> int:
    seen = night.read_input("interactions").select("user_id", "item_id")
    return topk.join(seen, ["user_id", "item_id"], "left_semi").count()


def _unavailable_rows(night: Night, topk: DataFrame) -> int:
    available = night.read_input("items").where("is_available").select("item_id")
    return topk.join(available, "item_id", "left_anti").count()


def _ineligible_rows(night: Night, topk: DataFrame) -> int:
    """Rows of items that the rule of the user's segment does not allow, by the rules themselves."""
    rules = night.config.retrieval.eligibility
    if not rules:
        return 0
    users = night.users_table()
    rows = topk.select("user_id", "item_id")
    rows = rows.withColumn("segment", F.lit(None)) if users is None else rows.join(users.select("user_id", "segment"), "user_id", "left")
    rule = F.when(F.coalesce(F.col("segment").isin(list(rules)), F.lit(False)), F.col("segment")).otherwise(F.lit(ALL_SEGMENTS))
    held_out = None
    for segment, condition in rules.items():
        banned = night.read_input("items").where(~F.coalesce(F.expr(condition), F.lit(False)))
        banned = banned.select("item_id", F.lit(segment).alias("rule"))
        held_out = banned if held_out is None else held_out.unionByName(banned)
    return rows.withColumn("rule", rule).join(cast("Any", held_out), ["item_id", "rule"], "left_semi").count()


def _ruled_out_rows(night: Night, topk: DataFrame) -> int:
    """Rows of items that the blocklist or the age limit keeps out, by the rules themselves."""
    rules = night.config.rules
    out = F.coalesce(F.expr(rules.blocklist), F.lit(False)) if rules.blocklist else F.lit(False)
    if rules.max_age_days:
        age = F.datediff(F.lit(night.run.run_date), F.to_date("first_seen_ts"))
        out = out | F.coalesce(age > rules.max_age_days, F.lit(True))
    elif not rules.blocklist:
        return 0
    return topk.join(night.read_input("items").where(out).select("item_id"), "item_id", "left_semi").count()


def _known_users(night: Night) -> int:
    users = night.read_input("interactions").select("user_id").unionByName(night.slice_of("user_embeddings").select("user_id"))
    table = night.users_table()
    if table is not None:
        users = users.unionByName(table.select("user_id"))
    return users.distinct().count()


def _row(df: DataFrame) -> Any:
    return cast("Any", df.head())
