"""The candidates step: every known user's candidates, and who came short."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.config import Config
from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.dataset.popularity import group_by_segment
from recsys_batch.night.incremental.base_run import BaseRun, changed_users_path, load_base
from recsys_batch.night.run_context import RunContext
from recsys_batch.night.steps.gather_events import load_user_events
from recsys_batch.night.steps.range_tasks import carry_forward_tasks, join_segments, range_tasks, task_metrics
from recsys_batch.night.steps.step_result import StepResult
from recsys_batch.schemas import ALL_SEGMENTS, TABLES
from recsys_batch.spark.executors.carry_forward import BatchChange, NewItems
from recsys_batch.spark.executors.retrieve import SHORT, RetrievalInput, RetrieveTask, count_short_lists, retrieve_range
from recsys_batch.storage.filesystems import join, read_parquet
from recsys_batch.tables.delta_log import list_data_files
from recsys_batch.tables.user_ranges import LIST_ROWS, UserRange


def retrieve_candidates(night: RunContext) -> StepResult:
    """Every known user's candidates, then who came short."""
    catalogue = night.open_catalogue()
    base, gathered = load_base(night), load_user_events(night)
    known = RetrievalInput(gathered, night.slice_files("user_embeddings"), None if base is None else changed_users_path(night))
    rows = partial(retrieve_range, _retrieve_task(night, catalogue), known)
    if base is None:
        tasks, function = range_tasks(night, rows, gathered.bounds)
    else:
        tasks, function = carry_forward_tasks(night, base, "candidates", rows, _gained_items(night, base, catalogue), LIST_ROWS)
    written = {"candidates": night.write_slice("candidates", tasks, count_short_lists(function, _n_wanted(night.config)))}
    # Counted while they were written: reading all of them again takes as long as a fifth of the search.
    if written["candidates"].counts.get(SHORT):
        written["shortfalls"] = night.write_slice("shortfalls", _shortfalls(night))
    else:
        written["shortfalls"] = night.write_driver_rows("shortfalls", TABLES["shortfalls"].arrow_schema(night.ids).empty_table())
    users, versions = written["candidates"].rows, {name: one.version for name, one in written.items()}
    metrics = {"n_shortfalls": float(written["shortfalls"].rows), **task_metrics(night, "candidates", written["candidates"])}
    return StepResult(versions, rows=users, users=users, metrics=metrics)


def _retrieve_task(night: RunContext, catalogue: Catalogue) -> RetrieveTask:
    pointer = night.get_pointer("index")
    where = night.table_slice("popular")
    files = (read_parquet(join(where.root, part.path)).cast(where.schema) for part in list_data_files(where))
    table = pa.concat_tables([where.schema.empty_table(), *files])
    table = table.sort_by([("segment", "ascending"), ("rank", "ascending")])
    return RetrieveTask(
        run_id=night.run.run_id,
        ids=night.ids,
        catalogue_dir=night.catalogue_dir,
        index_dir=join(night.root, "indexes"),
        index=pointer["index"],
        nprobe=pointer["tuning"]["nprobe"],
        overfetch=pointer["tuning"]["overfetch"],
        n_candidates=_n_candidates(night.config, catalogue),
        popular=group_by_segment(table, catalogue),
        cache=night.cache,
    )


def _gained_items(night: RunContext, base: BaseRun, catalogue: Catalogue) -> Callable[[UserRange], BatchChange] | None:
    """How the lists that are carried get the items that are new; None where none is."""
    if len(base.new_items) == 0:
        return None
    ids = night.spark.createDataFrame(pa.table({"item_id": base.new_items}))
    seen = night.read_input("interactions").join(F.broadcast(ids), "item_id", "left_semi").select("user_id", "item_id").distinct().toArrow()
    folder = night.put_folder("changed", lambda target: pq.write_table(seen, target / "seen.parquet"))
    return NewItems(
        codes=catalogue.codes(base.new_items),
        catalogue_dir=night.catalogue_dir,
        cosine=night.config.retrieval.metric == "cosine",
        n_candidates=_n_candidates(night.config, catalogue),
        seen=join(folder, "seen.parquet"),
        embeddings=night.slice_files("user_embeddings"),
        cache=night.cache,
    ).insert_into


def _n_candidates(config: Config, catalogue: Catalogue) -> int:
    """Items of the longest list."""
    return len(catalogue.retrievable_codes()) if config.scoring.candidates == "all" else config.retrieval.n_candidates


def _n_wanted(config: Config) -> int:
    """Candidates that leave nothing to explain; where all items are scored, as many as the top K needs."""
    return config.scoring.top_k if config.scoring.candidates == "all" else config.retrieval.n_candidates


def _shortfalls(night: RunContext) -> DataFrame:
    """Who got fewer candidates than wanted, and why."""
    retrieval = night.config.retrieval
    short = night.read_slice("candidates").where(F.size("items") < _n_wanted(night.config))
    short = short.select("run_id", "user_id", F.size("items").cast("int").alias("n_items"))
    short = join_segments(short, night, "left")
    named = [segment for segment in retrieval.eligibility if segment != ALL_SEGMENTS]
    ruled = F.lit(True) if ALL_SEGMENTS in retrieval.eligibility else F.coalesce(F.col("segment").isin(named), F.lit(False))
    reason = F.when(ruled, "eligible_exhausted").otherwise("catalogue_exhausted")
    return short.select("run_id", "user_id", "n_items", reason.alias("reason"))
