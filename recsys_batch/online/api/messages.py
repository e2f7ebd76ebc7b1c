"""What comes over the wire and goes back, as typed structures; a body that does not fit is a BadRequest with a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, Struct, UnsetType

Id = int | str


class BadRequest(Exception):
    """A request that cannot be answered as it is; the message says why. Status 400."""


@dataclass(frozen=True)
class Bounds:
    """Limits of a request. The most items of a list, of session_item_ids or exclude_item_ids, and of categories."""

    max_k: int = 200
    max_ids: int = 1000
    max_categories: int = 100


class Filters(Struct, forbid_unknown_fields=True):
    categories: list[str] = []


class RankRequest(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/rank."""

    user_id: Id
    k: int = 10
    context: dict[str, Any] = {}
    exclude_item_ids: list[Id] = []
    filters: Filters | None = None
    deadline_ms: float | None = None
    explain: bool = False
    request_id: str | None = None


class FeedbackBody(Struct, forbid_unknown_fields=True):
    """One event of POST /v1/feedback."""

    user_id: Id
    item_id: Id
    event_type: str
    request_id: str | None = None
    timestamp: float | str | None = None
    weight: float = 1.0


class Feedback(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/feedback."""

    events: list[FeedbackBody]


class AnswerItem(Struct):
    item_id: Id
    score: float
    rank: int
    candidate_rank: int | None
    title: str | None = None
    batch_rank: int | UnsetType | None = UNSET
    contributions: dict[str, float] | UnsetType = UNSET


class Answer(Struct):
    """Of POST /v1/rank and GET /v1/users/{user_id}/topk."""

    user_id: Id
    items: list[AnswerItem]
    source: str
    degraded: str | None
    snapshot_id: str
    model_version: str
    request_id: str
    timings_ms: dict[str, float]
