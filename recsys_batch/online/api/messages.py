"""Bodies of requests and answers as typed structures: decode.py and encode.py use them, http/openapi.py makes schemas of them.

Bounds that a schema can state are in the schema only: decode.py checks them, as its sentences say what was found.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Id = int | str
Lists = Literal["night", "live"]
"""Where a user's lists are from: the night, or the stream since."""

MAX_DEADLINE_MS = 60_000
MAX_REQUEST_ID_LENGTH = 200
MAX_EVENT_TYPE_LENGTH = 100
MAX_WEIGHT = 1e30


def _schema(**keywords: Any) -> Meta:
    return Meta(extra_json_schema=keywords)


class BadRequest(Exception):
    """A request that cannot be answered as it is; the message says why. Status 400."""


@dataclass(frozen=True)
class Bounds:
    """Limits of a request that a server can be given.

    Attributes:
        max_k: items of an answer. max_ids: entries of session_item_ids, of exclude_item_ids and of events.
        max_categories: entries of filters.categories.
    """

    max_k: int = 200
    max_ids: int = 1000
    max_categories: int = 100


class Filters(Struct, forbid_unknown_fields=True):
    """Conditions on the items of an answer."""

    categories: list[str] = []


class RankRequest(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/rank."""

    user_id: Id
    k: Annotated[int, _schema(minimum=1)] = 10
    context: dict[str, Any] = {}
    exclude_item_ids: list[Id] = []
    filters: Filters | None = None
    deadline_ms: Annotated[float, _schema(exclusiveMinimum=0, maximum=MAX_DEADLINE_MS)] | None = None
    explain: bool = False
    request_id: Annotated[str, _schema(maxLength=MAX_REQUEST_ID_LENGTH)] | None = None


class FeedbackBody(Struct, forbid_unknown_fields=True):
    """Event in the body of POST /v1/feedback."""

    user_id: Id
    item_id: Id
    event_type: Annotated[str, _schema(minLength=1, maxLength=MAX_EVENT_TYPE_LENGTH)]
    request_id: str | None = None
    timestamp: float | str | None = None
    weight: Annotated[float, _schema(exclusiveMinimum=-MAX_WEIGHT, exclusiveMaximum=MAX_WEIGHT)] = 1.0


class Feedback(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/feedback."""

    events: Annotated[list[FeedbackBody], _schema(minItems=1)]


class AnswerItem(Struct):
    """An item of an answer; the last two only where ``explain`` was asked for."""

    item_id: Id
    score: float
    rank: int
    candidate_rank: int | None
    title: str | None = None
    batch_rank: int | UnsetType | None = UNSET
    contributions: dict[str, float] | UnsetType = UNSET


class Answer(Struct):
    """Answer of POST /v1/rank and GET /v1/users/{user_id}/topk.

    ``events_through``, only where ``lists`` is live: the newest event of the user that they know; null where none has a time.
    ``explored``, only where it is not 0: number of places whose item is there for exploration (online.explore).
    """

    user_id: Id
    items: list[AnswerItem]
    source: str
    degraded: str | None
    snapshot_id: str
    model_version: str
    request_id: str
    timings_ms: dict[str, float]
    lists: Lists = "night"
    events_through: dt.datetime | UnsetType | None = UNSET
    explored: int | UnsetType = UNSET
