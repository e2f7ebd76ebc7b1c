"""Rows of the online side's log, and their MessagePack: exposures, what was shown to whom, at which position, with which scores, in which
context, for later models to learn from; and feedback events, what a user did with an item, on its way to the next ingest.

Ids are as the request spells them: ingest, which knows the warehouse, decides what they name. Made by online/serving/exposure_recorder.py
and online/api/decode.py, read by ingest.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from recsys_batch.dataset.exposure_schema import EXPOSURES, FEEDBACK

LogId = int | str

_MAX_SPELT_DEPTH = 50
_MAX_DEPTH = 500
"""What is nested deeper is cut off: Python 3.12 and later encode thousands of levels, Python 3.11 decodes fewer than 1,000."""
_NO_ATTRIBUTES: Mapping[str, Any] = {}


class Exposure(NamedTuple):
    """An answer that was sent.

    Attributes:
        shown_at: with its time zone. user_id, session_item_ids: as the request spells them.
        source: what ordered the answer: ranker, batch, popular, retrieval or request. degraded: why nothing better did, or None.
        item_ids, scores: plain lists, best first: position is the index in them, from 1.
        batch_scores, candidate_ranks: of the same items; None (or None inside) where there are none.
        context_ts: the context's time, with its time zone.
        lists: night or live, where the user's lists were from.
        propensities, ranker_positions, batch_positions: of the same items, as ranking/exploration.py has them; None without exploration.
        candidates: retrieved or request, whose choice they were; candidate_ranks are places in the request's list then.
        candidate_scores: of the same items, the request's own; None where it brought none.
    """

    request_id: str
    shown_at: dt.datetime
    user_id: LogId
    snapshot_id: str | None
    model_version: str | None
    source: str
    degraded: str | None
    item_ids: Sequence[LogId]
    scores: Sequence[float]
    batch_scores: Sequence[float | None] | None = None
    candidate_ranks: Sequence[int | None] | None = None
    context_ts: dt.datetime | None = None
    device: str | None = None
    session_item_ids: Sequence[LogId] = ()
    attributes: Mapping[str, Any] = _NO_ATTRIBUTES
    lists: str | None = None
    propensities: Sequence[float] | None = None
    ranker_positions: Sequence[int] | None = None
    batch_positions: Sequence[int | None] | None = None
    candidates: str | None = None
    candidate_scores: Sequence[float] | None = None


class FeedbackEvent(NamedTuple):
    """An event of a user with an item.

    Attributes:
        request_id: of the answer that showed the item; None where there was none. event_ts: with its time zone.
        event_type: click, purchase, ... in the caller's words.
    """

    request_id: str | None
    user_id: LogId
    item_id: LogId
    event_ts: dt.datetime
    event_type: str
    weight: float = 1.0


ROW_TYPES: dict[str, type[Exposure] | type[FeedbackEvent]] = {EXPOSURES: Exposure, FEEDBACK: FeedbackEvent}
"""By the beginning of the files' names."""

_encoder = msgspec.msgpack.Encoder()
_decoders = {kind: msgspec.msgpack.Decoder(list[row_type]) for kind, row_type in ROW_TYPES.items()}  # type: ignore[valid-type]


def encode_row(row: Exposure | FeedbackEvent) -> bytes:
    """Encode a row; what MessagePack has not (a number beyond 64 bits, half a character) is spelt as text, and deep nesting is cut off.

    Raises:
        Exception: of any kind, where there is no way to write a value.
    """
    try:
        if not (isinstance(row, Exposure) and _is_deeper_than(row.attributes, _MAX_DEPTH)):
            return _encoder.encode(row)
    except Exception:
        pass
    return _encoder.encode([_spell(value, depth=0) for value in row])


def decode_rows(array: bytes, kind: str) -> tuple[list[Any], list[str]]:
    """Decode a MessagePack array of rows; returns (rows of the kind's type, the text of each row that is none)."""
    try:
        return _decoders[kind].decode(array), []
    except msgspec.ValidationError:
        raw_rows = msgspec.msgpack.decode(array, type=list[msgspec.Raw])
    rows, unreadable = list[Any](), list[str]()
    for raw in raw_rows:
        try:
            rows += _decoders[kind].decode(b"\x91" + bytes(raw))  # an array of one
        except msgspec.ValidationError as error:
            unreadable.append(f"{error}: {msgspec.msgpack.decode(raw)}")
    return rows, unreadable


def _is_deeper_than(value: Any, depth: int) -> bool:
    """Whether containers stand inside each other more than ``depth`` times; level by level, so that it needs no deep stack."""
    level = [value]
    for _ in range(depth):
        children = (child for container in level for child in (container.values() if isinstance(container, Mapping) else container))
        level = [child for child in children if isinstance(child, dict | list | tuple)]
        if not level:
            return False
    return True


def _spell(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    if depth >= _MAX_SPELT_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {_spell(key, depth + 1): _spell(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_spell(one, depth + 1) for one in value]
    return value
