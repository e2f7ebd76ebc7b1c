"""Requests that wait at the same time are ranked together.

One request costs a few dozen calls of numpy and one of the model whether it is for one user or for sixteen. Nothing is waited for: what has
arrived by the loop's next turn goes together, which is one request where load is low, and the more the higher it is. Where a model server
runs the model, what arrives while it has as many calls as it may have goes together, too.
"""

import asyncio
import logging
from collections.abc import Callable

from recsys_batch.online.engine.remote_ranking import ScoringClient, rank_many_remotely
from recsys_batch.online.ranking.exploration import Explorer
from recsys_batch.online.ranking.ladder import RankInput, rank_many
from recsys_batch.online.ranking.rank_result import RankResult
from recsys_batch.online.serving.loaded_snapshot import LoadedSnapshot

logger = logging.getLogger("recsys_batch.online")

Settle = Callable[[RankResult | Exception], None]
"""Takes the result of a ranking, or what it failed with."""
_Call = tuple[LoadedSnapshot, RankInput, Settle]


class MicroBatcher:
    """Batches rank calls that arrive in the same turn of the event loop into runs of the model; adds no delay. One per event loop.

    Args:
        explorer: swaps places of the answers; None for no exploration.
        remote: runs the model; None for the snapshot's own ranker.
    """

    def __init__(self, explorer: Explorer | None = None, remote: ScoringClient | None = None) -> None:
        self._explorer, self._remote = explorer, remote
        self._waiting: list[_Call] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, loaded: LoadedSnapshot, rank_input: RankInput, settle: Settle) -> None:
        """Have a query ranked from that snapshot, on which the caller holds a lease until ``settle`` is called, from the event loop."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        self._waiting.append((loaded, rank_input, settle))

    def _run(self) -> None:
        if self._remote is not None and len(self._tasks) >= self._remote.max_calls:
            return  # the call that ends next takes those who wait
        waiting, self._waiting = self._waiting, []
        by_snapshot: dict[int, list[_Call]] = {}
        for call in waiting:
            by_snapshot.setdefault(id(call[0]), []).append(call)
        for calls in by_snapshot.values():
            if self._remote is not None:
                self._tasks.add(task := asyncio.get_running_loop().create_task(self._run_remotely(self._remote, calls)))
                task.add_done_callback(self._end_task)
                continue
            self._run_here(calls)

    def _run_here(self, calls: list[_Call]) -> None:
        loaded = calls[0][0]
        try:
            results = rank_many(loaded.snapshot, [rank_input for _, rank_input, _ in calls], loaded.latency, self._explorer)
        except Exception as error:
            if len(calls) == 1:
                calls[0][2](error)
                return
            for call in calls:  # each alone, so that one's fault (a damaged record) is its own
                self._run_here([call])
        else:
            _settle(calls, results)

    async def _run_remotely(self, remote: ScoringClient, calls: list[_Call]) -> None:
        loaded = calls[0][0]
        try:
            inputs = [rank_input for _, rank_input, _ in calls]
            results = await rank_many_remotely(loaded.snapshot, inputs, loaded.latency, self._explorer, remote)
        except Exception as error:
            if len(calls) == 1:
                calls[0][2](error)
                return
            for call in calls:
                await self._run_remotely(remote, [call])
        else:
            _settle(calls, results)

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._waiting:
            self._run()


def _settle(calls: list[_Call], results: list[RankResult]) -> None:
    for (_, _, settle), ranked in zip(calls, results, strict=True):
        try:
            settle(ranked)
        except Exception:  # the others of the batch are answered all the same
            logger.exception("an answer could not be handed over")
