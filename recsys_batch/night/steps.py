"""The steps of a night in order. Each reads what earlier ones committed, writes its own slice, and can be done again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.artifacts import pointed, put_folder
from recsys_batch.catalogue import Catalogue, open_catalogue, write_catalogue
from recsys_batch.config import Config, Scoring
from recsys_batch.errors import ConfigError
from recsys_batch.night.context import Night, Written
from recsys_batch.night.incremental import Base, NeedsFull, changed_file, find_base, recorded_base
from recsys_batch.night.index import INDEX_METRICS, PARALLEL_ITEMS, SampledUsers, build, tuning_figure
from recsys_batch.night.partitions import user_tasks, users_per_task
from recsys_batch.ragged import column_matrix
from recsys_batch.schemas import ALL_SEGMENTS
from recsys_batch.slices import PYTHON_MS, WRITE_MS, parts_of
from recsys_batch.spark import histories, item_vectors
from recsys_batch.spark.assign import assign_in_tasks
from recsys_batch.spark.batches import BatchFunction
from recsys_batch.spark.carry import Files, GainedItems, Range, carried_scorer, ranges, replaced
from recsys_batch.spark.embed import user_encoder
from recsys_batch.spark.parts import unchanged
from recsys_batch.spark.retrieve import RetrieveTask, candidate_finder
from recsys_batch.spark.score import SHORT_BY_RULES, ScoreTask, part_scorer

logger = logging.getLogger("recsys_batch.night")


@dataclass(frozen=True)
class StepResult:
    """What a step did: Delta versions by table, rows written, users handled, further numbers for the manifest."""

    versions: dict[str, int]
    rows: int
    users: int
    metrics: dict[str, float] = field(default_factory=dict)


def embed(night: Night) -> StepResult:
    """Item and user embeddings, and the catalogue that later steps share."""
    positives = histories.positive(night.read_input("interactions"), night.config.data.min_weight)
    catalogue, n_events = item_vectors.catalogue(
        night.bundle, night.root, night.read_input("items"), positives, night.config, night.run.run_date
    )
    folder = put_folder(night.root, "catalogues", lambda target: write_catalogue(target, catalogue))
    night.point("catalogue", {"folder": folder.name})
    items = item_vectors.rows(catalogue, n_events, night.run.run_id, night.ids)
    base = _decide(night, catalogue)
    written = {"item_embeddings": night.write_table("item_embeddings", items), "user_embeddings": _user_embeddings(night, positives, base)}
    versions = {name: one.version for name, one in written.items()}
    users = written["user_embeddings"].rows
    metrics = {"n_items": float(len(catalogue)), "incremental": float(base is not None)}
    metrics |= _named(night, "embed", written["user_embeddings"])
    if base is not None:
        metrics |= {"incremental.users_changed": float(len(base.changed)), "incremental.items_gained": float(len(base.gained))}
    return StepResult(versions, rows=users + items.num_rows, users=users, metrics=metrics)


def _decide(night: Night, catalogue: Catalogue) -> Base | None:
    """The night to go on from, where an incremental one was asked for and can be."""
    night.unpoint("base")
    if not night.incremental:
        return None
    try:
        base = find_base(night, catalogue)
    except NeedsFull as reason:
        logger.info("run_id=%s is a full night: %s", night.run.run_id, reason)
        return None
    changes = f"{len(base.changed)} users changed, {len(base.gained)} items are new"
    logger.info("run_id=%s goes on from run %s: %s", night.run.run_id, base.run.run_id, changes)
    return base


def _user_embeddings(night: Night, positives: DataFrame, base: Base | None) -> Written:
    if base is not None:
        positives = _of_changed(night, positives)
    encode: BatchFunction = unchanged
    if night.bundle.kind == "embeddings":
        rows = item_vectors.brought_users(night.spark, night.bundle, night.root, positives, night.run.run_id)
    else:
        rows = _with_segments(histories.histories(positives, int(night.bundle.manifest["model"]["history_length"])), night, "left")
        encode = user_encoder(str(night.bundle_dir), str(night.catalogue_dir), night.ids, night.run.run_id)
    if base is None:
        return night.write_slice("user_embeddings", by_user(rows, n_tasks(night, _approximate_users(rows))), encode)
    changed = by_user(_of_changed(night, rows), n_tasks(night, len(base.changed)))
    return _merged(night, base, "user_embeddings", night.stage("user_embeddings", changed, encode))


def _approximate_users(rows: DataFrame) -> int:
    return int(cast("Any", rows.agg(F.approx_count_distinct("user_id")).head())[0])


def _of_changed(night: Night, rows: DataFrame) -> DataFrame:
    """Rows of the users whom an incremental night computes again."""
    changed = night.spark.read.parquet(str(changed_file(night)))
    return rows.join(F.broadcast(changed), "user_id", "left_semi")


def _merged(night: Night, base: Base, name: str, fresh: Files, extend: Callable[[pa.Table, Range], pa.Table] | None = None) -> Written:
    """The base's slice with the fresh rows in the place of the changed users', in tasks of the base's files."""
    old = base.files(night.slice(name))
    bounds = ranges(old.parts)
    written = night.write_slice(name, _numbers(night, len(bounds)), replaced(old, fresh, changed_file(night), bounds, extend))
    night.drop_drafts()
    return written


