"""The index step: build the search index over retrievable items on the driver, and tune it on sampled users."""

import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pyspark.sql import functions as F

from recsys_batch.ann.index import AssignFunction, IndexInfo, build_index
from recsys_batch.ann.search import open_retriever
from recsys_batch.ann.tuning import Tuning, TuningSample, tune
from recsys_batch.config import Retrieval, Scoring
from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.errors import ConfigError, InputMissing
from recsys_batch.night.incremental import load_base
from recsys_batch.night.run_context import RunContext, StepResult
from recsys_batch.spark.concurrent_jobs import run_concurrently
from recsys_batch.spark.executors.assign_lists import assign_in_tasks
from recsys_batch.storage.artifacts import get_pointer
from recsys_batch.tables.list_columns import column_matrix

logger = logging.getLogger("recsys_batch.night")

PARALLEL_ITEMS = 500_000
"""From so many items on, tasks of the cluster assign them to their lists (a million items to 4,000 lists: 10 s on one core)."""

INDEX_METRICS = ("knn_recall", "overfetch", "index_bytes", "nprobe", "nlist", "list_imbalance")
"""What a night that keeps another's index keeps of its metrics."""

_BALANCED = 3.0


@dataclass(frozen=True)
class SampledUsers:
    """Users that recall is measured on: queries float32 [m, d], and rules int64 [m], the number of each user's rule, -1 for none."""

    queries: np.ndarray
    rules: np.ndarray


@dataclass(frozen=True)
class BuiltIndex:
    """The index of a run and how it is searched."""

    info: IndexInfo
    tuning: Tuning

    def to_dict(self) -> dict[str, Any]:
        """Describe the index as the run's pointer "index" does."""
        return {"index": self.info.to_dict(), "tuning": self.tuning.to_dict()}

    def metrics(self) -> dict[str, float]:
        """List the manifest's metrics: the choice, the measured recall, and every point of the curve."""
        chosen = {"nprobe": self.tuning.nprobe, "nlist": self.info.nlist, "list_imbalance": self.info.imbalance}
        metrics = {"knn_recall": self.tuning.knn_recall_at_k, "overfetch": self.tuning.overfetch, "index_bytes": float(self.info.n_bytes)}
        metrics |= {name: float(value) for name, value in chosen.items() if value is not None}
        for point in self.tuning.curve:
            setting = f"nprobe_{point.nprobe}.overfetch_{point.overfetch:g}"
            metrics[f"tuning.recall.{setting}"] = point.knn_recall_at_k
            metrics[f"tuning.seconds_per_1000_users.{setting}"] = point.seconds_per_1000_users
        return metrics


def build_items_index(directory: Path, catalogue: Catalogue, settings: Retrieval, assign_rows: AssignFunction | None) -> IndexInfo:
    """Index the retrievable items of a catalogue."""
    embeddings = np.asarray(catalogue.embeddings)[catalogue.retrievable_codes()]
    info = build_index(embeddings, settings, directory, os.cpu_count() or 1, assign_rows)
    if info.imbalance is not None and info.imbalance > _BALANCED:
        length = f"a scanned list is {info.imbalance:.1f} times as long as the mean (1 is even)"
        logger.warning("the inverted lists are uneven: %s: many items are alike, or retrieval.nlist = %d is too many", length, info.nlist)
    return info


def tune_index(directory: Path, info: IndexInfo, catalogue: Catalogue, sampled: SampledUsers, settings: Retrieval) -> BuiltIndex:
    """Choose how to search an index of a catalogue's retrievable items by the recall that sampled users get."""
    n_threads, retrievable = os.cpu_count() or 1, catalogue.retrievable_codes()
    retriever = open_retriever(directory, info, n_threads=n_threads)
    exact = open_retriever(directory, info.as_exact(), n_threads=n_threads)
    samples = []
    for rule in np.unique(sampled.rules):
        queries, allowed = sampled.queries[sampled.rules == rule], catalogue.eligible_mask(int(rule))[retrievable]
        searches = (retriever, exact) if rule < 0 else (retriever.restrict(allowed), exact.restrict(allowed))
        samples.append(TuningSample(queries, *searches))
    tuning = tune(retriever, samples, settings.n_candidates, settings.target_recall, settings)
    _log_choice(info, tuning)
    return BuiltIndex(info, tuning)


