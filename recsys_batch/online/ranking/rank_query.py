"""A request as the ranking takes it: validated, with its context in the terms of the features."""

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recsys_batch.online.snapshot.item_table import ItemTable
from recsys_batch.ranking.features import Context, compute_session_similarity

SESSION_ITEMS = 50
"""Newest items of a session that the similarity looks at; all of them are kept out of the answer, unless retrieval.seen allows them."""


@dataclass(slots=True)
class RankQuery:
    """A request for a ranked list.

    Attributes:
        when: the request's time, None where it gave none: a neutral context.
        deadline: of time.perf_counter(), None for none.
        segment: whose popular list stands in, where the request knows it.
        attributes: whatever else the context holds; what the feature spec does not name is of no effect.
        candidate_item_ids: what is ranked, in the caller's order; None for what was retrieved for the user.
        candidate_scores: the caller's scores of these, of the same length; None where it has none.
    """

    user_id: int | str
    k: int
    when: dt.datetime | None = None
    session_item_ids: Sequence[int | str] = ()
    device: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    exclude_item_ids: Sequence[int | str] = ()
    categories: Sequence[str] = ()
    deadline: float | None = None
    explain: bool = False
    segment: str | None = None
    candidate_item_ids: Sequence[int | str] | None = None
    candidate_scores: Sequence[float] | None = None


def build_context(queries: Sequence[RankQuery], sessions: Sequence[Sequence[int]]) -> Context | None:
    """Build the context of queries without the session's similarity; None where nothing is known of any, the batch's neutral context.

    Args:
        sessions: per query, codes of the session's items that are known.
    """
    if not any(sessions) and all(query.when is None and query.device is None and not query.attributes for query in queries):
        return None
    times = [_hour_and_weekday(query.when) for query in queries]
    return Context(
        hour=np.array([hour for hour, _ in times]),
        weekday=np.array([weekday for _, weekday in times]),
        device=[query.device for query in queries],
        attributes=[query.attributes for query in queries],
    )


def pad_sessions(sessions: Sequence[Sequence[int]], filler: int | None) -> np.ndarray:
    """Make int64 [B, S] of sessions of up to S items; shorter ones are filled up with ``filler``, or their last item where that is None."""
    longest = max(map(len, sessions))
    rows = [[*session, *[(session[-1] if session else 0) if filler is None else filler] * (longest - len(session))] for session in sessions]
    return np.array(rows, np.int64).reshape(len(sessions), longest)


def compute_similarity(items: ItemTable, codes: np.ndarray, vectors: np.ndarray, sessions: Sequence[Sequence[int]]) -> np.ndarray:
    """Compute the largest cosine of each candidate with an item of the session: float32 [B, C], NaN where there is no session.

    Shorter sessions are filled with their own last item, which changes no maximum.

    Args:
        codes: int [B, C], candidates. vectors: float32 [B, C, d], their embeddings.
        sessions: per query, codes of items; one at least has some.
    """
    padded = pad_sessions(sessions, None)
    lengths = items.norms.take(padded)
    for row, session in enumerate(sessions):
        if not session:
            lengths[row] = 0.0
    return compute_session_similarity(vectors, items.catalogue.embeddings.take(padded, axis=0), items.norms.take(codes), lengths)


def _hour_and_weekday(when: dt.datetime | None) -> tuple[float, float]:
    if when is None:
        return math.nan, math.nan
    return when.hour + when.minute / 60 + when.second / 3600, float(when.weekday())
