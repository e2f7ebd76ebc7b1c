"""The score step: the ranker's top K of each user's candidates."""

from dataclasses import replace
from functools import partial

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.config import Rules
from recsys_batch.night.incremental import changed_users_path, load_base
from recsys_batch.night.run_context import RunContext, StepResult
from recsys_batch.night.steps.range_tasks import carry_forward_tasks, range_tasks, task_metrics
from recsys_batch.spark.executors.carry_forward import restamp
from recsys_batch.spark.executors.score import SHORT_BY_RULES, ScoringInput, score_range
from recsys_batch.tables.run_manifest import SCORED_BY_ONNX
from recsys_batch.tables.user_ranges import ranges_of_files


def score_candidates(context: RunContext) -> StepResult:
    """Rank every user's candidates, and write the top K of each."""
    task = context.run_artifacts.make_score_task()
    base, candidates = load_base(context), context.slice_files("candidates")
    lists = ScoringInput(candidates, context.slice_files("user_embeddings"))
    if base is None:
        tasks = range_tasks(context, partial(score_range, task, lists), ranges_of_files(candidates.parts))
    else:
        lists = replace(lists, changed=changed_users_path(context), new_items=base.new_items)
        tasks = carry_forward_tasks(context, base, "topk", partial(score_range, task, lists), restamp(task.generated_at))
    written = context.write_slice("topk", *tasks)
    versions, counts = {"topk": written.version}, task_metrics(context, "score", written)
    if task.engine != "none":
        counts[SCORED_BY_ONNX] = float(task.engine == "onnx")
    # Of the lists that are carried, nobody has counted which are short.
    if counts.get(SHORT_BY_RULES) or (base is not None and context.config.rules != Rules()):
        versions["shortfalls"] = context.write_slice("shortfalls", _find_lists_short_by_rules(context)).version
    return StepResult(versions, rows=written.rows, users=sum(part.n_rows for part in candidates.parts), metrics=counts)


def _find_lists_short_by_rules(context: RunContext) -> DataFrame:
    """Find the users with fewer than top K items although there were candidates; returns all rows of shortfalls."""
    rows = context.read_slice("topk").groupBy("user_id").agg(F.count(F.lit(1)).cast("int").alias("n_items"))
    candidates = context.read_slice("candidates").select("user_id", F.size("items").alias("n_candidates"))
    lists = candidates.join(rows, "user_id", "left").fillna(0, "n_items")
    short = lists.where(F.col("n_items") < F.least("n_candidates", F.lit(context.config.scoring.top_k)))
    short = short.select(F.lit(context.run.run_id).alias("run_id"), "user_id", "n_items", F.lit("rules").alias("reason"))
    others = context.read_slice("shortfalls").where(F.col("reason") != "rules").join(short.select("user_id"), "user_id", "left_anti")
    return short.unionByName(others)
