"""Encode answers as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from recsys_batch.online.api.messages import Answer, AnswerItem
from recsys_batch.online.ranking.ladder import RankResult
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.snapshot.reader import Snapshot

_ENCODER = msgspec.json.Encoder()


def to_json(value: Any) -> bytes:
    """JSON."""
    return _ENCODER.encode(value)


def encode_answer(ranked: RankResult, query: RankQuery, snapshot: Snapshot, request_id: str, timings: Mapping[str, float]) -> Answer:
    """In words. ``timings`` are seconds."""
    items = _items(ranked, query, snapshot)
    facts = snapshot.manifest.facts
    milliseconds = {name: round(1000 * seconds, 3) for name, seconds in timings.items()}
    return Answer(query.user_id, items, ranked.source, ranked.degraded, facts.snapshot_id, facts.model_version, request_id, milliseconds)


def _items(ranked: RankResult, query: RankQuery, snapshot: Snapshot) -> list[AnswerItem]:
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
