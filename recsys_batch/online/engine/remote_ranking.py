"""Rank requests with a model server as the ranker: the same candidates, input, selection and ladder as with the snapshot's own."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from recsys_batch.online.ranking.exploration import Explorer
from recsys_batch.online.ranking.ladder import RankInput, fall_back, resolve_many, tracker_of
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.ranking.rank_result import RANKER_FAILED, RankResult
from recsys_batch.online.ranking.scoring_block import RankerInput, prepare_block, select_from_block
from recsys_batch.online.snapshot.reader import Snapshot


class RemoteFailure(Exception):
    """A model server gave no scores; ``reason`` is one of REASONS."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class ScoringClient(Protocol):
    """Scores of a model server.

    Attributes:
        max_calls: that it may have at once.
    """

    max_calls: int

    async def score(
        self, version: str, users: np.ndarray, items: np.ndarray, features: np.ndarray, deadline: float | None = None
    ) -> np.ndarray:
        """Score candidates: float32 [B, C] from float32 [B, d], [B, C, d], [B, C, F].

        Args:
            version: of the model that the snapshot is of.
            deadline: time.perf_counter() past which nobody needs the scores.

        Raises:
            RemoteFailure: the server does not answer in time, or not with scores of that model.
        """


async def rank_many_remotely(
    snapshot: Snapshot, inputs: Sequence[RankInput], latency: LatencyTracker, explorer: Explorer | None, client: ScoringClient
) -> list[RankResult]:
    """Answer queries that wait at the same time, as ``ladder.rank_many``, by a model server's scores.

    Queries with equally many candidates are one call. Where it fails, all of them are answered without the ranker: it is not asked again
    for each, as a server in trouble would get sixteen times the calls.
    """
    results, blocks = resolve_many(snapshot, inputs, latency)
    answered = await asyncio.gather(*(_rank_block(snapshot, pairs, latency, explorer, client) for _, pairs in blocks))
    for (numbers, _), ranked in zip(blocks, answered, strict=True):
        results.update(zip(numbers, ranked, strict=True))
    return [results[number] for number in range(len(inputs))]


async def _rank_block(
    snapshot: Snapshot, pairs: list[RankerInput], latency: LatencyTracker, explorer: Explorer | None, client: ScoringClient
) -> list[RankResult]:
    began = time.perf_counter()
    deadline = min((pair.query.deadline for pair in pairs if pair.query.deadline is not None), default=None)
    try:
        block = prepare_block(snapshot, pairs, is_gathered=True)
        asked = time.perf_counter()
        scores = await client.score(snapshot.model_version, block.users, block.vectors, block.features, deadline)
        return select_from_block(snapshot, pairs, block, scores, time.perf_counter() - asked, explorer)
    except RemoteFailure as failure:
        return [fall_back(snapshot, pair, failure.reason) for pair in pairs]
    except Exception:  # as in the ladder: the lists are there
        return [fall_back(snapshot, pair, RANKER_FAILED) for pair in pairs]
    finally:
        tracker_of(pairs[0], latency).add(time.perf_counter() - began)
