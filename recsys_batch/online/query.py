"""A request as the ranking takes it: validated, with its context in the terms of the features."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recsys_batch.features import Context, session_similarity

SESSION_ITEMS = 50
"""Newest items of a session that the similarity looks at; all of them are kept out of the answer."""


@dataclass(frozen=True, slots=True)
class Query:
    """A request for a ranked list.

    Attributes:
        when: the request's time, None where it gave none: a neutral context.
        deadline: of time.perf_counter(), None for none.
        segment: whose popular list stands in, where the request knows it.
        attributes: whatever else the context holds; what the feature spec does not name is of no effect.
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


def features_context(queries: Sequence[Query], candidates: np.ndarray, norms: np.ndarray, sessions: Sequence[np.ndarray]) -> Context | None:
    """For features.pair_features; None where nothing is known of any, which is the batch's neutral context.

    Args:
        candidates: float32 [B, C, d]; norms: float32 [B, C], their lengths.
        sessions: per query float32 [S, d], embeddings of the session's items that are known.
    """
    longest = max(len(session) for session in sessions)
    if not longest and all(query.when is None and query.device is None and not query.attributes for query in queries):
        return None
    similarity = None
    if longest:
        padded = np.zeros((len(queries), longest, candidates.shape[2]), np.float32)
        for row, session in enumerate(sessions):
            padded[row, : len(session)] = session
        similarity = session_similarity(candidates, padded, norms)
    times = [_hour_and_weekday(query.when) for query in queries]
    return Context(
        hour=np.array([hour for hour, _ in times]),
        weekday=np.array([weekday for _, weekday in times]),
        device=[query.device for query in queries],
        session_similarity=similarity,
        attributes=[query.attributes for query in queries],
    )


def _hour_and_weekday(when: dt.datetime | None) -> tuple[float, float]:
    if when is None:
        return math.nan, math.nan
    return when.hour + when.minute / 60 + when.second / 3600, float(when.weekday())
