"""Encode rankings as answers, and answers as JSON.

Called by serving/ranking_service.py, which makes answers; by serving/snapshot_manager.py, which encodes a few to warm a snapshot up; and by
the HTTP front ends, which send them.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from recsys_batch.online.api.messages import Answer, AnswerItem
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.ranking.rank_result import RankResult
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_record import LiveOrigin

_ENCODER = msgspec.json.Encoder()


def to_json(value: Any) -> bytes:
    """Encode a structure or a plain value as JSON."""
    return _ENCODER.encode(value)


def encode_answer(
    result: RankResult,
    query: RankQuery,
    snapshot: Snapshot,
    request_id: str,
    timings: Mapping[str, float],
    live: LiveOrigin | None = None,
) -> Answer:
    """Make the answer of a ranking: item codes become ids and titles of the snapshot.

    Args:
        timings: seconds.
        live: where the user's lists are from; None for the night's, and for a user without any.
    """
    items = _items(result, query, snapshot)
    facts = snapshot.facts
    milliseconds = {name: round(1000 * seconds, 3) for name, seconds in timings.items()}
    answer = Answer(query.user_id, items, result.source, result.degraded, facts.snapshot_id, facts.model_version, request_id, milliseconds)
    if live is not None:
        answer.lists, answer.events_through = "live", live.events_through
    if result.exploration is not None:
        answer.explored = result.exploration.n_changed or msgspec.UNSET
    if result.unknown_item_ids is not None:
        answer.candidates, answer.unknown_item_ids = "request", list(result.unknown_item_ids)
    return answer


def _items(result: RankResult, query: RankQuery, snapshot: Snapshot) -> list[AnswerItem]:
    codes = result.codes.tolist()
    columns = (snapshot.items.item_ids(result.codes), result.scores.tolist(), result.candidate_ranks.tolist(), snapshot.items.titles(codes))
    items = [
        AnswerItem(item_id, score, rank, candidate_rank or None, title)
        for rank, (item_id, score, candidate_rank, title) in enumerate(zip(*columns, strict=True), 1)
    ]
    if query.explain:
        for position, item in enumerate(items):
            if result.batch_ranks is not None:
                item.batch_rank = int(result.batch_ranks[position]) or None
            if result.contributions is not None:
                item.contributions = {group: round(float(values[position]), 6) for group, values in result.contributions.items()}
    return items
