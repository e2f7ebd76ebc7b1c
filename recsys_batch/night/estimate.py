"""Estimate of a night's candidates step from sizes, settings and a short trial, before anything runs: `candidates --dry-run`."""

import datetime as dt
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from recsys_batch.ann.index import Layout, build_index, choose_layout, choose_nlist
from recsys_batch.ann.search import open_retriever
from recsys_batch.ann.tuning import Tuning
from recsys_batch.config import Config
from recsys_batch.dataset.catalogue import open_catalogue
from recsys_batch.errors import InputMissing
from recsys_batch.night.run_store import load_run_rows
from recsys_batch.night.task_sizing import count_user_tasks, count_users_per_task
from recsys_batch.registry.mlflow_registry import ModelRegistry
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import artifact_root, catalogue_folder, get_pointer
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables import run_manifest

_TRIAL_ITEMS = 50_000
_TRIAL_USERS = 1_000
_SECONDS_PER_CANDIDATE = 4.0e-7  # of a core, for Spark, Arrow and Delta around the search: benchmarks/results/retrieval.json
_FIXED_SECONDS = 10.0  # joins, popular lists and commits, with a JVM that is not warm yet
_WORKER_BYTES = 220 * 2**20  # a Python worker with Arrow, numpy and faiss loaded, before any index


@dataclass(frozen=True)
class NightEstimate:
    """Size, memory and time of one candidates step.

    Attributes:
        n_users: known users, about where no embeddings are written yet.
        index_bytes: files of the index.
        worker_bytes: one Python worker's own memory, without what workers share.
        shared_bytes: item vectors in the page cache, once per node for all its workers.
        n_tasks, users_per_task: how users are divided.
        n_cores: tasks at a time.
        seconds: the step's, without the start of the session.
        basis: what the seconds rest on.
    """

    n_users: int
    n_items: int
    embedding_dim: int
    n_candidates: int
    layout: Layout
    index_bytes: int
    worker_bytes: int
    shared_bytes: int
    n_tasks: int
    users_per_task: int
    n_cores: int
    seconds: float
    basis: str


def estimate_night(spark: SparkSession, config: Config, run_date: dt.date, run_id: str | None = None) -> NightEstimate:
    """Estimate the candidates step of the date's newest run (or of ``run_id``); where none has begun, of one that would begin now.

    Raises:
        InputMissing: nothing ingested, no model, or no such run.
    """
    tables = WarehouseTables(spark, config)
    tables.require_ids()
    states = run_manifest.latest_state_by_run(load_run_rows(tables))
    run = run_manifest.find_run(states, run_date, run_id)
    if run_id and run is None:
        raise InputMissing(f"there is no run {run_id}: see `recsys-batch status`")
    table_versions = run.table_versions if run else {}
    root = artifact_root(config.paths.warehouse)
    if run and "user_embeddings" in table_versions:
        n_users = int(run.metrics["embed.users"])
        catalogue = open_catalogue(str(NodeCache.from_paths(config.paths).local_copy(catalogue_folder(root, run.run_id))))
        n_items, dim = len(catalogue.retrievable_codes()), catalogue.embeddings.shape[1]
    else:
        interactions = tables.read("interactions")
        n_users = int(cast("Any", interactions.agg(F.approx_count_distinct("user_id")).head())[0])
        n_items, dim = tables.read("items").where("is_available").count(), _champion_embedding_dim(config)
    scores_all_items = config.scoring.candidates == "all"
    retrieval = config.retrieval.model_copy(update={"mode": "exact"}) if scores_all_items else config.retrieval
    n_candidates = n_items if scores_all_items else retrieval.n_candidates
    layout = choose_layout(retrieval, n_items, dim)
    n_cores = spark.sparkContext.defaultParallelism
    tuning = Tuning.from_dict(get_pointer(root, run.run_id, "index")["tuning"]) if run and "index" in table_versions else None
    seconds_per_user, basis = (None, "") if tuning is None else _tuned_seconds_per_user(tuning)
    if seconds_per_user is None:
        seconds_per_user = benchmark_exact_search(n_items, dim, n_candidates)
        basis = "a trial of exact search on made-up vectors on this machine"
        if layout.mode != "exact":
            basis += "; inverted lists take a third of that or less"
    per_task = count_users_per_task(n_candidates, dim)
    n_tasks = count_user_tasks(n_users, per_task, n_cores)
    int8 = 0.25 if layout.storage == "int8" else 0.0
    lists = choose_nlist(retrieval, n_items) * dim * 4 + n_items * 8 if layout.mode != "exact" else 0
    return NightEstimate(
        n_users=n_users,
        n_items=n_items,
        embedding_dim=dim,
        n_candidates=n_candidates,
        layout=layout,
        index_bytes=int(n_items * dim * 4 * (1 + int8)) + lists,
        worker_bytes=_WORKER_BYTES + 2 * lists + 10_000 * (n_candidates * 40 + dim * 8) + 64 * 2**20,
        shared_bytes=layout.resident_bytes,
        n_tasks=n_tasks,
        users_per_task=-(-n_users // n_tasks),
        n_cores=n_cores,
        seconds=_FIXED_SECONDS + n_users * (seconds_per_user + n_candidates * _SECONDS_PER_CANDIDATE) / n_cores,
        basis=basis,
    )


def benchmark_exact_search(n_items: int, dim: int, n_candidates: int) -> float:
    """Measure core seconds per user of exact search on at most ``_TRIAL_ITEMS`` made-up items, in proportion to the real number."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(min(n_items, _TRIAL_ITEMS), dim)).astype(np.float32)
    users = rng.normal(size=(_TRIAL_USERS, dim)).astype(np.float32)
    settings = Config.model_validate({"retrieval": {"mode": "exact"}}).retrieval
    with tempfile.TemporaryDirectory(prefix="recsys-batch-") as folder:
        retriever = open_retriever(folder, build_index(items, settings, Path(folder), n_threads=1))
        retriever.search(users[:10], min(n_candidates, len(items)))
        started = time.perf_counter()
        retriever.search(users, min(n_candidates, len(items)))
        return (time.perf_counter() - started) / _TRIAL_USERS * max(1.0, n_items / len(items))


def _tuned_seconds_per_user(tuning: Tuning) -> tuple[float | None, str]:
    """Read core seconds per user at the chosen point of the tuning, which used all cores of the driver; None where it has none."""
    for point in tuning.curve:
        if (point.nprobe, point.overfetch) == (tuning.nprobe, tuning.overfetch):
            seconds = point.seconds_per_1000_users / 1000 * (os.cpu_count() or 1)
            return seconds, f"the tuning of this run's index on {tuning.n_users} users"
    return None, ""


def _champion_embedding_dim(config: Config) -> int:
    registry = ModelRegistry(config)
    champion = registry.require_champion()
    with tempfile.TemporaryDirectory(prefix="recsys-batch-") as folder:
        return registry.fetch(champion.version, Path(folder)).embedding_dim
