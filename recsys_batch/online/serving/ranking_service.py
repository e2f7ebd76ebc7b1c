"""Request-level operations of one worker, shared by its front ends: rank, published top-K, user and item details, shadow scoring."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from recsys_batch.errors import quote
from recsys_batch.online import metrics
from recsys_batch.online.api.encode import encode_answer
from recsys_batch.online.api.messages import Answer, Bounds, Lists
from recsys_batch.online.engine.remote_ranking import ScoringClient
from recsys_batch.online.ranking.exploration import Explorer
from recsys_batch.online.ranking.ladder import MAX_RANK_BATCH, RankInput, published_order, rank
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.ranking.rank_result import STALE, STORE_UNAVAILABLE, RankResult
from recsys_batch.online.serving.admission import Admission
from recsys_batch.online.serving.exposure_recorder import ExposureRecorder
from recsys_batch.online.serving.freshness import FreshnessPolicy
from recsys_batch.online.serving.inspection import ItemDetail, UserDetail, UserSample, describe_item, describe_sample, describe_user
from recsys_batch.online.serving.loaded_snapshot import FoundRecord, LoadedSnapshot
from recsys_batch.online.serving.micro_batcher import MicroBatcher
from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from recsys_batch.online.snapshot.lmdb_store import StoreUnavailable
from recsys_batch.online.snapshot.user_record import LiveOrigin, UserRecord


class NotReady(Exception):
    """There is no snapshot to answer from yet. Status 503."""


class UnknownUser(Exception):
    """The snapshot has no list of that user. Status 404."""


class UnknownItem(Exception):
    """The snapshot has no such item. Status 404."""


class RankingService:
    """Answers requests of one worker from the snapshots in use, and logs and counts what it answered.

    Args:
        explorer: swaps places of the answers of ``rank``; None for no exploration. A shadow's answers are nobody's, so they keep theirs.
        remote: a model server that runs the model for ``rank``; None for the snapshot's own ranker, which the shadow has anyway.
    """

    def __init__(
        self,
        manager: SnapshotManager,
        freshness: FreshnessPolicy,
        admission: Admission,
        exposures: ExposureRecorder,
        explorer: Explorer | None = None,
        remote: ScoringClient | None = None,
    ) -> None:
        self.manager, self.freshness, self.exposures, self._admission = manager, freshness, exposures, admission
        self._n_ranked = 0
        self._request_ids = random.Random()  # seeded by the system; ids are to be different, not secret
        self.batcher = MicroBatcher(explorer, remote)
        self._tasks: set[asyncio.Task[None]] = set()
        self._shadow_tasks: set[asyncio.Task[None]] = set()

    def submit(self, query: RankQuery, request_id: str | None, arrived: float, settle: Callable[[Answer | Exception], None]) -> None:
        """Have items ranked for a user, and what is shown logged. No coroutine: where nobody is asked over a network it costs no task.

        Args:
            arrived: time.perf_counter() at the arrival.
            settle: called with the answer, or what it failed with, from the event loop; once, now or later.
        Raises:
            NotReady: no snapshot.
        """
        loaded, part = self._route(query.user_id)
        ranking = _Ranking(self, loaded.acquire(), part, query, request_id, arrived, time.perf_counter(), settle)
        if loaded.asks_network:
            task = asyncio.get_running_loop().create_task(ranking.fetch_and_rank())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            ranking.look_up_and_rank()

    def rank(self, query: RankQuery, request_id: str | None, arrived: float) -> asyncio.Future[Answer]:
        """Return the future of what ``submit`` hands over. Raises as it does."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def settle(outcome: Answer | Exception) -> None:
            if answered.done():
                return  # whoever waited has gone
            if isinstance(outcome, Exception):
                answered.set_exception(outcome)
            else:
                answered.set_result(outcome)

        self.submit(query, request_id, arrived, settle)
        return answered

    async def rank_together(self, requests: Sequence[tuple[RankQuery, str | None]], arrived: float) -> list[Answer | BaseException]:
        """Rank for each of several queries with their request ids, as ``rank``; what one of them fails with stands in its place.

        At most MAX_RANK_BATCH are under way at a time, so that the model runs on blocks and other requests come in between. They have that
        many places in the queue, the first of which is the caller's.

        Raises:
            NotReady: no snapshot. Overloaded: there are not so many places.
        """
        _require_loaded(self.manager.current)
        size = max(1, min(len(requests), MAX_RANK_BATCH, self._admission.bound))
        answers: list[Answer | BaseException] = []
        with self._admission.hold(size - 1, "requests"):
            for start in range(0, len(requests), size):
                calls = [self.rank(query, request_id, arrived) for query, request_id in requests[start : start + size]]
                answers += await asyncio.gather(*calls, return_exceptions=True)
        return answers

    async def published_topk(self, user_id: int | str, k: int) -> Answer:
        """Answer with the user's published list itself.

        Raises:
            NotReady: no snapshot. UnknownUser: the snapshot has no list of that user. StoreUnavailable: nobody knows.
        """
        began = time.perf_counter()
        loaded, _ = self._route(user_id)
        with loaded.lease():
            query = RankQuery(user_id, k)
            record, store_failed = await _find_record(loaded, user_id)
            ranked = published_order(query, record)
            self._flag_lists(loaded, ranked, record.live, store_failed)
            timings = {"total": time.perf_counter() - began}
            return encode_answer(ranked, query, loaded.snapshot, self._make_request_id(), timings, record.live)

    async def describe_user(self, user_id: int | str) -> UserDetail:
        """Describe what the snapshot holds of a user. Raises as ``published_topk``."""
        loaded, _ = self._route(user_id)
        with loaded.lease():
            record, _ = await _find_record(loaded, user_id)
            return describe_user(loaded.snapshot, user_id, record)

    def sample_users(self, limit: int, bounds: Bounds) -> UserSample:
        """List some users to look at. Raises NotReady without a snapshot."""
        loaded = _require_loaded(self.manager.current)
        return describe_sample(loaded.snapshot, limit, bounds, live=loaded.follows_live)

    def describe_item(self, item_id: int | str) -> ItemDetail:
        """Describe an item. Raises NotReady: no snapshot; UnknownItem: the snapshot does not have it."""
        snapshot = _require_loaded(self.manager.current).snapshot
        detail = describe_item(snapshot, item_id)
        if detail is None:
            raise UnknownItem(f"snapshot {snapshot.snapshot_id} has no item {quote(item_id)}")
        return detail

    def answer(self, ranking: _Ranking, result: RankResult) -> Answer:
        """Make the answer of a ranking, log and count it."""
        query, loaded, (record, store_failed) = ranking.query, ranking.loaded, ranking.found
        live = None if record is None else record.live
        self._flag_lists(loaded, result, live, store_failed)
        wait, lookup = ranking.began - ranking.arrived, ranking.looked_up - ranking.began
        timings = {"wait": wait, "lookup": lookup, **result.stages, "total": time.perf_counter() - ranking.arrived}
        answer = encode_answer(result, query, loaded.snapshot, ranking.request_id or self._make_request_id(), timings, live)
        self.exposures.record(query, result, answer)
        self._count(ranking.part, result, timings, answer.lists)
        self.manager.recent.append(query)
        self._maybe_shadow(query, result, loaded)
        return answer

    def _make_request_id(self) -> str:
        return f"{self._request_ids.getrandbits(128):032x}"

    def _flag_lists(self, loaded: LoadedSnapshot, ranked: RankResult, live: LiveOrigin | None, store_failed: bool) -> None:
        """Flag an old list, the night's or a live one, and the night's where Redis may have a live one, where there is no other reason."""
        if ranked.degraded is not None:
            return
        made_at = loaded.snapshot.generated_at if live is None else live.written_at
        if store_failed:
            ranked.degraded = STORE_UNAVAILABLE
        elif self.freshness.status(made_at) != "fresh":
            ranked.degraded = STALE

    def _route(self, user_id: int | str) -> tuple[LoadedSnapshot, str]:
        loaded, part = self.manager.route(user_id)
        return _require_loaded(loaded), part

    def _count(self, part: str, ranked: RankResult, timings: dict[str, float], lists: Lists) -> None:
        tally = metrics.tally
        tally.observe("total", timings["total"])
        self._n_ranked += 1
        if self._n_ranked % metrics.STAGE_SAMPLE_EVERY == 0:
            for name, seconds in timings.items():
                if name != "total":
                    tally.observe(name, seconds)
        tally.add("answers", ranked.source)
        tally.add("lists", lists)
        if ranked.degraded is not None:
            tally.add("degraded", ranked.degraded)
        tally.add("by_snapshot", part)
        if ranked.unknown_item_ids is not None:
            tally.add("request_lists", ranked.source)

    def _maybe_shadow(self, query: RankQuery, shown: RankResult, loaded: LoadedSnapshot) -> None:
        """Score with the shadow as well once the answer is out; under load that is the first to go."""
        shadow = self.manager.shadow
        if shadow is None or random.random() >= self.manager.routes.share:
            return
        if not self._admission.is_idle or len(self._shadow_tasks) > 4:
            metrics.tally.add("shadow", "dropped")
            return
        items = {loaded.snapshot.items.item_id(int(code)) for code in shown.codes}
        task = asyncio.get_running_loop().create_task(self._score_shadow(shadow.acquire(), query, items))
        self._shadow_tasks.add(task)
        task.add_done_callback(self._shadow_tasks.discard)

    async def _score_shadow(self, shadow: LoadedSnapshot, query: RankQuery, shown: set[int | str]) -> None:
        try:
            await asyncio.sleep(0)
            record, store_failed = await shadow.lookup(query.user_id)
            ranked = rank(shadow.snapshot, replace(query, deadline=None), record, shadow.latency, store_failed=store_failed)
            other = {shadow.snapshot.items.item_id(int(code)) for code in ranked.codes}
            metrics.tally.add("shadow", "scored")
            metrics.SHADOW_OVERLAP.observe(len(shown & other) / max(len(shown | other), 1))
        except Exception:
            metrics.tally.add("shadow", "failed")
        finally:
            shadow.release()