def draw_tuning(tuning: Tuning) -> Figure:
    """Draw recall over nprobe, a line per over-fetch; the choice and the target are marked."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="inverted lists searched (nprobe)", ylabel="recall of sampled users", xscale="log", title="Retrieval tuning"
    )
    for overfetch in sorted({point.overfetch for point in tuning.curve}):
        points = [point for point in tuning.curve if point.overfetch == overfetch]
        axes.plot([p.nprobe for p in points], [p.knn_recall_at_k for p in points], marker="o", label=f"over-fetch {overfetch:g}")
    axes.axhline(tuning.target_recall, linestyle="--", color="grey", label=f"target {tuning.target_recall:g}")
    chosen = f"chosen: {tuning.nprobe} lists, recall {tuning.knn_recall_at_k:.4f}"
    axes.scatter([tuning.nprobe or 0], [tuning.knn_recall_at_k], s=120, facecolors="none", edgecolors="black", zorder=3, label=chosen)
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    return figure


def _log_choice(info: IndexInfo, tuning: Tuning) -> None:
    searched = f", {tuning.nprobe} of {info.nlist} lists searched" if info.nlist else ""
    fetched = f", {tuning.overfetch:g} times as many fetched" if tuning.overfetch > 1 else ""
    shards = f" in {len(info.vectors)} shards" if len(info.vectors) > 1 else ""
    size = f"{info.n_items} items, {info.n_bytes / 2**20:.1f} MiB"
    searches = f"{size}{searched}{fetched}, recall {tuning.knn_recall_at_k:.4f}"
    logger.info("index: %s as %s%s (%s), %s", info.mode, info.storage, shards, info.reason, searches)
    if not tuning.reached:
        wanted = f"retrieval.target_recall = {tuning.target_recall:g}"
        logger.warning("recall %.4f is below %s: retrieval.nprobe is fixed too low", tuning.knn_recall_at_k, wanted)


def index_items(context: RunContext) -> StepResult:
    """Build the run's search index over retrievable items, tuned on sampled users; the run's pointer "index" names its files."""
    catalogue = context.run_artifacts.open_catalogue()
    check_all_candidates(context.config.scoring, len(catalogue.retrievable_codes()))
    base = load_base(context)
    if base is not None and base.same_items:
        context.set_pointer("index", get_pointer(context.root, base.run.run_id, "index"))
        kept = {name: value for name, value in base.run.metrics.items() if name in INDEX_METRICS}
        version = context.run.table_versions["item_embeddings"]
        return StepResult({"index": version}, rows=len(catalogue.retrievable_codes()), users=0, metrics=kept)
    assign_rows = assign_in_tasks(context.spark, context.root, context.run_artifacts.cache) if len(catalogue) >= PARALLEL_ITEMS else None
    settings = context.config.retrieval
    if context.config.scoring.candidates == "all":
        settings = settings.model_copy(update={"mode": "exact"})
    with context.stage_files("indexes") as folder:
        build = partial(build_items_index, folder, catalogue, settings, assign_rows)
        info, sampled = run_concurrently(context.spark, build, partial(_sample_users, context, catalogue))
        built = tune_index(folder, info, catalogue, sampled, settings)
    context.set_pointer("index", built.to_dict())
    if context.run.mlflow_run_id and built.tuning.curve:
        context.registry.log_figure(context.run.mlflow_run_id, draw_tuning(built.tuning), "retrieval_tuning.png")
    version = context.run.table_versions["item_embeddings"]
    return StepResult({"index": version}, rows=built.info.n_items, users=len(sampled.queries), metrics=built.metrics())


def _sample_users(context: RunContext, catalogue: Catalogue) -> SampledUsers:
    """Sample ``retrieval.tuning_users`` users of the run by a hash of their ids.

    Raises:
        InputMissing: no user is embedded.
    """
    sample = context.read_slice("user_embeddings").orderBy(F.xxhash64("user_id"), "user_id").limit(context.config.retrieval.tuning_users)
    table = context.join_segments(sample).orderBy(F.xxhash64("user_id"), "user_id").select("embedding", "segment").toArrow()
    if table.num_rows == 0:
        raise InputMissing(
            f"no user has a positive interaction (weight > data.min_weight = {context.config.data.min_weight:g}), or an embedding that was "
            "registered: ingest interactions first"
        )
    queries, segments = (table[name].combine_chunks() for name in ("embedding", "segment"))
    return SampledUsers(column_matrix(queries), catalogue.rules_by_segment(segments))


def check_all_candidates(scoring: Scoring, n_items: int) -> None:
    """Check that items are few enough where every item is a candidate.

    Raises:
        ConfigError: ``scoring.candidates = all`` with more items than it is meant for.
    """
    if scoring.candidates == "all" and n_items > scoring.all_max_items:
        raise ConfigError(
            f"scoring.candidates = all would rank {n_items} items for every user, more than scoring.all_max_items = "
            f"{scoring.all_max_items}: set scoring.candidates = retrieved, or raise the limit"
        )