def _numbers(night: Night, n: int) -> DataFrame:
    """0 .. n - 1, a task each."""
    return night.spark.range(0, n, 1, max(n, 1))


def index(night: Night) -> StepResult:
    """The search index over retrievable items, tuned on sampled users; a file, named in the run's pointers."""
    catalogue = open_catalogue(str(night.catalogue_dir))
    check_all_candidates(night.config.scoring, len(catalogue.retrievable_codes()))
    base = recorded_base(night)
    if base is not None and _same_items(night, base, catalogue):
        night.point("index", pointed(night.root, base.run.run_id, "index"))
        kept = {name: value for name, value in base.run.metrics.items() if name in INDEX_METRICS}
        version = night.run.table_versions["item_embeddings"]
        return StepResult({"index": version}, rows=len(catalogue.retrievable_codes()), users=0, metrics=kept)
    sample = night.slice_of("user_embeddings").orderBy(F.xxhash64("user_id"), "user_id").limit(night.config.retrieval.tuning_users)
    table = _with_segments(sample, night, "left").orderBy(F.xxhash64("user_id"), "user_id").select("embedding", "segment").toArrow()
    sampled = SampledUsers(column_matrix(table["embedding"].combine_chunks()), catalogue.rules(table["segment"].combine_chunks()))
    assign_rows = assign_in_tasks(night.spark, night.root / "drafts") if len(catalogue) >= PARALLEL_ITEMS else None
    settings = night.config.retrieval
    if night.config.scoring.candidates == "all":
        settings = settings.model_copy(update={"mode": "exact"})
    built = build(night.root / "indexes", catalogue, sampled, settings, assign_rows)
    night.point("index", built.to_dict())
    if night.run.mlflow_run_id and built.tuning.curve:
        night.registry.log_figure(night.run.mlflow_run_id, tuning_figure(built.tuning), "retrieval_tuning.png")
    version = night.run.table_versions["item_embeddings"]
    return StepResult({"index": version}, rows=built.info.n_items, users=len(sampled.queries), metrics=built.metrics())


def candidates(night: Night) -> StepResult:
    """Popular lists, then every known user's candidates, then who came short."""
    catalogue = open_catalogue(str(night.catalogue_dir))
    popular = _popular(night).toArrow()
    written = {"popular": night.write_table("popular", popular)}
    finder = candidate_finder(_retrieve_task(night, catalogue))
    base = recorded_base(night)
    if base is None:
        written["candidates"] = night.write_slice("candidates", _known_users(night), finder)
    else:
        fresh = night.stage("candidates", _of_changed(night, _known_users(night)), finder)
        written["candidates"] = _merged(night, base, "candidates", fresh, _gained_items(night, base, catalogue))
    written["shortfalls"] = night.write_slice("shortfalls", _shortfalls(night))
    users, versions = written["candidates"].rows, {name: one.version for name, one in written.items()}
    metrics = {"n_shortfalls": float(written["shortfalls"].rows), **_named(night, "candidates", written["candidates"])}
    return StepResult(versions, rows=users, users=users, metrics=metrics)


def _same_items(night: Night, base: Base, catalogue: Catalogue) -> bool:
    """Whether the base's index is over exactly the items of this night."""
    before = open_catalogue.__wrapped__(str(night.root / "catalogues" / str(pointed(night.root, base.run.run_id, "catalogue")["folder"])))
    then, now = (one.item_ids.filter(pa.array(one.retrievable)) for one in (before, catalogue))
    return bool(then.equals(now))


