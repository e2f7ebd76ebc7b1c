"""What comes over the wire and goes back, as typed structures; a body that does not fit is a BadRequest with a sentence."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from recsys_batch.online.exposure_log.feedback import FeedbackEvent
from recsys_batch.online.ranking.ladder import Ranked
from recsys_batch.online.ranking.rank_query import Query
from recsys_batch.online.snapshot.reader import Snapshot

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


_RANK = msgspec.json.Decoder(RankRequest)
_FEEDBACK = msgspec.json.Decoder(Feedback)
_ENCODER = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """JSON."""
    return _ENCODER.encode(value)


def read_rank(body: bytes, bounds: Bounds, arrived: float) -> tuple[Query, str | None]:
    """The query, and the caller's request id.

    Args:
        arrived: time.perf_counter() when the request did, from which deadline_ms counts.

    Raises:
        BadRequest: not JSON of that form, or beyond the bounds.
    """
    request = _decoded(_RANK, body)
    check_k(request.k, bounds)
    categories = request.filters.categories if request.filters else []
    if len(categories) > bounds.max_categories:
        raise BadRequest(f"filters.categories has {len(categories)} names, at most {bounds.max_categories} are allowed")
    _check_ids("exclude_item_ids", request.exclude_item_ids, bounds)
    if request.deadline_ms is not None and not 0 < request.deadline_ms <= 60_000:
        raise BadRequest(f"deadline_ms is {request.deadline_ms}: expected more than 0 and at most 60000")
    if request.request_id is not None and len(request.request_id) > 200:
        raise BadRequest(f"request_id has {len(request.request_id)} characters, at most 200 are allowed")
    context = dict(request.context)
    session = _session(context.pop("session_item_ids", None), bounds)
    device, segment = context.pop("device", None), context.pop("segment", None)
    query = Query(
        user_id=request.user_id,
        k=request.k,
        when=read_time(context.pop("timestamp", None)),
        session_item_ids=session,
        device=_text("device", device),
        attributes=context,
        exclude_item_ids=request.exclude_item_ids,
        categories=categories,
        deadline=None if request.deadline_ms is None else arrived + request.deadline_ms / 1000,
        explain=request.explain,
        segment=_text("segment", segment),
    )
    return query, request.request_id


def read_feedback(body: bytes, bounds: Bounds) -> list[FeedbackEvent]:
    """The events; without a timestamp they happened now.

    Raises:
        BadRequest: as ``read_rank``.
    """
    events: list[FeedbackBody] = _decoded(_FEEDBACK, body).events
    if not 1 <= len(events) <= bounds.max_ids:
        raise BadRequest(f"events has {len(events)} entries: expected 1 to {bounds.max_ids}")
    now = dt.datetime.now(dt.UTC)
    return [_event(event, now) for event in events]


def _event(given: FeedbackBody, now: dt.datetime) -> FeedbackEvent:
    if not 1 <= len(given.event_type) <= 100:
        raise BadRequest(f"event_type has {len(given.event_type)} characters: expected 1 to 100")
    if not abs(given.weight) < 1e30:
        raise BadRequest(f"weight is {given.weight}: expected a number below 1e30")
    when = read_time(given.timestamp) or now
    return FeedbackEvent(given.request_id, given.user_id, given.item_id, when, given.event_type, given.weight)


def check_k(k: int, bounds: Bounds) -> None:
    """Raises BadRequest where k is out of bounds."""
    if not 1 <= k <= bounds.max_k:
        raise BadRequest(f"k is {k}: expected 1 to {bounds.max_k}")


def read_time(value: Any) -> dt.datetime | None:
    """Seconds since 1970, or ISO 8601; UTC. None for none.

    Raises:
        BadRequest: neither, or no date that there is.
    """
    if value is None:
        return None
    try:
        if isinstance(value, str):
            parsed = dt.datetime.fromisoformat(value)
            return parsed.replace(tzinfo=dt.UTC) if parsed.tzinfo is None else parsed.astimezone(dt.UTC)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return dt.datetime.fromtimestamp(value, dt.UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise BadRequest(f"timestamp is {_short(value)}: expected seconds since 1970, or ISO 8601 like 2026-11-24T20:15:00Z")


def answer(ranked: Ranked, query: Query, snapshot: Snapshot, request_id: str, timings: Mapping[str, float]) -> Answer:
    """In words. ``timings`` are seconds."""
    items = _items(ranked, query, snapshot)
    facts = snapshot.manifest.facts
    milliseconds = {name: round(1000 * seconds, 3) for name, seconds in timings.items()}
    return Answer(query.user_id, items, ranked.source, ranked.degraded, facts.snapshot_id, facts.model_version, request_id, milliseconds)


def _items(ranked: Ranked, query: Query, snapshot: Snapshot) -> list[AnswerItem]:
    codes = ranked.codes.tolist()
    columns = (snapshot.items.item_ids(ranked.codes), ranked.scores.tolist(), ranked.candidate_ranks.tolist(), snapshot.items.titles(codes))
    items = [
        AnswerItem(item_id, score, rank, candidate_rank or None, title)
        for rank, (item_id, score, candidate_rank, title) in enumerate(zip(*columns, strict=True), 1)
    ]
    if query.explain:
        for place, item in enumerate(items):
            if ranked.batch_ranks is not None:
                item.batch_rank = int(ranked.batch_ranks[place]) or None
            if ranked.contributions is not None:
                item.contributions = {group: round(float(values[place]), 6) for group, values in ranked.contributions.items()}
    return items


def _decoded(decoder: Any, body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not as expected: {error}") from None


def _session(value: Any, bounds: Bounds) -> list[Id]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, int | str) and not isinstance(one, bool) for one in value):
        raise BadRequest(f"context.session_item_ids is {_short(value)}: expected a list of item ids")
    _check_ids("context.session_item_ids", value, bounds)
    return value


def _check_ids(name: str, ids: list[Id], bounds: Bounds) -> None:
    if len(ids) > bounds.max_ids:
        raise BadRequest(f"{name} has {len(ids)} ids, at most {bounds.max_ids} are allowed")


def _text(name: str, value: Any) -> str | None:
    """What is not text counts as its text: an unknown value, not an error."""
    return value if value is None or isinstance(value, str) else str(value)[:100]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