_NOBODY = FoundRecord(None)


@dataclass(slots=True, eq=False)
class _Ranking:
    """A ranking under way; it holds a lease on the snapshot until its outcome is handed over.

    Attributes:
        part: of the traffic that the snapshot has. began, looked_up: time.perf_counter() when that was.
    """

    service: RankingService
    loaded: LoadedSnapshot
    part: str
    query: RankQuery
    request_id: str | None
    arrived: float
    began: float
    settle: Callable[[Answer | Exception], None]
    looked_up: float = 0.0
    found: FoundRecord = _NOBODY

    async def fetch_and_rank(self) -> None:
        """Look the user up where Redis may have to be asked, and have the query ranked."""
        try:
            found = await self.loaded.lookup(self.query.user_id)
        except Exception as error:
            self._finish(error)
        else:
            self._rank(found)

    def look_up_and_rank(self) -> None:
        """Look the user up here, and have the query ranked."""
        try:
            found = FoundRecord(self.loaded.lookup_here(self.query.user_id))
        except Exception as error:
            self._finish(error)
        else:
            self._rank(found)

    def _rank(self, found: FoundRecord) -> None:
        self.found, self.looked_up = found, time.perf_counter()
        self.service.batcher.submit(self.loaded, RankInput(self.query, *found), self._finish)

    def _finish(self, result: RankResult | Exception) -> None:
        try:
            outcome = result if isinstance(result, Exception) else self.service.answer(self, result)
        except Exception as error:
            outcome = error
        finally:
            self.loaded.release()
        self.settle(outcome)


def _require_loaded(loaded: LoadedSnapshot | None) -> LoadedSnapshot:
    if loaded is None:
        raise NotReady("no snapshot is in use yet: run `recsys-batch export-snapshot`, or wait while it is being opened")
    return loaded


async def _find_record(loaded: LoadedSnapshot, user_id: int | str) -> tuple[UserRecord, bool]:
    """Find (record, whether a better one may be in Redis). Raises UnknownUser, and StoreUnavailable."""
    record, store_failed = await loaded.lookup(user_id)
    if record is not None:
        return record, store_failed
    if store_failed:
        raise StoreUnavailable("the store of users' lists does not answer, or has lost this user's")
    raise UnknownUser(f"snapshot {loaded.snapshot.snapshot_id} has no list of user {quote(user_id)}")