def _gained_items(night: Night, base: Base, catalogue: Catalogue) -> Callable[[pa.Table, Range], pa.Table] | None:
    """How the lists that are carried get the items that are new; None where none is."""
    if len(base.gained) == 0:
        return None
    ids = night.spark.createDataFrame(pa.table({"item_id": base.gained}))
    seen = night.read_input("interactions").join(F.broadcast(ids), "item_id", "left_semi").select("user_id", "item_id").distinct().toArrow()
    folder = put_folder(night.root, "changed", lambda target: pq.write_table(seen, target / "seen.parquet"))
    embeddings = night.slice("user_embeddings")
    return GainedItems(
        codes=catalogue.codes(base.gained),
        catalogue_dir=str(night.catalogue_dir),
        cosine=night.config.retrieval.metric == "cosine",
        n_candidates=_retrieve_task(night, catalogue).n_candidates,
        seen=folder / "seen.parquet",
        embeddings=Files(embeddings, parts_of(embeddings)),
    ).extend


def _n_wanted(config: Config) -> int:
    """Candidates that leave nothing to explain; where all items are scored, as many as the top K needs."""
    return config.scoring.top_k if config.scoring.candidates == "all" else config.retrieval.n_candidates


def _shortfalls(night: Night) -> DataFrame:
    """Who got fewer candidates than wanted, and why."""
    retrieval = night.config.retrieval
    short = night.slice_of("candidates").where(F.size("items") < _n_wanted(night.config))
    short = short.select("run_id", "user_id", F.size("items").cast("int").alias("n_items"))
    short = _with_segments(short, night, "left")
    named = [segment for segment in retrieval.eligibility if segment != ALL_SEGMENTS]
    ruled = F.lit(True) if ALL_SEGMENTS in retrieval.eligibility else F.coalesce(F.col("segment").isin(named), F.lit(False))
    reason = F.when(ruled, "eligible_exhausted").otherwise("catalogue_exhausted")
    return short.select("run_id", "user_id", "n_items", reason.alias("reason"))


def score(night: Night) -> StepResult:
    """The ranker's top K of each user's candidates."""
    run, config = night.run, night.config
    task = ScoreTask(
        run_id=run.run_id,
        run_date=run.run_date,
        generated_at=run.started_at,
        model_version=run.model_version,
        ids=night.ids,
        bundle_dir=str(night.bundle_dir),
        catalogue_dir=str(night.catalogue_dir),
        n_candidates=config.retrieval.n_candidates,
        top_k=config.scoring.top_k,
        batch_users=config.scoring.batch_users,
    )
    candidates, embeddings = night.slice("candidates"), night.slice("user_embeddings")
    parts = parts_of(candidates, run.table_versions["candidates"])
    known = parts_of(embeddings, run.table_versions["user_embeddings"])
    base = recorded_base(night)
    if base is None:
        scoring, n = part_scorer(task, candidates, parts, embeddings, known), len(parts)
    else:
        bounds, before = ranges(parts), base.files(night.slice("topk"))
        lists, vectors = Files(candidates, parts), Files(embeddings, known)
        scoring, n = carried_scorer(task, lists, vectors, before, changed_file(night), base.gained, bounds), len(bounds)
    written = night.write_slice("topk", _numbers(night, n), scoring)
    versions, counts = {"topk": written.version}, _named(night, "score", written)
    if counts.get(SHORT_BY_RULES):
        versions["shortfalls"] = night.write_slice("shortfalls", _short_by_rules(night)).version
    return StepResult(versions, rows=written.rows, users=sum(part.n_rows for part in parts), metrics=counts)


def _named(night: Night, step: str, written: Written) -> dict[str, float]:
    """What the tasks of a step's main pass counted, for the manifest; the rules' counts have names of their own.

    ``STEP.python_seconds`` and ``STEP.write_seconds`` are summed over tasks, so that they divide by STEP.seconds * STEP.cores.
    """
    counts = dict(written.counts)
    write, python = (counts.pop(name, 0) / 1000 for name in (WRITE_MS, PYTHON_MS))
    metrics = {name if "." in name else f"{step}.{name}": float(n) for name, n in counts.items()}
    own = {"bytes": written.n_bytes, "write_seconds": write, "python_seconds": max(python - write, 0.0)}
    own["cores"] = night.spark.sparkContext.defaultParallelism
    return metrics | {f"{step}.{name}": float(value) for name, value in own.items()}


