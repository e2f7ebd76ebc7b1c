"""What the server does, whatever it is spoken to in: rank for a user, show a published list, compare with a shadow."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from dataclasses import replace

from recsys_batch.online import metrics
from recsys_batch.online.api.encode import answer
from recsys_batch.online.api.messages import Answer, Bounds
from recsys_batch.online.exposure_log.feedback import FeedbackEvent
from recsys_batch.online.ranking.ladder import STALE, Asked, Ranked, published_order, rank
from recsys_batch.online.ranking.rank_query import Query
from recsys_batch.online.serving.admission import Admission
from recsys_batch.online.serving.exposure_recorder import Shown
from recsys_batch.online.serving.freshness import Ages
from recsys_batch.online.serving.inspection import OneItem, UserAbout, UsersAbout, item_about, user_about, users_about
from recsys_batch.online.serving.micro_batcher import Together
from recsys_batch.online.serving.snapshot_manager import Live, Loaded
from recsys_batch.online.snapshot.lmdb_store import StoreUnavailable
from recsys_batch.online.snapshot.user_record import UserLists, decode


class NotReady(Exception):
    """There is no snapshot to answer from yet. Status 503."""


class UnknownUser(Exception):
    """The snapshot has no list of that user. Status 404."""


class UnknownItem(Exception):
    """The snapshot has no such item. Status 404."""


class Service:
    """One worker's."""

    def __init__(self, live: Live, ages: Ages, admission: Admission, shown: Shown) -> None:
        self.live = live
        self.shown = shown
        self.ages = ages
        self._admission = admission
        self._n_ranked = 0
        self._together = Together()
        self._beside: set[asyncio.Task[None]] = set()

    async def rank(self, query: Query, request_id: str | None, arrived: float) -> Answer:
        """The answer; what it shows is logged.

        Args:
            arrived: time.perf_counter() at the request's arrival.

        Raises:
            NotReady: no snapshot.
        """
        began = time.perf_counter()
        loaded, key = self._choose(query.user_id)
        with loaded.held():
            lists, failed = await self._lists(loaded, key)
            looked_up = time.perf_counter()
            ranked = await self._together.rank(loaded, Asked(query, lists, failed))
            self._flag_age(loaded, ranked)
            timings = {"wait": began - arrived, "lookup": looked_up - began, **ranked.stages, "total": time.perf_counter() - arrived}
            told = answer(ranked, query, loaded.snapshot, request_id or secrets.token_hex(16), timings)
        self.shown.record(query, ranked, told)
        self._count(loaded, ranked, timings)
        self.live.recent.append(query)
        self._shadow(query, key, ranked, loaded)
        return told

    def came_back(self, events: list[FeedbackEvent]) -> int:
        """Log events of users; how many were taken.

        Raises:
            NotReady: no snapshot, so nobody knows what kind of ids there are.
        """
        if self.live.current is None:
            raise NotReady("no snapshot is in use yet")
        return self.shown.came_back(events)

    async def published(self, user_id: int | str, k: int) -> Answer:
        """The user's published list itself.

        Raises:
            NotReady: no snapshot. UnknownUser: the snapshot has no list of that user. StoreUnavailable: nobody knows.
        """
        began = time.perf_counter()
        loaded, key = self._choose(user_id)
        with loaded.held():
            lists = await self._known(loaded, key, user_id)
            query = Query(user_id, k)
            ranked = published_order(query, lists)
            self._flag_age(loaded, ranked)
            return answer(ranked, query, loaded.snapshot, secrets.token_hex(16), {"total": time.perf_counter() - began})

    async def about(self, user_id: int | str) -> UserAbout:
        """What the snapshot holds of a user. Raises as ``published``."""
        loaded, key = self._choose(user_id)
        with loaded.held():
            return user_about(loaded.snapshot, user_id, await self._known(loaded, key, user_id))

    def some_users(self, limit: int, bounds: Bounds) -> UsersAbout:
        """Some users to look at. Raises NotReady without a snapshot."""
        return users_about(self._current().snapshot, limit, bounds)

    def item(self, item_id: int | str) -> OneItem:
        """What an item is called.

        Raises:
            NotReady: no snapshot. UnknownItem: the snapshot does not have it.
        """
        snapshot = self._current().snapshot
        found = item_about(snapshot, item_id)
        if found is None:
            raise UnknownItem(f"snapshot {snapshot.snapshot_id} has no item {item_id!r}")
        return found

    async def _known(self, loaded: Loaded, key: bytes | None, user_id: int | str) -> UserLists:
        lists, failed = await self._lists(loaded, key)
        if failed:
            raise StoreUnavailable("the store of users' lists does not answer")
        if lists is None:
            raise UnknownUser(f"snapshot {loaded.snapshot.snapshot_id} has no list of user {user_id!r}")
        return lists

    def _flag_age(self, loaded: Loaded, ranked: Ranked) -> None:
        """An old snapshot is a reason where there is no other."""
        if ranked.degraded is None and self.ages.of(loaded.snapshot.manifest.facts.generated_at) != "fresh":
            ranked.degraded = STALE

    def _current(self) -> Loaded:
        if self.live.current is None:
            raise NotReady("no snapshot is in use yet: run `recsys-batch export-snapshot`, or wait while it is being opened")
        return self.live.current

    def _choose(self, user_id: int | str) -> tuple[Loaded, bytes | None]:
        current = self._current()
        key = current.snapshot.key(user_id)
        chosen = self.live.choose(key) or current
        return chosen, key if chosen is current else chosen.snapshot.key(user_id)

    async def _lists(self, loaded: Loaded, key: bytes | None) -> tuple[UserLists | None, bool]:
        """(lists, whether the store failed)."""
        if key is None:
            return None, False
        if loaded.remote is None:
            assert loaded.snapshot.store is not None
            record = loaded.snapshot.store.get(key)
        else:
            try:
                record = await loaded.remote.fetch(key)
            except StoreUnavailable:
                return None, True
        return (decode(record) if record is not None else None), False

    def _count(self, loaded: Loaded, ranked: Ranked, timings: dict[str, float]) -> None:
        metrics.stages["total"].observe(timings["total"])
        self._n_ranked += 1
        if self._n_ranked % metrics.SAMPLED == 0:
            for name, seconds in timings.items():
                if name != "total":
                    metrics.stages[name].observe(seconds)
        metrics.tally.add("answers", ranked.source)
        if ranked.degraded is not None:
            metrics.tally.add("degraded", ranked.degraded)
        metrics.tally.add("by_snapshot", "canary" if loaded is self.live.canary else "current")

    def _shadow(self, query: Query, key: bytes | None, shown: Ranked, loaded: Loaded) -> None:
        """Score with the shadow as well once the answer is out; under load that is the first to go."""
        shadow = self.live.shadow
        if shadow is None or random.random() >= self.live.routes.share:
            return
        if not self._admission.idle or len(self._beside) > 4:
            metrics.tally.add("shadow", "dropped")
            return
        items = {loaded.snapshot.items.item_id(int(code)) for code in shown.codes}
        task = asyncio.get_running_loop().create_task(self._score_beside(shadow.take(), query, items))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _score_beside(self, shadow: Loaded, query: Query, shown: set[int | str]) -> None:
        try:
            await asyncio.sleep(0)
            lists, failed = await self._lists(shadow, shadow.snapshot.key(query.user_id))
            ranked = rank(shadow.snapshot, replace(query, deadline=None), lists, shadow.latency, store_failed=failed)
            other = {shadow.snapshot.items.item_id(int(code)) for code in ranked.codes}
            metrics.tally.add("shadow", "scored")
            metrics.SHADOW_OVERLAP.observe(len(shown & other) / max(len(shown | other), 1))
        except Exception:
            metrics.tally.add("shadow", "failed")
        finally:
            shadow.give()
