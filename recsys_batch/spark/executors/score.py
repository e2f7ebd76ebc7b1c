"""Executor code of the score step: candidates and user embeddings in, the top-K rows out.

The ranker is torch's or ONNX Runtime's, as the run has it, for the reference model, ONNX Runtime's for an imported one, and none for a
bundle without a ranker.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.catalogue import Catalogue, open_catalogue
from recsys_batch.errors import BundleError, RecsysBatchError
from recsys_batch.ranking.business_rules import Selection, select_with_rules
from recsys_batch.ranking.features import FeatureSpec, PairFeatures, compute_pair_features
from recsys_batch.ranking.onnx_ranker import OnnxRanker
from recsys_batch.ranking.top_k import NO_CODE
from recsys_batch.registry.bundle import load_bundle
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.executors.changed_events import find_changed_users
from recsys_batch.spark.executors.engines import ScoringEngine, require_torch
from recsys_batch.spark.executors.functions import BatchFunction
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.list_columns import column_matrix, flatten_lists, pad_lists
from recsys_batch.tables.slice_writer import attach_counts
from recsys_batch.tables.user_ranges import UserRange, users_in_range
from recsys_batch.tables.user_rows import UserSortedSource

if TYPE_CHECKING:
    from recsys_batch.model.ranker import Ranker

SHORT_BY_RULES = "rules.users_short"
"""Count of users whose lists the rules made shorter than their candidates would have."""

_USERS = 1024  # users whose ids are looked up, and whose lists are cut, together


@dataclass(frozen=True)
class ScoreTask:
    """Settings and locations of a score task; small, as it travels in the closure.

    ``engine``: what scores by the reference ranker, on every node alike.
    """

    run_id: str
    run_date: dt.date
    generated_at: dt.datetime
    model_version: str
    ids: IdTypes
    bundle_dir: str
    catalogue_dir: str
    n_candidates: int
    top_k: int
    batch_users: int
    cache: NodeCache
    engine: ScoringEngine

    def catalogue(self) -> Catalogue:
        return open_catalogue(str(self.cache.local_copy(self.catalogue_dir)))

    def ranker(self) -> BatchRanker | None:
        return _open_ranker(str(self.cache.local_copy(self.bundle_dir)), self.engine)


@dataclass(frozen=True)
class BatchRanker:
    """Scores candidates under the neutral context."""

    spec: FeatureSpec
    ranker: Ranker | OnnxRanker

    def score(self, users: np.ndarray, n_events: np.ndarray, codes: np.ndarray, retrieval: np.ndarray, catalogue: Catalogue) -> np.ndarray:
        """Score each user's candidates: float32 [B, C].

        Args:
            users: float32 [B, d]. n_events: [B], positive interactions of the user.
            codes: int64 [B, C], items of the catalogue. retrieval: float32 [B, C], their retrieval scores.
        """
        inputs = {"retrieval_score": retrieval, "log_popularity": catalogue.log_popularity[codes], "n_events": n_events}
        if isinstance(self.ranker, OnnxRanker):
            return self.ranker.score(users, catalogue.embeddings[codes], compute_pair_features(self.spec, **inputs))
        return self.ranker.score_without_context(users, catalogue.embeddings, codes, PairFeatures.from_raw(self.spec, **inputs))


@lru_cache(maxsize=1)
def _open_ranker(bundle_dir: str, engine: ScoringEngine) -> BatchRanker | None:
    """Open a bundle's ranker, once per Python worker; None when the bundle has no ranker (the retrieval order stands)."""
    bundle = load_bundle(bundle_dir)
    if bundle.kind == "two_tower" and engine == "torch":
        require_torch()
        from recsys_batch.model.ranker import Ranker

        return BatchRanker(FeatureSpec.from_dict(bundle.manifest["features"]), Ranker.from_bundle(bundle))
    if bundle.ranker_path is None:
        if bundle.kind == "two_tower":
            raise BundleError(f"{bundle.path} has no ranker.onnx, by which this run is scored: set scoring.engine = torch")
        return None
    return BatchRanker(FeatureSpec.from_dict(bundle.manifest["features"]), OnnxRanker(bundle.ranker_path))


def make_scorer(task: ScoreTask) -> BatchFunction:
    """Make a function for mapInArrow: (user_id, items, embedding or null, n_events or null) -> rows of topk, in the input's user order.

    A user without an embedding keeps the candidates' order (source popular). Ties go to the smaller item_id.
    """
    schema = TABLES["topk"].arrow_schema(task.ids)

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for start in range(0, batch.num_rows, _USERS):
                yield _score_batch(batch.slice(start, _USERS), task, schema)

    return score


