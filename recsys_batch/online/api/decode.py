"""Decode the bodies of requests; one that does not fit is a BadRequest with a sentence that says what was found.

Called by http/endpoints.py. Makes queries and events; no snapshot is known here.
"""

import datetime as dt
import math
from typing import Any

import msgspec

from recsys_batch.dataset.log_rows import FeedbackEvent
from recsys_batch.errors import quote, shorten
from recsys_batch.online.api import messages
from recsys_batch.online.api.messages import BadRequest, Bounds, Feedback, FeedbackBody, Id, RankRequest
from recsys_batch.online.ranking.rank_query import RankQuery

_RANK_DECODER = msgspec.json.Decoder(RankRequest)
_FEEDBACK_DECODER = msgspec.json.Decoder(Feedback)


class _RawBatch(msgspec.Struct, forbid_unknown_fields=True):
    """``RankBatch`` before its requests are decoded, each for itself."""

    requests: list[msgspec.Raw]


_BATCH_DECODER = msgspec.json.Decoder(_RawBatch)
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def decode_rank_request(body: bytes, bounds: Bounds, arrived: float) -> tuple[RankQuery, str | None]:
    """Decode a body of POST /v1/rank to the query and the request id. Raises BadRequest: not JSON of that form, or beyond the bounds.

    Args:
        arrived: time.perf_counter() at the request's arrival, from which deadline_ms counts.
    """
    request = _decode(_RANK_DECODER, body)
    if not 1 <= request.k <= bounds.max_k:
        raise BadRequest(f"k is {quote(request.k)}: expected 1 to {bounds.max_k}")
    categories = request.filters.categories if request.filters else []
    if len(categories) > bounds.max_categories:
        raise BadRequest(f"filters.categories has {len(categories)} names, at most {bounds.max_categories} are allowed")
    _check_ids("exclude_item_ids", request.exclude_item_ids, bounds)
    if request.candidate_item_ids is not None or request.candidate_scores is not None:
        _check_candidates(request.candidate_item_ids, request.candidate_scores, bounds)
    if request.deadline_ms is not None and not 0 < request.deadline_ms <= messages.MAX_DEADLINE_MS:
        raise BadRequest(f"deadline_ms is {request.deadline_ms}: expected more than 0 and at most {messages.MAX_DEADLINE_MS}")
    _check_request_id(request.request_id)
    context = dict(request.context)
    session = _session_items(context.pop("session_item_ids", None), bounds)
    device, segment = _text(context.pop("device", None)), _text(context.pop("segment", None))
    query = RankQuery(
        user_id=request.user_id,
        k=request.k,
        when=parse_time(context.pop("timestamp", None)),
        session_item_ids=session,
        device=device,
        attributes=context,
        exclude_item_ids=request.exclude_item_ids,
        categories=categories,
        deadline=None if request.deadline_ms is None else arrived + request.deadline_ms / 1000,
        explain=request.explain,
        segment=segment,
        candidate_item_ids=request.candidate_item_ids,
        candidate_scores=request.candidate_scores,
    )
    return query, request.request_id


def decode_rank_batch(body: bytes, bounds: Bounds, arrived: float) -> list[tuple[RankQuery, str | None] | BadRequest]:
    """Decode a body of POST /v1/rank:batch to what ``decode_rank_request`` makes of each request, or the error that it raises.

    Raises BadRequest: the body itself is not of that form.
    """
    requests: list[msgspec.Raw] = _decode(_BATCH_DECODER, body).requests
    if not 1 <= len(requests) <= messages.MAX_BATCH_REQUESTS:
        raise BadRequest(f"requests has {len(requests)} entries: expected 1 to {messages.MAX_BATCH_REQUESTS}")
    decoded: list[tuple[RankQuery, str | None] | BadRequest] = []
    for request in requests:
        try:
            decoded.append(decode_rank_request(bytes(request), bounds, arrived))
        except BadRequest as error:
            decoded.append(error)
    return decoded


