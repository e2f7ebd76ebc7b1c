"""Lists of a micro-batch as a snapshot can rank them: without items that came after its night."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from recsys_batch.online.live.batch_records import restrict_to_catalogue
from recsys_batch.schemas import TABLES, IdTypes

IDS = IdTypes("BIGINT", "BIGINT")
KNOWN = SimpleNamespace(codes=lambda ids: np.array([item // 10 if item < 100 else -1 for item in ids.to_pylist()]))


def candidates_of(lists: dict[int, list[int]]) -> pa.Table:
    schema = pa.schema([TABLES["candidates"].arrow_schema(IDS).field(name) for name in ("user_id", "items")])
    rows = [{"user_id": user, "items": [{"item_id": item, "score": float(item)} for item in items]} for user, items in lists.items()]
    return pa.Table.from_pylist(rows, schema=schema)


def topk_of(ranks: dict[int, list[int]]) -> pa.Table:
    """candidate_rank of each user's ranks."""
    schema = pa.schema([TABLES["topk"].arrow_schema(IDS).field(name) for name in ("user_id", "rank", "score", "candidate_rank")])
    rows = [
        {"user_id": user, "rank": rank, "score": 1.0 / candidate, "candidate_rank": candidate}
        for user, candidates in ranks.items()
        for rank, candidate in enumerate(candidates, start=1)
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def test_items_that_the_catalogue_lacks_go_and_ranks_close_up() -> None:
    candidates = candidates_of({1: [500, 10, 600, 20], 2: [700], 3: [30, 40]})
    topk = topk_of({1: [3, 4, 2, 1], 2: [1], 3: [2, 1]})
    lists, top = restrict_to_catalogue(candidates, topk, KNOWN)  # type: ignore[arg-type]
    assert [[pair["item_id"] for pair in items] for items in lists["items"].to_pylist()] == [[10, 20], [], [30, 40]]
    assert [tuple(row.values()) for row in top.select(["user_id", "rank", "candidate_rank"]).to_pylist()] == [
        (1, 1, 2),
        (1, 2, 1),
        (3, 1, 2),
        (3, 2, 1),
    ]
    assert top["score"].to_pylist() == [0.25, 0.5, 0.5, 1.0]
    assert (lists.schema, top.schema) == (candidates.schema, topk.schema)


def test_lists_of_known_items_are_left_as_they_are() -> None:
    candidates, topk = candidates_of({1: [10, 20]}), topk_of({1: [2, 1]})
    assert restrict_to_catalogue(candidates, topk, KNOWN) == (candidates, topk)  # type: ignore[arg-type]
