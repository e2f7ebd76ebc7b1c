"""The users of a published run as records: candidates, top-K and embeddings met range by range, without the JVM and in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.snapshot.user_key import user_key
from recsys_batch.online.snapshot.user_record import UserRecord, encode_record
from recsys_batch.schemas import IdType
from recsys_batch.tables.list_columns import column_matrix, flatten_lists
from recsys_batch.tables.user_ranges import LIST_ROWS, UserRange, UserSortedFiles, group_boundaries, ranges_of_files
from recsys_batch.tables.user_rows import UserSortedSource


@dataclass(frozen=True)
class RecordBuilder:
    """A run's rows. Small, as it travels to executors; the catalogue is opened where it is needed.

    Attributes:
        segments: user_id and place (int32) in the snapshot's segments; None where the run had no users table.
    """

    candidates: UserSortedSource
    topk: UserSortedSource
    embeddings: UserSortedFiles
    segments: pa.Table | None = field(repr=False)

    @cached_property
    def user_ranges(self) -> list[UserRange]:
        """Ranges of users, a few tens of megabytes each, which together are everybody in the order of ids."""
        assert isinstance(self.candidates, UserSortedFiles)
        return ranges_of_files(self.candidates.parts)

    def keys(self) -> Iterator[bytes]:
        """Read the keys of all users, range by range."""
        kind = self.candidates.where.ids.user
        for user_range in self.user_ranges:
            for batch in self.candidates.batches(user_range, ["user_id"], LIST_ROWS):
                yield from (_require_key(user, kind) for user in batch["user_id"].to_pylist())

    def records(self, catalogue: Catalogue, user_range: UserRange) -> Iterator[tuple[bytes, bytes]]:
        """Build (key, record) of a range's users. Raises RecsysBatchError: rows that do not fit the catalogue, or each other."""
        known = self.embeddings.between(user_range, ["user_id", "embedding", "n_events"])
        topk = self.topk.between(user_range, ["user_id", "rank", "score", "candidate_rank"])
        holders, starts = group_boundaries(topk["user_id"].combine_chunks())
        scores, places = np.asarray(topk["score"], dtype=np.float32), np.asarray(topk["candidate_rank"], dtype=np.int64) - 1
        _check_ranks(np.asarray(topk["rank"], dtype=np.int64), starts)
        top, id_type = _TopkRows(holders, starts, scores, places), self.candidates.where.ids.user
        for batch in self.candidates.batches(user_range, ["user_id", "items"], LIST_ROWS):
            yield from _encode_batch(batch, known, top, self._segments_of(batch["user_id"]), catalogue, id_type)

    def _segments_of(self, users: pa.Array) -> list[int | None]:
        if self.segments is None:
            return [None] * len(users)
        row_of_user = pc.index_in(users, value_set=self.segments["user_id"].combine_chunks())
        segment_numbers: list[int | None] = self.segments["place"].combine_chunks().take(row_of_user).to_pylist()
        return segment_numbers


def _check_ranks(ranks: np.ndarray, starts: np.ndarray) -> None:
    lengths = np.diff(starts)
    if (ranks != np.arange(len(ranks)) - np.repeat(starts[:-1], lengths) + 1).any():
        raise RecsysBatchError("topk's rows are not in order of user_id and rank: was the table rewritten by something else?")


@dataclass(frozen=True)
class _TopkRows:
    """Rows of topk by user: user n of ``users`` has rows starts[n] to starts[n + 1]."""

    users: pa.Array
    starts: np.ndarray
    scores: np.ndarray
    places: np.ndarray


def _encode_batch(
    batch: pa.RecordBatch, known: pa.Table, top: _TopkRows, segments: list[int | None], catalogue: Catalogue, kind: IdType
) -> Iterator[tuple[bytes, bytes]]:
    users = batch["user_id"]
    pairs, offsets = flatten_lists(batch["items"])
    codes = catalogue.codes(pairs.field("item_id")).astype(np.int32)
    if (codes < 0).any():
        stray = pairs.field("item_id")[int(np.flatnonzero(codes < 0)[0])].as_py()
        raise RecsysBatchError(f"candidates name item {stray!r}, which the run's catalogue does not have: begin a new run (--force)")
    retrieval = np.asarray(pairs.field("score").to_numpy(zero_copy_only=False), dtype=np.float32)
    known_row = pc.index_in(users, value_set=known["user_id"].combine_chunks())
    modelled = np.asarray(known_row.is_valid())
    chosen = known.take(known_row.drop_null())
    vectors = column_matrix(chosen["embedding"].combine_chunks())
    n_events = np.asarray(chosen["n_events"].fill_null(0), dtype=np.int64)
    row_of = np.cumsum(modelled) - 1
    rows = np.asarray(pc.index_in(users, value_set=top.users).fill_null(-1))
    for n, user in enumerate(users.to_pylist()):
        part = slice(offsets[n], offsets[n + 1])
        rank = slice(top.starts[rows[n]], top.starts[rows[n] + 1]) if rows[n] >= 0 else slice(0, 0)
        lists = UserRecord(
            embedding=vectors[row_of[n]] if modelled[n] else None,
            n_events=int(n_events[row_of[n]]) if modelled[n] else 0,
            segment=segments[n],
            codes=codes[part],
            retrieval=retrieval[part],
            top_places=top.places[rank],
            top_scores=top.scores[rank],
        )
        yield _require_key(user, kind), encode_record(lists)


def _require_key(user: int | str, kind: IdType) -> bytes:
    key = user_key(user, kind)
    assert key is not None  # ids that a table holds all have one
    return key
