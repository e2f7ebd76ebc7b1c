"""Bodies of requests and answers as typed structures: decode.py and encode.py use them, http/openapi.py makes schemas of them.

Bounds that a schema can state are in the schema only: decode.py checks them, as its sentences say what was found. There a name of
``Bounds`` stands for the number that the server was given.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Id = int | str
Lists = Literal["night", "live"]
"""Where a user's lists are from: the night, or the stream since."""
Candidates = Literal["retrieved", "request"]
"""Whose choice the candidates of an answer are: the server retrieved them, or the request brought them."""

MAX_DEADLINE_MS = 60_000
MAX_REQUEST_ID_LENGTH = 200
MAX_EVENT_TYPE_LENGTH = 100
MAX_WEIGHT = 1e30
MAX_BATCH_REQUESTS = 64
MAX_REASON_LENGTH = 200
"""Characters of a decoder's error in an answer: msgspec repeats the name of a field that nobody knows, however long."""


def _schema(**keywords: Any) -> Meta:
    return Meta(extra_json_schema=keywords)


class BadRequest(Exception):
    """A request that cannot be answered as it is; the message says why. Status 400."""


@dataclass(frozen=True)
class Bounds:
    """Limits of a request that a server can be given.

    Attributes:
        max_k: items of an answer. max_ids: entries of session_item_ids, of exclude_item_ids and of events.
        max_categories: entries of filters.categories. max_candidates: entries of candidate_item_ids and of candidate_scores.
    """

    max_k: int = 200
    max_ids: int = 1000
    max_categories: int = 100
    max_candidates: int = 1000


_CandidateScore = Annotated[float, _schema(exclusiveMinimum=-MAX_WEIGHT, exclusiveMaximum=MAX_WEIGHT)]
_Ids = Annotated[list[Id], _schema(maxItems="max_ids")]
_ID_SCHEMA = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
_TIME_SCHEMA = {"type": ["number", "string", "null"], "description": "seconds since 1970, or ISO 8601"}
_Context = Annotated[
    dict[str, Any],
    _schema(
        properties={
            "timestamp": _TIME_SCHEMA,
            "session_item_ids": {"type": ["array", "null"], "items": _ID_SCHEMA, "maxItems": "max_ids"},
            "device": {},
            "segment": {},
        },
        additionalProperties=True,
    ),
]


class Filters(Struct, forbid_unknown_fields=True):
    """Conditions on the items of an answer."""

    categories: Annotated[list[str], _schema(maxItems="max_categories")] = []


class RankRequest(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/rank."""

    user_id: Id
    k: Annotated[int, _schema(minimum=1, maximum="max_k")] = 10
    context: _Context = {}
    exclude_item_ids: _Ids = []
    filters: Filters | None = None
    deadline_ms: Annotated[float, _schema(exclusiveMinimum=0, maximum=MAX_DEADLINE_MS)] | None = None
    explain: bool = False
    request_id: Annotated[str, _schema(maxLength=MAX_REQUEST_ID_LENGTH)] | None = None
    candidate_item_ids: Annotated[list[Id], _schema(maxItems="max_candidates")] | None = None
    candidate_scores: Annotated[list[_CandidateScore], _schema(maxItems="max_candidates")] | None = None


class RankBatch(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/rank:batch."""

    requests: Annotated[list[RankRequest], _schema(minItems=1, maxItems=MAX_BATCH_REQUESTS)]


class FeedbackBody(Struct, forbid_unknown_fields=True):
    """Event in the body of POST /v1/feedback."""

    user_id: Id
    item_id: Id
    event_type: Annotated[str, _schema(minLength=1, maxLength=MAX_EVENT_TYPE_LENGTH)]
    request_id: Annotated[str, _schema(maxLength=MAX_REQUEST_ID_LENGTH)] | None = None
    timestamp: float | str | None = None
    weight: Annotated[float, _schema(exclusiveMinimum=-MAX_WEIGHT, exclusiveMaximum=MAX_WEIGHT)] = 1.0


class Feedback(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/feedback."""

    events: Annotated[list[FeedbackBody], _schema(minItems=1, maxItems="max_ids")]


class AnswerItem(Struct):
    """An item of an answer; the last two only where ``explain`` was asked for. A contribution that is no number is null."""

    item_id: Id
    score: float
    rank: int
    candidate_rank: int | None
    title: str | None = None
    batch_rank: int | UnsetType | None = UNSET
    contributions: dict[str, float | None] | UnsetType = UNSET


class Answer(Struct):
    """Answer of POST /v1/rank and GET /v1/users/{user_id}/topk.

    ``events_through``, only where ``lists`` is live: the newest event of the user that they know; null where none has a time.
    ``explored``, only where it is not 0: number of places whose item is there for exploration (online.explore).
    ``candidates`` and ``unknown_item_ids``, only where the request brought its candidates: ids that the snapshot does not have, each once.
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
    candidates: Candidates | UnsetType = UNSET
    unknown_item_ids: list[Id] | UnsetType = UNSET


class RankFailure(Struct):
    """An answer of POST /v1/rank:batch that is none: the sentence and the status that the request would have got alone."""

    error: str
    status: int


class RankBatchAnswer(Struct):
    """Answer of POST /v1/rank:batch: of each request, in their order, its ``Answer``, or a ``RankFailure``."""

    answers: Annotated[
        list[Any],
        _schema(
            items={
                "anyOf": [
                    {"$ref": "#/components/schemas/Answer"},
                    {
                        "type": "object",
                        "properties": {"error": {"type": "string"}, "status": {"type": "integer"}},
                        "required": ["error", "status"],
                    },
                ]
            }
        ),
    ]
