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


def features_context(query: Query, candidates: np.ndarray, norms: np.ndarray, session: np.ndarray) -> Context | None:
    """For features.pair_features; None where nothing is known, which is the batch's neutral context.

    Args:
        candidates: float32 [1, C, d]; norms: float32 [1, C], their lengths.
        session: float32 [S, d], embeddings of the session's items that are known, newest last.
    """
    if query.when is None and query.device is None and len(session) == 0 and not query.attributes:
        return None
    hour, weekday = math.nan, math.nan
    if query.when is not None:
        hour, weekday = query.when.hour + query.when.minute / 60 + query.when.second / 3600, float(query.when.weekday())
    return Context(
        hour=np.array([hour]),
        weekday=np.array([weekday]),
        device=[query.device],
        session_similarity=session_similarity(candidates, session[None, -SESSION_ITEMS:], norms) if len(session) else None,
        attributes=[query.attributes],
    )