@dataclass(frozen=True)
class ScoringInput:
    """Candidates and embeddings of the users who are ranked.

    Attributes:
        candidates, embeddings: the run's rows.
        changed, new_items: in an incremental night only lists of these users (location of Parquet of user_id), or with one of these items.
    """

    candidates: UserSortedSource
    embeddings: UserSortedSource
    changed: str | None = None
    new_items: pa.Array | None = None

    def batches(self, bounds: UserRange) -> Iterator[pa.RecordBatch]:
        """Read the input of ``make_scorer``'s function for a range of users: the two tables are joined here, and no row is shuffled."""
        embeddings = self.embeddings.between(bounds, ["user_id", "embedding", "n_events"])
        users = embeddings["user_id"].combine_chunks()
        changed = None if self.changed is None else users_in_range(find_changed_users(self.changed), bounds)
        for batch in self.candidates.batches(bounds, ["user_id", "items"], _USERS):
            chosen = batch if changed is None else batch.filter(self._is_scored_again(batch, changed))
            if chosen.num_rows:
                rows = pc.index_in(chosen["user_id"], value_set=users)
                user_columns = [embeddings[name].combine_chunks().take(rows) for name in ("embedding", "n_events")]
                columns = [chosen["user_id"], chosen["items"], *user_columns]
                yield pa.RecordBatch.from_arrays(columns, names=["user_id", "items", "embedding", "n_events"])

    def _is_scored_again(self, batch: pa.RecordBatch, changed: pa.Array) -> pa.Array:
        is_changed = pc.is_in(batch["user_id"], value_set=changed)
        if self.new_items is None or len(self.new_items) == 0:
            return is_changed
        is_new = pc.is_in(batch["items"].flatten().field("item_id"), value_set=self.new_items)
        has_new_item = np.zeros(batch.num_rows, dtype=bool)
        has_new_item[np.asarray(pc.list_parent_indices(batch["items"]).filter(is_new))] = True
        return pc.or_(is_changed, pa.array(has_new_item))


def score_range(task: ScoreTask, lists: ScoringInput, bounds: UserRange) -> Iterator[pa.RecordBatch]:
    """Make the rows of topk of a range of users."""
    return make_scorer(task)(lists.batches(bounds))


def _score_batch(batch: pa.RecordBatch, task: ScoreTask, schema: pa.Schema) -> pa.RecordBatch:
    catalogue = task.catalogue()
    pairs, offsets = flatten_lists(batch["items"])
    # As wide for every user, whoever else is in the batch: a product of another shape may differ in its last bits.
    width = max(task.n_candidates, int(np.diff(offsets).max(initial=1)))
    codes = pad_lists(catalogue.codes(pairs.field("item_id")), offsets, NO_CODE, width)
    scores = pad_lists(np.asarray(pairs.field("score").to_numpy(zero_copy_only=False), dtype=np.float32), offsets, -np.inf, width)
    is_modelled = np.asarray(batch["embedding"].is_valid())
    ranker = task.ranker()
    if ranker is not None and is_modelled.any():
        scores = _rank_users(task, ranker, batch, is_modelled, codes, scores)
    picked = select_with_rules(scores, codes, task.top_k, catalogue.item_rules)
    counts = {f"rules.{rule}.rows_changed": n for rule, n in picked.changed.items()}
    if catalogue.item_rules.active:
        n_without_rules = np.minimum((codes != NO_CODE).sum(axis=1), task.top_k)
        counts[SHORT_BY_RULES] = int(np.count_nonzero(np.isfinite(picked.values).sum(axis=1) < n_without_rules))
    return attach_counts(_to_batch(task, schema, batch, is_modelled, codes, picked), counts)


def _rank_users(
    task: ScoreTask, ranker: BatchRanker, batch: pa.RecordBatch, is_modelled: np.ndarray, codes: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """Put the ranker's scores into the rows [B, C] of users with an embedding; -inf stays where there is no candidate."""
    mask = pa.array(is_modelled)
    n_events = np.asarray(batch["n_events"].filter(mask).fill_null(0).to_numpy(zero_copy_only=False))
    users, catalogue = column_matrix(batch["embedding"].filter(mask)), task.catalogue()
    rows = np.flatnonzero(is_modelled)
    result = scores if is_modelled.all() else scores.copy()
    for start in range(0, len(rows), task.batch_users):
        part = slice(start, start + task.batch_users)
        is_candidate = codes[rows[part]] != NO_CODE
        retrieval = np.where(is_candidate, scores[rows[part]], np.float32(0))
        ranked = ranker.score(users[part], n_events[part], np.where(is_candidate, codes[rows[part]], 0), retrieval, catalogue)
        ranked = np.where(is_candidate, ranked, np.float32(-np.inf))
        if not np.isfinite(ranked.sum(axis=1, where=is_candidate)).all():
            row = int(np.flatnonzero(~np.isfinite(np.where(is_candidate, ranked, 0)).all(axis=1))[0])
            user = batch["user_id"][int(rows[part][row])].as_py()
            raise RecsysBatchError(f"the ranker gave user {user!r} a score that is not finite: check the ranker and its inputs")
        result[rows[part]] = ranked
    return result


def _to_batch(
    task: ScoreTask, schema: pa.Schema, batch: pa.RecordBatch, is_modelled: np.ndarray, codes: np.ndarray, picked: Selection
) -> pa.RecordBatch:
    """Make a row of topk of every place of the lists that has an item."""
    is_filled = np.isfinite(picked.values)
    user_rows = np.nonzero(is_filled)[0]
    n = len(user_rows)
    columns = {
        "run_id": pa.repeat(task.run_id, n),
        "run_date": pa.repeat(task.run_date, n),
        "user_id": batch["user_id"].take(pa.array(user_rows)),
        "rank": pa.array(np.cumsum(is_filled, axis=1, dtype=np.int32)[is_filled]),
        "item_id": task.catalogue().ids(np.take_along_axis(codes, picked.columns, axis=1)[is_filled]),
        "score": pa.array(picked.values[is_filled]),
        "candidate_rank": pa.array((picked.columns[is_filled] + 1).astype(np.int32)),
        "source": _dictionary_column(["popular", "model"], is_modelled[user_rows]),
        "model_version": _dictionary_column([task.model_version], np.zeros(n)),
        "generated_at": pa.repeat(pa.scalar(task.generated_at, schema.field("generated_at").type), n),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], names=schema.names)


def _dictionary_column(words: list[str], chosen: np.ndarray) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(chosen.astype(np.int32)), pa.array(words))