def _short_by_rules(night: Night) -> DataFrame:
    """The shortfalls, with everybody who has fewer than the top K although there were candidates."""
    rows = night.slice_of("topk").groupBy("user_id").agg(F.count(F.lit(1)).cast("int").alias("n_items"))
    candidates = night.slice_of("candidates").select("user_id", F.size("items").alias("n_candidates"))
    lists = candidates.join(rows, "user_id", "left").fillna(0, "n_items")
    short = lists.where(F.col("n_items") < F.least("n_candidates", F.lit(night.config.scoring.top_k)))
    short = short.select(F.lit(night.run.run_id).alias("run_id"), "user_id", "n_items", F.lit("rules").alias("reason"))
    others = night.slice_of("shortfalls").where(F.col("reason") != "rules").join(short.select("user_id"), "user_id", "left_anti")
    return short.unionByName(others)


STEPS: dict[str, Callable[[Night], StepResult]] = {"embed": embed, "index": index, "candidates": candidates, "score": score}
OUTPUTS = {"embed": "user_embeddings", "index": "index", "candidates": "shortfalls", "score": "topk"}
"""A step is done when the manifest has a version of the last thing that it writes."""


def by_user(rows: DataFrame, n_tasks: int) -> DataFrame:
    """In ranges of user_id, sorted: each file of the slice then holds users that no other file has, and its statistics say which.

    The last thing before rows are used, as a join would choose tasks of its own.
    """
    return rows.repartitionByRange(n_tasks, "user_id").sortWithinPartitions("user_id")


def n_tasks(night: Night, n_users: int) -> int:
    """Tasks for a pass over so many users."""
    per_task = users_per_task(night.config.retrieval.n_candidates, night.bundle.embedding_dim)
    return user_tasks(n_users, per_task, night.spark.sparkContext.defaultParallelism)


def check_all_candidates(scoring: Scoring, n_items: int) -> None:
    """Raises:
    ConfigError: ``scoring.candidates = all`` with more items than it is meant for.
    """
    if scoring.candidates == "all" and n_items > scoring.all_max_items:
        raise ConfigError(
            f"scoring.candidates = all would rank {n_items} items for every user, more than scoring.all_max_items = "
            f"{scoring.all_max_items}: set scoring.candidates = retrieved, or raise the limit"
        )


def _popular(night: Night) -> DataFrame:
    available = night.read_input("items").where("is_available")
    positives = histories.positive(night.read_input("interactions"), night.config.data.min_weight)
    lists = histories.popularity(positives, night.users_table(), available, night.config.tables.popular_items)
    return lists.select(F.lit(night.run.run_id).alias("run_id"), "segment", "rank", "item_id", "score")


def _known_users(night: Night) -> DataFrame:
    """user_id, embedding, seen, segment: everybody with an embedding, an interaction or a row in users."""
    embeddings = night.slice_of("user_embeddings").select("user_id", "embedding")
    n = n_tasks(night, int(night.run.metrics["embed.users"]))
    users = embeddings.join(histories.seen_items(night.read_input("interactions")), "user_id", "full_outer")
    users = _with_segments(users, night, "full_outer").select("user_id", "embedding", "seen", "segment")
    return by_user(users, n)


def _with_segments(users: DataFrame, night: Night, how: str) -> DataFrame:
    table = night.users_table()
    if table is None:
        nothing = F.lit(None)
        return users.withColumn("segment", nothing.cast("string")).withColumn("attributes", nothing.cast("map<string,string>"))
    return users.join(table, "user_id", how)


def _retrieve_task(night: Night, catalogue: Catalogue) -> RetrieveTask:
    pointer = night.pointed("index")
    everything = night.config.scoring.candidates == "all"
    popular: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    table = night.slice_of("popular").select("segment", "rank", "item_id", "score").orderBy("segment", "rank").toArrow()
    codes = catalogue.codes(table["item_id"].combine_chunks())
    segments = np.asarray(table["segment"].to_pylist(), dtype=object)
    scores = table["score"].to_numpy()
    for segment in dict.fromkeys(segments):
        mine = (segments == segment) & catalogue.retrievable[codes]
        popular[str(segment)] = (codes[mine], scores[mine])
    return RetrieveTask(
        run_id=night.run.run_id,
        ids=night.ids,
        catalogue_dir=str(night.catalogue_dir),
        index_dir=str(night.root / "indexes"),
        index=pointer["index"],
        nprobe=pointer["tuning"]["nprobe"],
        overfetch=pointer["tuning"]["overfetch"],
        n_candidates=len(catalogue.retrievable_codes()) if everything else night.config.retrieval.n_candidates,
        popular=popular,
    )
