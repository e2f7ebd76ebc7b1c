"""Precomputed lists of a user as bytes: what a store holds under the user's key.

Little-endian: a header of 16 bytes (format, flags, segment, n_events, numbers of candidates, of top-K rows, of dimensions), then
the user's embedding float32 [d], candidates' codes int32 [C] and retrieval scores float32 [C], the top-K's scores float32 [K] and
candidate ranks uint16 [K]. The top-K's items are candidates, so their codes are not repeated.
"""

import datetime as dt
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recsys_batch.errors import RecsysBatchError

RECORD_FORMAT = 1
NO_SEGMENT = 0xFFFF
MAX_CANDIDATES = 0xFFFF
"""Candidates that a record can hold."""
_HEADER = struct.Struct("<BBHIHHHH")
_HAS_EMBEDDING = 1


class LiveOrigin(NamedTuple):
    """Origin of a list that the stream refreshed since the night.

    Attributes:
        batch_id: version of interactions that it goes up to; greater is newer.
        written_at: when its micro-batch was committed, UTC.
        events_through: newest event of the user that it knows, UTC; None where none has a time.
    """

    batch_id: int
    written_at: dt.datetime
    events_through: dt.datetime | None


@dataclass(slots=True)
class UserRecord:
    """A user's part of a run.

    Attributes:
        embedding: float32 [d]; None for a user without one, whose candidates are a popular list.
        n_events: distinct items that the user has a positive interaction with.
        segment: place in the snapshot's segments; None for none.
        codes: int32 [C], candidates by retrieval rank. retrieval: float32 [C].
        top_places: int [K], places in ``codes`` of the published top-K, best first. top_scores: float32 [K].
        live: where the lists are from; None for the night's.
    """

    embedding: np.ndarray | None
    n_events: int
    segment: int | None
    codes: np.ndarray
    retrieval: np.ndarray
    top_places: np.ndarray
    top_scores: np.ndarray
    live: LiveOrigin | None = None

    def batch_ranks(self) -> np.ndarray:
        """Rank the candidates as the published top-K does: int64 [C], from 1; 0 where one is not in it."""
        ranks = np.zeros(len(self.codes), dtype=np.int64)
        ranks[self.top_places] = np.arange(1, len(self.top_places) + 1)
        return ranks


def stack_published_scores(records: Sequence[UserRecord]) -> np.ndarray:
    """Stack the published scores of records with equally many candidates, each at its candidate's place: float32 [B, C]; NaN elsewhere."""
    scores = np.full((len(records), len(records[0].codes)), np.nan, np.float32)
    starts = np.repeat(np.arange(len(records)) * scores.shape[1], [len(record.top_places) for record in records])
    places = np.concatenate([record.top_places for record in records], dtype=np.int64) + starts
    scores.put(places, np.concatenate([record.top_scores for record in records]))
    return scores


def encode_record(record: UserRecord) -> bytes:
    """Encode a user's record as bytes. Raises RecsysBatchError: more candidates, dimensions or segments than a record has room for."""
    d = 0 if record.embedding is None else len(record.embedding)
    c, k = len(record.codes), len(record.top_places)
    segment = NO_SEGMENT if record.segment is None else record.segment
    if max(c, k, d) > MAX_CANDIDATES or segment > NO_SEGMENT:
        raise RecsysBatchError(
            f"a user has {c} candidates, {k} rows, {d} dimensions, segment {segment}: a snapshot holds at most {MAX_CANDIDATES} of each"
        )
    header = _HEADER.pack(RECORD_FORMAT, _HAS_EMBEDDING if d else 0, segment, min(record.n_events, 2**32 - 1), c, k, d, 0)
    embedding = b"" if record.embedding is None else record.embedding.astype("<f4").tobytes()
    candidates = record.codes.astype("<i4").tobytes() + record.retrieval.astype("<f4").tobytes()
    return header + embedding + candidates + record.top_scores.astype("<f4").tobytes() + record.top_places.astype("<u2").tobytes()


def decode_record(record: bytes) -> UserRecord:
    """Decode what ``encode_record`` wrote; arrays are views of the record. Raises RecsysBatchError: cut short, or of another format."""
    if len(record) < _HEADER.size:
        raise RecsysBatchError(f"a user's record has {len(record)} bytes, fewer than its header: the store is damaged, export it again")
    version, flags, segment, n_events, c, k, d, _ = _HEADER.unpack_from(record)
    if version != RECORD_FORMAT or len(record) != _HEADER.size + 4 * d + 8 * c + 6 * k:
        raise RecsysBatchError(
            f"a user's record of {len(record)} bytes is of format {version}, this release reads {RECORD_FORMAT}: export it again"
        )
    at = _HEADER.size
    embedding = np.frombuffer(record, "<f4", d, at) if flags & _HAS_EMBEDDING else None
    at += 4 * d
    codes, retrieval = np.frombuffer(record, "<i4", c, at), np.frombuffer(record, "<f4", c, at + 4 * c)
    at += 8 * c
    top_scores, top_places = np.frombuffer(record, "<f4", k, at), np.frombuffer(record, "<u2", k, at + 4 * k)
    return UserRecord(embedding, n_events, None if segment == NO_SEGMENT else segment, codes, retrieval, top_places, top_scores)