def decode_feedback(body: bytes, bounds: Bounds) -> list[FeedbackEvent]:
    """Decode a body of POST /v1/feedback; events without a timestamp happened now. Raises as ``decode_rank_request``."""
    events: list[FeedbackBody] = _decode(_FEEDBACK_DECODER, body).events
    if not 1 <= len(events) <= bounds.max_ids:
        raise BadRequest(f"events has {len(events)} entries: expected 1 to {bounds.max_ids}")
    now = dt.datetime.now(dt.UTC)
    return [_event(event, now) for event in events]


def _event(body: FeedbackBody, now: dt.datetime) -> FeedbackEvent:
    if not 1 <= len(body.event_type) <= messages.MAX_EVENT_TYPE_LENGTH:
        raise BadRequest(f"event_type has {len(body.event_type)} characters: expected 1 to {messages.MAX_EVENT_TYPE_LENGTH}")
    _check_request_id(body.request_id)
    if not abs(body.weight) < messages.MAX_WEIGHT:
        raise BadRequest(f"weight is {body.weight}: expected a number below 1e30")
    return FeedbackEvent(body.request_id, body.user_id, body.item_id, parse_time(body.timestamp) or now, body.event_type, body.weight)


def parse_time(value: Any) -> dt.datetime | None:
    """Parse seconds since 1970 or ISO 8601 to a time in UTC; None stays None. Raises BadRequest: neither, or a date that does not exist."""
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
    raise BadRequest(f"timestamp is {quote(value)}: expected seconds since 1970, or ISO 8601 like 2026-11-24T20:15:00Z")


def decode_json(body: bytes) -> Any:
    """Decode a body whose values the caller checks. Raises BadRequest: not JSON."""
    try:
        return msgspec.json.decode(body)
    except _DECODE_ERRORS as error:
        raise BadRequest(f"the body is not JSON: {shorten(str(error), messages.MAX_REASON_LENGTH)}") from None


def _decode(decoder: Any, body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except _DECODE_ERRORS as error:
        raise BadRequest(f"the body is not as expected: {shorten(str(error), messages.MAX_REASON_LENGTH)}") from None


def _session_items(value: Any, bounds: Bounds) -> list[Id]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item_id, int | str) and not isinstance(item_id, bool) for item_id in value):
        raise BadRequest(f"context.session_item_ids is {quote(value)}: expected a list of item ids")
    _check_ids("context.session_item_ids", value, bounds)
    return value


def _check_ids(name: str, ids: list[Id], bounds: Bounds) -> None:
    if len(ids) > bounds.max_ids:
        raise BadRequest(f"{name} has {len(ids)} ids, at most {bounds.max_ids} are allowed")


def _check_candidates(item_ids: list[Id] | None, scores: list[float] | None, bounds: Bounds) -> None:
    if item_ids is None:
        raise BadRequest("candidate_scores is there without candidate_item_ids: send both, or neither")
    if len(item_ids) > bounds.max_candidates:
        raise BadRequest(f"candidate_item_ids has {len(item_ids)} ids, at most {bounds.max_candidates} are allowed")
    if scores is None:
        return
    if len(scores) != len(item_ids):
        raise BadRequest(f"candidate_scores has {len(scores)} numbers for {len(item_ids)} candidate_item_ids: expected one for each")
    for place, score in enumerate(scores):
        if not abs(score) < messages.MAX_WEIGHT:
            raise BadRequest(f"candidate_scores[{place}] is {score}: expected a number below 1e30")


def _check_request_id(request_id: str | None) -> None:
    if request_id is not None and len(request_id) > messages.MAX_REQUEST_ID_LENGTH:
        raise BadRequest(f"request_id has {len(request_id)} characters, at most {messages.MAX_REQUEST_ID_LENGTH} are allowed")


def _text(value: Any) -> str | None:
    """Make a value text: one that is none is an unknown value, not an error."""
    return value if value is None or isinstance(value, str) else quote(value)
