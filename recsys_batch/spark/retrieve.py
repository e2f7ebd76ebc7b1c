"""Executor code of the candidates step: user embeddings and seen items in, each user's best unseen items out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_batch.ann.index import IndexInfo
from recsys_batch.ann.search import open_retriever, retrieve
from recsys_batch.catalogue import Catalogue, open_catalogue
from recsys_batch.ragged import column_matrix, list_column, mask_ragged, ragged
from recsys_batch.schemas import ALL_SEGMENTS, TABLES, IdTypes
from recsys_batch.spark.batches import BatchFunction


@dataclass(frozen=True)
class RetrieveTask:
    """What executors need to know; small, as it travels in the closure.

    Attributes:
        popular: segment -> (catalogue codes int64, scores float32), best first; has ALL_SEGMENTS.
    """

    run_id: str
    ids: IdTypes
    catalogue_dir: str
    index_dir: str
    index: Mapping[str, Any]
    nprobe: int | None
    n_candidates: int
    popular: Mapping[str, tuple[np.ndarray, np.ndarray]]


def candidate_finder(task: RetrieveTask) -> BatchFunction:
    """A function for mapInArrow: (user_id, embedding or null, seen or null, segment or null) -> rows of candidates.

    Every user gets ``n_candidates`` unseen retrievable items, or all there are. Without an embedding it is the popular
    list of the segment, continued by everybody's, then by the rest of the catalogue in id order.
    """
    schema = TABLES["candidates"].arrow_schema(task.ids)

    def find(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows == 0:
                continue
            codes, scores, counts = _find(batch, task)
            catalogue = open_catalogue(task.catalogue_dir)
            pairs = pa.StructArray.from_arrays(
                [catalogue.ids(codes), pa.array(scores, type=pa.float32())], fields=list(schema.field("items").type.value_type)
            )
            items = list_column(pairs, np.concatenate([[0], np.cumsum(counts)])).cast(schema.field("items").type)
            yield pa.RecordBatch.from_arrays([pa.array([task.run_id] * batch.num_rows), batch["user_id"], items], schema=schema)

    return find


def _find(batch: pa.RecordBatch, task: RetrieveTask) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat codes, flat scores, and counts [n] in the batch's order."""
    catalogue = open_catalogue(task.catalogue_dir)
    seen_ids, seen_offsets = ragged(batch["seen"])
    seen_codes = catalogue.codes(seen_ids)
    embedded = np.asarray(batch["embedding"].is_valid())
    lists: list[tuple[np.ndarray, np.ndarray]] = [_EMPTY] * batch.num_rows
    if embedded.any():
        for row, found in zip(np.flatnonzero(embedded), _nearest(batch, embedded, seen_codes, seen_offsets, catalogue, task), strict=True):
            lists[row] = found
    segments = batch["segment"]
    for row in np.flatnonzero(~embedded):
        seen = seen_codes[seen_offsets[row] : seen_offsets[row + 1]]
        lists[row] = popular_list(segments[int(row)].as_py(), seen, catalogue, task)
    codes, scores = (np.concatenate(parts) for parts in zip(*lists, strict=True))
    return codes, scores, np.array([len(found) for found, _ in lists], dtype=np.int64)


_EMPTY = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))


def _nearest(
    batch: pa.RecordBatch,
    embedded: np.ndarray,
    seen_codes: np.ndarray,
    seen_offsets: np.ndarray,
    catalogue: Catalogue,
    task: RetrieveTask,
) -> list[tuple[np.ndarray, np.ndarray]]:
    # The index holds retrievable items only, in code order: its row r is the item retrievable[r].
    retrievable = catalogue.retrievable_codes()
    row_of_code = np.full(len(catalogue) + 1, -1, dtype=np.int64)  # the extra last entry answers code -1
    row_of_code[retrievable] = np.arange(len(retrievable))
    seen_rows = row_of_code[seen_codes]
    wanted = np.repeat(embedded, np.diff(seen_offsets)) & (seen_rows >= 0)
    offsets = mask_ragged(seen_offsets, wanted)[np.concatenate([[0], np.flatnonzero(embedded) + 1])]
    info = IndexInfo.from_dict(task.index)
    found = retrieve(
        open_retriever(task.index_dir, info, nprobe=task.nprobe),
        open_retriever(task.index_dir, info.exact()),
        column_matrix(batch["embedding"].filter(pa.array(embedded))),
        offsets,
        seen_rows[wanted],
        task.n_candidates,
        len(retrievable),
    )
    return [(retrievable[found.codes[i, :count]], found.scores[i, :count]) for i, count in enumerate(found.counts)]


def popular_list(segment: str | None, seen: np.ndarray, catalogue: Catalogue, task: RetrieveTask) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scores of a user without an embedding, by score descending, then code.

    The segment's items score their number of users (at least 1); what follows from everybody's list scores its share of the
    most popular item's users (below 1); the rest of the catalogue scores 0.
    """
    all_codes, all_scores = task.popular[ALL_SEGMENTS]
    codes, scores = task.popular.get(segment or ALL_SEGMENTS, task.popular[ALL_SEGMENTS])
    by_code = np.zeros(len(catalogue), dtype=np.float32)
    by_code[all_codes] = all_scores / (all_scores.max(initial=0.0) + 1.0)
    by_code[codes] = scores
    unseen = catalogue.retrievable.copy()
    unseen[seen[seen >= 0]] = False
    left = np.flatnonzero(unseen).astype(np.int64)
    best = left[np.argsort(-by_code[left], kind="stable")[: task.n_candidates]]
    return best, by_code[best]
