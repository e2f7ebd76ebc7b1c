"""Executor code of the candidates step: user embeddings and seen items in, each user's best other items out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_batch.ann.filtered_search import SearchResult, search_unseen
from recsys_batch.ann.index import IndexInfo
from recsys_batch.ann.search import open_retriever
from recsys_batch.dataset.catalogue import Catalogue, open_catalogue
from recsys_batch.dataset.seen_policy import SeenPolicy
from recsys_batch.dataset.user_events import UserEvents
from recsys_batch.ranking.top_k import NO_CODE
from recsys_batch.schemas import ALL_SEGMENTS, TABLES, IdTypes
from recsys_batch.spark.executors.changed_events import find_changed_users
from recsys_batch.spark.executors.functions import BatchFunction
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.list_columns import column_matrix, flatten_lists, list_column, mask_ragged
from recsys_batch.tables.slice_writer import attach_counts, read_counts
from recsys_batch.tables.user_ranges import UserRange, UserSortedFiles, users_in_range

SHORT = "users_short"
"""Count of users with fewer candidates than wanted."""

_USERS = 10_000  # users searched together: inverted lists are multiplied with all that probe them


@dataclass(frozen=True)
class RetrieveTask:
    """Settings and locations of a candidates task; small, as it travels in the closure.

    Attributes:
        catalogue_dir, index_dir: locations; ``cache`` has the node's copies of what is in a store.
        nprobe, overfetch: as tuned.
        popular: segment -> (catalogue codes int64, scores float32), best first; has ALL_SEGMENTS.
        seen: which events keep an item out of a list.
    """

    run_id: str
    ids: IdTypes
    catalogue_dir: str
    index_dir: str
    index: Mapping[str, Any]
    nprobe: int | None
    overfetch: float
    n_candidates: int
    popular: Mapping[str, tuple[np.ndarray, np.ndarray]]
    seen: SeenPolicy
    cache: NodeCache

    def catalogue(self) -> Catalogue:
        return open_catalogue(str(self.cache.local_copy(self.catalogue_dir)))


def make_retriever(task: RetrieveTask) -> BatchFunction:
    """Make a function for mapInArrow: (user_id, embedding or null, seen or null, segment or null) -> rows of candidates.

    Every user gets ``n_candidates`` unseen retrievable items that the segment's rule allows, or all there are. Without an embedding
    it is the popular list of the segment, continued by everybody's, then by the rest of the catalogue in id order.
    """
    schema = TABLES["candidates"].arrow_schema(task.ids)
    items_type = schema.field("items").type

    def retrieve(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows == 0:
                continue
            best = _retrieve_batch(batch, task)
            is_filled = np.arange(best.codes.shape[1]) < best.counts[:, None]
            item_ids = task.catalogue().ids(best.codes[is_filled])
            pairs = pa.StructArray.from_arrays([item_ids, pa.array(best.scores[is_filled])], fields=list(items_type.value_type))
            items = list_column(pairs, np.concatenate([[0], np.cumsum(best.counts)])).cast(items_type)
            yield pa.RecordBatch.from_arrays([pa.repeat(task.run_id, batch.num_rows), batch["user_id"], items], schema=schema)

    return retrieve


@dataclass(frozen=True)
class RetrievalInput:
    """Users who get candidates.

    Attributes:
        embeddings: the run's rows. changed: location of a Parquet file of user_id: only these.
    """

    user_events: UserEvents
    embeddings: UserSortedFiles
    changed: str | None = None


def retrieve_range(task: RetrieveTask, inputs: RetrievalInput, bounds: UserRange) -> Iterator[pa.RecordBatch]:
    """Make the rows of candidates of a range of users."""
    changed = None if inputs.changed is None else users_in_range(find_changed_users(inputs.changed), bounds)
    return make_retriever(task)(inputs.user_events.known_users(inputs.embeddings, bounds, _USERS, task.seen, changed))


def count_short_lists(function: BatchFunction, n_wanted: int) -> BatchFunction:
    """Wrap a function that makes candidates, to count the rows with fewer than ``n_wanted`` items."""

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in function(batches):
            short = int(np.count_nonzero(np.asarray(batch["items"].value_lengths()) < n_wanted))
            yield attach_counts(batch, {**read_counts(batch), SHORT: short})

    return count


def _retrieve_batch(batch: pa.RecordBatch, task: RetrieveTask) -> SearchResult:
    catalogue = task.catalogue()
    seen_ids, seen_offsets = flatten_lists(batch["seen"])
    seen_codes = catalogue.codes(seen_ids)
    embedded = np.asarray(batch["embedding"].is_valid())
    rules = catalogue.rules_by_segment(batch["segment"])
    result = SearchResult(
        scores=np.full((batch.num_rows, task.n_candidates), -np.inf, dtype=np.float32),
        codes=np.full((batch.num_rows, task.n_candidates), NO_CODE, dtype=np.int64),
        counts=np.zeros(batch.num_rows, dtype=np.int64),
    )
    for rule in np.unique(rules[embedded]):
        users = embedded & (rules == rule)
        nearest = _search_index(task, batch, users, int(rule), seen_codes, seen_offsets)
        result.codes[users], result.scores[users], result.counts[users] = nearest.codes, nearest.scores, nearest.counts
    segments = batch["segment"]
    for row in np.flatnonzero(~embedded).tolist():
        allowed = catalogue.eligible_mask(int(rules[row])).copy()
        seen = seen_codes[seen_offsets[row] : seen_offsets[row + 1]]
        allowed[seen[seen >= 0]] = False
        codes, scores = make_popular_list(segments[row].as_py(), allowed, task)
        result.codes[row, : len(codes)], result.scores[row, : len(codes)], result.counts[row] = codes, scores, len(codes)
    return result


def _search_index(
    task: RetrieveTask, batch: pa.RecordBatch, users: np.ndarray, rule: int, seen_codes: np.ndarray, seen_offsets: np.ndarray
) -> SearchResult:
    """Search the index for ``users`` (bool [B]), who all fall under one rule; the result is in catalogue codes."""
    catalogue = task.catalogue()
    # The index holds retrievable items only, in code order: what it calls r is the item retrievable[r].
    retrievable = catalogue.retrievable_codes()
    allowed = catalogue.eligible_mask(rule)
    index_rows = np.full(len(catalogue) + 1, NO_CODE, dtype=np.int64)  # the extra last entry answers code -1
    index_rows[retrievable] = np.arange(len(retrievable))
    index_rows[:-1][~allowed] = NO_CODE
    seen = index_rows[seen_codes]
    is_wanted = np.repeat(users, np.diff(seen_offsets)) & (seen >= 0)
    offsets = mask_ragged(seen_offsets, is_wanted)[np.concatenate([[0], np.flatnonzero(users) + 1])]
    info = IndexInfo.from_dict(task.index)
    folder = task.cache.local_copy_of_files(task.index_dir, info.checksums())
    retriever = open_retriever(folder, info, task.nprobe, task.overfetch)
    exact = open_retriever(folder, info.as_exact())
    if rule >= 0:
        retriever, exact = (searcher.restrict(allowed[retrievable]) for searcher in (retriever, exact))
    queries = column_matrix(batch["embedding"].filter(pa.array(users)))
    result = search_unseen(retriever, exact, queries, offsets, seen[is_wanted], task.n_candidates, len(retrievable))
    # The extra last entry answers what was not found.
    return SearchResult(result.scores, np.append(retrievable, NO_CODE)[result.codes], result.counts)


def make_popular_list(segment: str | None, allowed: np.ndarray, task: RetrieveTask) -> tuple[np.ndarray, np.ndarray]:
    """Make the popular list of a user without an embedding: codes and scores, by score descending, then code.

    The segment's items score their number of users (at least 1); what follows from everybody's list scores its share of the
    most popular item's users (below 1); the rest of the catalogue scores 0.

    ``allowed``: bool [n], what this user may get.
    """
    all_codes, all_scores = task.popular[ALL_SEGMENTS]
    codes, scores = task.popular.get(segment or ALL_SEGMENTS, task.popular[ALL_SEGMENTS])
    by_code = np.zeros(len(allowed), dtype=np.float32)
    by_code[all_codes] = all_scores / (all_scores.max(initial=0.0) + 1.0)
    by_code[codes] = scores
    allowed_codes = np.flatnonzero(allowed).astype(np.int64)
    best = allowed_codes[np.argsort(-by_code[allowed_codes], kind="stable")[: task.n_candidates]]
    return best, by_code[best]
