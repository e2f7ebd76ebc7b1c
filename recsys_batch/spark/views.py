"""Views in a catalog of what readers see now: they follow the manifest, so that no night has to touch them."""

from pyspark.sql import SparkSession

from recsys_batch.schemas import TABLES

# run_manifest.newest_published and latest_state_by_run, in SQL: tests/spark/test_views.py holds them to be the same.
_NEWEST = "attempt DESC, coalesce(metrics['event'], 0) DESC"
_RUN = f"SELECT run_id, run_date FROM {{runs}} WHERE status = 'PUBLISHED' ORDER BY published_at DESC, {_NEWEST}, run_id DESC LIMIT 1"
_LIVE_COLUMNS = ", ".join(column.name for column in TABLES["topk_live"].columns)
_AUDIT_METRICS = ("user_coverage", "catalogue_coverage", "popular_share", "head_share", "overlap", "score_drift")

VIEWS = {
    "topk_latest": (
        "topk of the run that readers see",
        f"SELECT t.* FROM {{topk}} t JOIN ({_RUN}) r ON t.run_id = r.run_id AND t.run_date = r.run_date",
    ),
    # read.current_topk in SQL, held to be the same likewise.
    "topk_now": (
        "newest lists of the run that readers see: refreshed by the stream, or else of the night",
        f"WITH published AS ({_RUN}), live AS (SELECT * FROM (SELECT l.*, max(batch_id) OVER (PARTITION BY user_id) AS newest "
        f"FROM {{topk_live}} l JOIN published p ON l.run_id = p.run_id) WHERE batch_id = newest) "
        f"SELECT {_LIVE_COLUMNS} FROM live UNION ALL "
        "SELECT t.*, CAST(NULL AS BIGINT) AS batch_id, CAST(NULL AS TIMESTAMP) AS events_through FROM {topk} t "
        "JOIN published p ON t.run_id = p.run_id AND t.run_date = p.run_date LEFT ANTI JOIN live ON t.user_id = live.user_id",
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

    ``catalog``: with the schema, as in the config: its tables are there, topk_live too.
    """
    names = {name: f"{catalog}.{name}" for name in ("topk", "topk_live", "candidates", "runs")}
    for name, (comment, query) in VIEWS.items():
        spark.sql(f"CREATE OR REPLACE VIEW {catalog}.{name} COMMENT '{comment}' AS {query.format(**names)}")
