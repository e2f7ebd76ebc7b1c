"""The candidates step: popular lists, every known user's candidates, and who came short."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recsys_batch.artifacts import put_folder
from recsys_batch.catalogue import Catalogue, open_catalogue
from recsys_batch.config import Config
from recsys_batch.night.context import Night
from recsys_batch.night.incremental import Base, recorded_base
from recsys_batch.night.passes import (
    StepResult,
    by_user,
    counted_metrics,
    merged,
    n_tasks,
    of_changed,
    with_segments,
)
from recsys_batch.schemas import ALL_SEGMENTS, TABLES
from recsys_batch.slices import parts_of
from recsys_batch.spark import histories
from recsys_batch.spark.carry import Files, GainedItems, Range
from recsys_batch.spark.retrieve import SHORT, RetrieveTask, candidate_finder, counting_short


def candidates(night: Night) -> StepResult:
    """Popular lists, then every known user's candidates, then who came short."""
    catalogue = open_catalogue(str(night.catalogue_dir))
    popular = _popular(night).toArrow()
    written = {"popular": night.write_table("popular", popular)}
    finder, n_wanted = candidate_finder(_retrieve_task(night, catalogue)), _n_wanted(night.config)
    base = recorded_base(night)
    if base is None:
        written["candidates"] = night.write_slice("candidates", _known_users(night), counting_short(finder, n_wanted))
    else:
        fresh = night.stage("candidates", of_changed(night, _known_users(night)), finder)
        gained = _gained_items(night, base, catalogue)
        count = partial(counting_short, n_wanted=n_wanted)
        written["candidates"] = merged(night, base, "candidates", fresh, gained, count)
    # Counted while they were written: reading all of them again takes as long as a fifth of the search.
    if written["candidates"].counts.get(SHORT):
        written["shortfalls"] = night.write_slice("shortfalls", _shortfalls(night))
    else:
        written["shortfalls"] = night.write_table("shortfalls", TABLES["shortfalls"].arrow_schema(night.ids).empty_table())
    users, versions = written["candidates"].rows, {name: one.version for name, one in written.items()}
    metrics = {"n_shortfalls": float(written["shortfalls"].rows), **counted_metrics(night, "candidates", written["candidates"])}
    return StepResult(versions, rows=users, users=users, metrics=metrics)


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
    users = with_segments(users, night, "full_outer").select("user_id", "embedding", "seen", "segment")
    return by_user(users, n)


def _retrieve_task(night: Night, catalogue: Catalogue) -> RetrieveTask:
    pointer = night.pointed("index")
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
        n_candidates=_n_candidates(night.config, catalogue),
        popular=popular,
    )


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
        n_candidates=_n_candidates(night.config, catalogue),
        seen=folder / "seen.parquet",
        embeddings=Files(embeddings, parts_of(embeddings)),
    ).extend


def _n_candidates(config: Config, catalogue: Catalogue) -> int:
    """Items of the longest list."""
    return len(catalogue.retrievable_codes()) if config.scoring.candidates == "all" else config.retrieval.n_candidates


def _n_wanted(config: Config) -> int:
    """Candidates that leave nothing to explain; where all items are scored, as many as the top K needs."""
    return config.scoring.top_k if config.scoring.candidates == "all" else config.retrieval.n_candidates


def _shortfalls(night: Night) -> DataFrame:
    """Who got fewer candidates than wanted, and why."""
    retrieval = night.config.retrieval
    short = night.slice_of("candidates").where(F.size("items") < _n_wanted(night.config))
    short = short.select("run_id", "user_id", F.size("items").cast("int").alias("n_items"))
    short = with_segments(short, night, "left")
    named = [segment for segment in retrieval.eligibility if segment != ALL_SEGMENTS]
    ruled = F.lit(True) if ALL_SEGMENTS in retrieval.eligibility else F.coalesce(F.col("segment").isin(named), F.lit(False))
    reason = F.when(ruled, "eligible_exhausted").otherwise("catalogue_exhausted")
    return short.select("run_id", "user_id", "n_items", reason.alias("reason"))
