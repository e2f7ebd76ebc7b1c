"""Executor code of the score step: candidates and user embeddings in, the top-K rows out."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.catalogue import Catalogue, open_catalogue
from recsys_batch.errors import RecsysBatchError
from recsys_batch.ranking.business_rules import select_with_rules
from recsys_batch.ranking.top_k import NO_CODE
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.executors.changed_events import find_changed_users
from recsys_batch.spark.executors.functions import BatchFunction
from recsys_batch.spark.executors.rankers import BatchRanker, open_batch_ranker
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.list_columns import column_matrix, flatten_lists
from recsys_batch.tables.slice_writer import attach_counts
from recsys_batch.tables.user_ranges import UserRange, users_in_range
from recsys_batch.tables.user_rows import UserSortedSource

SHORT_BY_RULES = "rules.users_short"
"""Count of users whose lists the rules made shorter than their candidates would have."""

_USERS = 1024  # users whose ids are looked up, and whose lists are cut, together


@dataclass(frozen=True)
class ScoreTask:
    """Settings and locations of a score task; small, as it travels in the closure."""

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

    def catalogue(self) -> Catalogue:
        return open_catalogue(str(self.cache.local_copy(self.catalogue_dir)))

    def ranking(self) -> BatchRanker | None:
        return open_batch_ranker(str(self.cache.local_copy(self.bundle_dir)))


@dataclass(frozen=True)
class _BestItems:
    """The best items of a batch of users: flat arrays, ``counts`` per user."""

    codes: np.ndarray
    scores: np.ndarray
    candidate_ranks: np.ndarray
    counts: np.ndarray


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
    codes = _pad(catalogue.codes(pairs.field("item_id")), offsets, NO_CODE, width)
    scores = _pad(np.asarray(pairs.field("score").to_numpy(zero_copy_only=False), dtype=np.float32), offsets, -np.inf, width)
    is_modelled = np.asarray(batch["embedding"].is_valid())
    ranking = task.ranking()
    if ranking is not None and is_modelled.any():
        scores = _rank_users(batch, is_modelled, codes, scores, catalogue, ranking, task.batch_users)
    best, counts = _select_best(scores, codes, task, catalogue)
    return attach_counts(_to_batch(best, batch, is_modelled, catalogue, task, schema), counts)


def _rank_users(
    batch: pa.RecordBatch,
    is_modelled: np.ndarray,
    codes: np.ndarray,
    scores: np.ndarray,
    catalogue: Catalogue,
    ranking: BatchRanker,
    batch_users: int,
) -> np.ndarray:
    """Put the ranker's scores into the rows [B, C] of users with an embedding; -inf stays where there is no candidate."""
    mask = pa.array(is_modelled)
    n_events = np.asarray(batch["n_events"].filter(mask).fill_null(0).to_numpy(zero_copy_only=False))
    users = column_matrix(batch["embedding"].filter(mask))
    rows = np.flatnonzero(is_modelled)
    result = scores if is_modelled.all() else scores.copy()
    for start in range(0, len(rows), batch_users):
        part = slice(start, start + batch_users)
        is_candidate = codes[rows[part]] != NO_CODE
        retrieval = np.where(is_candidate, scores[rows[part]], np.float32(0))
        ranked = ranking.score(users[part], n_events[part], np.where(is_candidate, codes[rows[part]], 0), retrieval, catalogue)
        ranked = np.where(is_candidate, ranked, np.float32(-np.inf))
        if not np.isfinite(ranked.sum(axis=1, where=is_candidate)).all():
            row = int(np.flatnonzero(~np.isfinite(np.where(is_candidate, ranked, 0)).all(axis=1))[0])
            user = batch["user_id"][int(rows[part][row])].as_py()
            raise RecsysBatchError(f"the ranker gave user {user!r} a score that is not finite: check the ranker and its inputs")
        result[rows[part]] = ranked
    return result


def _select_best(scores: np.ndarray, codes: np.ndarray, task: ScoreTask, catalogue: Catalogue) -> tuple[_BestItems, dict[str, int]]:
    """Select the top k of each row under the rules of the business, and count what these changed."""
    picked = select_with_rules(scores, codes, task.top_k, catalogue.item_rules)
    is_filled = np.isfinite(picked.values)
    best = np.take_along_axis(codes, picked.columns, axis=1)
    lists = _BestItems(best[is_filled], picked.values[is_filled], picked.columns[is_filled] + 1, is_filled.sum(axis=1))
    counts = {f"rules.{rule}.rows_changed": n for rule, n in picked.changed.items()}
    if catalogue.item_rules.active:
        n_without_rules = np.minimum((codes != NO_CODE).sum(axis=1), task.top_k)
        counts[SHORT_BY_RULES] = int(np.count_nonzero(lists.counts < n_without_rules))
    return lists, counts


def _to_batch(
    best: _BestItems, batch: pa.RecordBatch, is_modelled: np.ndarray, catalogue: Catalogue, task: ScoreTask, schema: pa.Schema
) -> pa.RecordBatch:
    n = len(best.codes)
    user_rows = np.repeat(np.arange(batch.num_rows), best.counts)
    starts = np.repeat(np.cumsum(best.counts) - best.counts, best.counts)
    columns = {
        "run_id": _constant_column(task.run_id, n, pa.string()),
        "run_date": _constant_column(task.run_date, n, pa.date32()),
        "user_id": batch["user_id"].take(pa.array(user_rows)),
        "rank": pa.array((np.arange(n) - starts + 1).astype(np.int32)),
        "item_id": catalogue.ids(best.codes),
        "score": pa.array(best.scores.astype(np.float32)),
        "candidate_rank": pa.array(best.candidate_ranks.astype(np.int32)),
        "source": _dictionary_column(["popular", "model"], is_modelled[user_rows]),
        "model_version": _dictionary_column([task.model_version], np.zeros(n)),
        "generated_at": _constant_column(task.generated_at, n, schema.field("generated_at").type),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], names=schema.names)


def _dictionary_column(words: list[str], chosen: np.ndarray) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(chosen.astype(np.int32)), pa.array(words))


def _constant_column(value: object, n: int, dtype: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, dtype), n)


def _pad(values: np.ndarray, offsets: np.ndarray, fill: float, width: int) -> np.ndarray:
    """Pad ragged rows to [n, width], with ``fill`` behind each row's end."""
    lengths = np.diff(offsets)
    if (lengths == width).all():
        return np.array(values).reshape(len(lengths), width)
    is_filled = np.arange(width) < lengths[:, None]
    padded = np.full(is_filled.shape, fill, dtype=values.dtype)
    padded[is_filled] = values
    return padded
