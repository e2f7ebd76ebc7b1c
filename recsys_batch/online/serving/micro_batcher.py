"""Requests that wait at the same time are ranked together.

One request costs a few dozen calls of numpy and one of the model whether it is for one user or for sixteen. Nothing is waited for: what has
arrived by the loop's next turn goes together, which is one request where load is low, and the more the higher it is.
"""

import asyncio

from recsys_batch.online.ranking.exploration import Explorer
from recsys_batch.online.ranking.ladder import RankInput, RankResult, rank_many
from recsys_batch.online.serving.snapshot_manager import LoadedSnapshot


class MicroBatcher:
    """Batches rank calls that arrive in the same turn of the event loop into runs of the model; adds no delay. One per event loop.

    Args:
        explorer: swaps places of the answers; None for no exploration.
    """

    def __init__(self, explorer: Explorer | None = None) -> None:
        self._explorer = explorer
        self._waiting: list[tuple[LoadedSnapshot, RankInput, asyncio.Future[RankResult]]] = []

    async def rank(self, loaded: LoadedSnapshot, rank_input: RankInput) -> RankResult:
        """Rank a query from that snapshot, on which the caller holds a lease until then."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[RankResult] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._run)
        self._waiting.append((loaded, rank_input, future))
        return await future

    def _run(self) -> None:
        waiting, self._waiting = self._waiting, []
        by_snapshot: dict[int, list[tuple[LoadedSnapshot, RankInput, asyncio.Future[RankResult]]]] = {}
        for call in waiting:
            if not call[2].done():  # who went away needs no answer
                by_snapshot.setdefault(id(call[0]), []).append(call)
        for calls in by_snapshot.values():
            loaded = calls[0][0]
            try:
                results = rank_many(loaded.snapshot, [rank_input for _, rank_input, _ in calls], loaded.latency, self._explorer)
            except Exception as error:
                for _, _, future in calls:
                    future.set_exception(error)
                continue
            for (_, _, future), ranked in zip(calls, results, strict=True):
                future.set_result(ranked)
