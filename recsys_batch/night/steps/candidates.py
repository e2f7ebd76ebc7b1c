"""The candidates step: every known user's candidates, and the users who got fewer than wanted."""

from collections.abc import Callable
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.config import Config
from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.night.incremental import BaseRun, changed_users_path, load_base
from recsys_batch.night.run_context import RunContext, StepResult
from recsys_batch.night.seen_events import collect_seen_pairs
from recsys_batch.night.steps.range_tasks import carry_forward_tasks, range_tasks, task_metrics
from recsys_batch.schemas import ALL_SEGMENTS, TABLES
from recsys_batch.spark.executors.carry_forward import BatchChange
from recsys_batch.spark.executors.new_items import NewItems
from recsys_batch.spark.executors.retrieve import SHORT, RetrievalInput, count_short_lists, retrieve_range
from recsys_batch.storage.filesystems import join, read_parquet
from recsys_batch.tables.delta_log import list_data_files
from recsys_batch.tables.user_ranges import LIST_ROWS, UserRange


def retrieve_candidates(context: RunContext) -> StepResult:
    """Retrieve every known user's candidates, and list the users who got fewer than wanted."""
    catalogue = context.run_artifacts.open_catalogue()
    base, user_events = load_base(context), context.run_artifacts.load_user_events()
    inputs = RetrievalInput(user_events, context.slice_files("user_embeddings"), None if base is None else changed_users_path(context))
    rows = partial(retrieve_range, context.run_artifacts.make_retrieve_task(_read_popular_lists(context)), inputs)
    if base is None:
        tasks, function = range_tasks(context, rows, user_events.bounds)
    else:
        tasks, function = carry_forward_tasks(context, base, "candidates", rows, _insert_new_items(context, base, catalogue), LIST_ROWS)
    commits = {"candidates": context.write_slice("candidates", tasks, count_short_lists(function, _n_required(context.config)))}
    # Counted while they were written: reading all of them again takes as long as a fifth of the search.
    if commits["candidates"].counts.get(SHORT):
        commits["shortfalls"] = context.write_slice("shortfalls", _find_shortfalls(context))
    else:
        commits["shortfalls"] = context.write_driver_rows("shortfalls", TABLES["shortfalls"].arrow_schema(context.ids).empty_table())
    users, versions = commits["candidates"].rows, {name: part.version for name, part in commits.items()}
    metrics = {"n_shortfalls": float(commits["shortfalls"].rows), **task_metrics(context, "candidates", commits["candidates"])}
    return StepResult(versions, rows=users, users=users, metrics=metrics)


def _read_popular_lists(context: RunContext) -> pa.Table:
    """Read the run's rows of popular, best first within each segment."""
    popular = context.table_slice("popular")
    files = (read_parquet(join(popular.root, part.path)).cast(popular.schema) for part in list_data_files(popular))
    return pa.concat_tables([popular.schema.empty_table(), *files]).sort_by([("segment", "ascending"), ("rank", "ascending")])


def _insert_new_items(context: RunContext, base: BaseRun, catalogue: Catalogue) -> Callable[[UserRange], BatchChange] | None:
    """Make the change that puts new items into carried lists; None where no item is new."""
    if len(base.new_items) == 0:
        return None
    new_ids = context.spark.createDataFrame(pa.table({"item_id": base.new_items}))
    events = context.read_input("interactions").join(F.broadcast(new_ids), "item_id", "left_semi")
    seen = collect_seen_pairs(context, events)
    folder = context.put_folder("changed", lambda target: pq.write_table(seen, target / "seen.parquet"))
    return NewItems(
        codes=catalogue.codes(base.new_items),
        catalogue_dir=context.run_artifacts.catalogue_dir,
        cosine=context.config.retrieval.metric == "cosine",
        n_candidates=context.run_artifacts.count_candidates(catalogue),
        seen=join(folder, "seen.parquet"),
        embeddings=context.slice_files("user_embeddings"),
        cache=context.run_artifacts.cache,
    ).insert_into


def _n_required(config: Config) -> int:
    """Count the candidates that a list needs not to be short; where all items are scored, as many as the top K."""
    return config.scoring.top_k if config.scoring.candidates == "all" else config.retrieval.n_candidates


def _find_shortfalls(context: RunContext) -> DataFrame:
    """Find the users who got fewer candidates than wanted, and why."""
    retrieval = context.config.retrieval
    short = context.read_slice("candidates").where(F.size("items") < _n_required(context.config))
    short = context.join_segments(short.select("run_id", "user_id", F.size("items").cast("int").alias("n_items")))
    named = [segment for segment in retrieval.eligibility if segment != ALL_SEGMENTS]
    ruled = F.lit(True) if ALL_SEGMENTS in retrieval.eligibility else F.coalesce(F.col("segment").isin(named), F.lit(False))
    reason = F.when(ruled, "eligible_exhausted").otherwise("catalogue_exhausted")
    return short.select("run_id", "user_id", "n_items", reason.alias("reason"))
