"""Views in a catalog of what readers see now: they follow the manifest, so that no night has to touch them."""

from pyspark.sql import SparkSession

# run_manifest.newest_published and latest_state_by_run, in SQL: tests/spark/test_views.py holds them to be the same.
_NEWEST = "attempt DESC, coalesce(metrics['event'], 0) DESC"
_RUN = f"SELECT run_id, run_date FROM {{runs}} WHERE status = 'PUBLISHED' ORDER BY published_at DESC, {_NEWEST}, run_id DESC LIMIT 1"
_AUDIT_METRICS = ("user_coverage", "catalogue_coverage", "popular_share", "head_share", "overlap", "score_drift")

VIEWS = {
    "topk_latest": (
        "topk of the run that readers see",
        f"SELECT t.* FROM {{topk}} t JOIN ({_RUN}) r ON t.run_id = r.run_id AND t.run_date = r.run_date",
    ),
    "candidates_latest": (
        "candidates of the run that readers see, one row per user and candidate",
        "SELECT c.run_id, c.user_id, place + 1 AS candidate_rank, item.item_id AS item_id, item.score AS score "
        f"FROM {{candidates}} c JOIN ({_RUN}) r ON c.run_id = r.run_id LATERAL VIEW posexplode(c.items) AS place, item",
    ),
    "run_health": (
        "one row per run: its state, its main values, the gates that refused it",
        "SELECT run_id, run_date, status, attempt, published_at, "
        f"coalesce(run_id = (SELECT run_id FROM ({_RUN})), false) AS is_current, n_users, n_rows, model_version, code_version, "
        "metrics['knn_recall'] AS knn_recall, "
        + ", ".join(f"metrics['audit.{name}'] AS {name}" for name in _AUDIT_METRICS)
        + ", transform(filter(map_keys(metrics), key -> key LIKE 'gate.%' AND metrics[key] = 0), key -> substring(key, 6)) AS refused_by "
        f"FROM (SELECT *, row_number() OVER (PARTITION BY run_id ORDER BY {_NEWEST}) AS age FROM {{runs}}) WHERE age = 1",
    ),
}
"""name -> (comment, query over the tables' names)."""


def create_views(spark: SparkSession, catalog: str) -> None:
    """Create the catalog's views, or bring those of an earlier release up to date.

    ``catalog``: with the schema, as in the config: its tables are there.
    """
    names = {name: f"{catalog}.{name}" for name in ("topk", "candidates", "runs")}
    for name, (comment, query) in VIEWS.items():
        spark.sql(f"CREATE OR REPLACE VIEW {catalog}.{name} COMMENT '{comment}' AS {query.format(**names)}")
