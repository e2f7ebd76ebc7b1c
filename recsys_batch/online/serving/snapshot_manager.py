"""The snapshots that a worker answers from, and how it goes over to others under load.

A worker looks at CURRENT and ROUTES.json a few times a second. What they name is opened, verified and warmed in a thread beside the one
that answers, once however many roles it has (current, canary, shadow); then one assignment puts it in place. Lists, item features and
model of an answer come from one ``LoadedSnapshot``, so no answer mixes two. It is closed when no role and no request has it any more.

What cannot be opened is refused, and what is served stays. A worker that serves nothing yet takes the best of ``list_fallbacks`` instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import Literal

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.runtime.loop_monitor import LoopMonitor
from recsys_batch.online.serving import traffic_split
from recsys_batch.online.serving.loaded_snapshot import LoadedSnapshot, find_store_status
from recsys_batch.online.serving.traffic_split import TrafficSplit
from recsys_batch.online.serving.warm_up import WARM_REQUESTS, check_answers, stored_records, warm_up
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.checks import check_record
from recsys_batch.online.snapshot.live_overlay import LiveReader
from recsys_batch.online.snapshot.lmdb_store import StoreUnavailable
from recsys_batch.online.snapshot.manifest import MANIFEST_FILE, SnapshotRefused, read_manifest
from recsys_batch.online.snapshot.reader import open_snapshot
from recsys_batch.online.snapshot.redis_store import RedisStore
from recsys_batch.online.snapshot.user_record import UserRecord, decode_record
from recsys_batch.online.snapshot.verify_process import verify_in_subprocess
from recsys_batch.storage.file_lock import acquire_flock

logger = logging.getLogger("recsys_batch.online")

_TRY_AGAIN_SECONDS = 1.0
_SAMPLED_USERS = 10
_LONGEST_PAUSE_SECONDS = 30.0


class SnapshotManager:
    """Keeps a worker's snapshots loaded, each once, and goes over to others without a pause.

    Args:
        folder: of snapshots.
        open_remote: opens the store beside a snapshot of that id.
        open_live: opens the reader of a run's live lists; None where they are not followed, or in Redis.
        live_in_redis: whether they are there.
        check_model: says why the ranker of a snapshot with that model version cannot be used, or None; for rankers that are elsewhere.
        load_lock: a file that a server's workers lock in turn, so that they open a snapshot one after the other, not on all cores at once.
        poll_seconds: between two calls of ``poll``.

    Attributes:
        looks: watches the loop that calls ``poll``. reads: watches whether it can read CURRENT.
        current: None before the first snapshot is warm, or where there is none.
        refused: snapshot id -> why it was not taken.
        fallback: why the snapshot in use is not the one that CURRENT names; None where it is.
        looked_at: stamps of the files that name snapshots, when they were read last.
        recent: the newest queries, to warm the next snapshot with.
    """

    def __init__(
        self,
        folder: Path,
        open_remote: Callable[[str], RedisStore],
        load_lock: Path,
        open_live: Callable[[str], LiveReader] | None = None,
        *,
        live_in_redis: bool = False,
        check_model: Callable[[str], Awaitable[str | None]] | None = None,
        poll_seconds: float = 0.1,
    ) -> None:
        self.folder = folder
        self.looks = LoopMonitor("following snapshots")
        self.reads = LoopMonitor("reading CURRENT")
        self._live_looks = LoopMonitor("reading live lists")
        self._longest_pause = max(_LONGEST_PAUSE_SECONDS, 10 * poll_seconds)
        self._n_loading = 0
        self.current: LoadedSnapshot | None = None
        self.canary: LoadedSnapshot | None = None
        self.shadow: LoadedSnapshot | None = None
        self.routes = TrafficSplit()
        self.refused: dict[str, str] = {}
        self.fallback: str | None = None
        self.looked_at: dict[str, tuple[int, int]] = {}
        self.recent: deque[RankQuery] = deque(maxlen=WARM_REQUESTS)
        self._open_remote, self._load_lock, self._open_live = open_remote, load_lock, open_live
        self._live_in_redis, self._check_model = live_in_redis, check_model
        self._look_again_at = math.inf
        self._waiting_for: set[str] = set()
        self._loaded: dict[str, LoadedSnapshot] = {}
        self._closing: set[asyncio.Task[None]] = set()  # the loop itself holds its tasks only weakly

    def route(self, user_id: int | str) -> tuple[LoadedSnapshot | None, Literal["current", "canary"]]:
        """Choose the snapshot that answers a user, and its part: the canary for a share of the users, always the same ones."""
        if self.canary is not None and self.current is not None:
            key = self.current.snapshot.key(user_id)
            if key is not None and self.routes.is_canary(key):
                return self.canary, "canary"
        return self.current, "current"

    @property
    def stall(self) -> str | None:
        """Why what is served may be out of date: nobody has called ``poll`` for long. None where all is well, or a snapshot is loaded."""
        seconds = self.looks.seconds_since_look
        if seconds <= self._longest_pause or self._n_loading:
            return None
        return f"process {os.getpid()} has not looked for snapshots in {seconds:.0f} s: its log may say why; restart it"

    async def poll(self) -> bool:
        """Look for live lists, and whether other snapshots are wanted; go over to them; whether any were looked into."""
        for loaded in list(self._loaded.values()):
            if loaded.leases:  # or it was closed while another's store was asked
                if loaded.live is not None:
                    with self._live_looks.round():
                        loaded.live.poll()
                await loaded.check_store()
        files = (repository.CURRENT_FILE, traffic_split.ROUTES_FILE)
        stamps = {name: repository.file_stamp(self.folder / name) for name in files}
        if stamps == self.looked_at and time.monotonic() < self._look_again_at:
            return False
        # What is damaged is tried again when somebody names it again, as its files are read through each time.
        self.refused = (
            {} if stamps != self.looked_at else {name: why for name, why in self.refused.items() if name not in self._waiting_for}
        )
        self.looked_at, self._look_again_at, self._waiting_for = {}, math.inf, set()  # a look that fails is done again
        routes = self._read_routes()
        # Released at the end, so that a snapshot that only changes its role stays loaded.
        before = [loaded for loaded in (self.current, self.canary, self.shadow) if loaded is not None]
        self.current = await self._swap_in_current()
        self.canary = await self._swap_in(self.canary, routes.canary)
        self.shadow = await self._swap_in(self.shadow, routes.shadow)
        self.routes, self.looked_at = routes, stamps
        for loaded in before:
            loaded.release()
        return True

    def _read_routes(self) -> TrafficSplit:
        try:
            return traffic_split.read_traffic_split(self.folder)
        except RecsysBatchError as error:
            logger.error("routes stay as they were: %s", error)
            return self.routes

    async def _swap_in_current(self) -> LoadedSnapshot | None:
        """Lease the snapshot that CURRENT names, else the one in use, else a fallback; None where there is none of them."""
        current_id = None
        with self.reads.round():
            current_id = repository.read_current(self.folder)
        if self.reads.failure is not None:
            why = self.reads.failure
            self._look_again_at = time.monotonic() + _TRY_AGAIN_SECONDS
        else:
            if new := await self._swap_in(self.current, current_id):
                self.fallback = None
                return new
            if current_id is None:  # nobody has activated a snapshot, or CURRENT was removed
                self.fallback = None
                return self.current.acquire() if self.current is not None else None
            why = f"CURRENT names {current_id}, which is refused: {self.refused[current_id]}"
        new = self.current.acquire() if self.current is not None else await self._swap_in_fallback()
        if why != self.fallback:
            logger.error("snapshot %s is in use instead: %s", new.snapshot.snapshot_id if new is not None else "none", why)
        self.fallback = why
        return new

    async def _swap_in_fallback(self) -> LoadedSnapshot | None:
        for snapshot_id in repository.list_fallbacks(self.folder):
            if loaded := await self._swap_in(None, snapshot_id):
                return loaded
        return None

    async def _swap_in(self, old: LoadedSnapshot | None, snapshot_id: str | None) -> LoadedSnapshot | None:
        """Lease the snapshot that a role wants, loading it if no role has it; None where it is refused or none is wanted."""
        if snapshot_id is None or snapshot_id in self.refused:
            return None
        try:
            if snapshot_id not in self._loaded or self._is_replaced(self._loaded[snapshot_id]):
                await self._require_model(snapshot_id)
                await self._require_records(snapshot_id)
                self._n_loading += 1
                try:
                    self._loaded[snapshot_id] = await self._load_checked(snapshot_id)
                finally:
                    self._n_loading -= 1
        except Exception as error:  # whatever is wrong with it: what is served stays
            self._refuse(snapshot_id, error)
            return None
        new = self._loaded[snapshot_id].acquire()
        if new is not old:
            logger.info("snapshot %s is in use", snapshot_id)
        return new

    def _is_replaced(self, loaded: LoadedSnapshot) -> bool:
        """Whether the snapshot's files are others than those that are open: an erasure has written it again."""
        stamp = repository.file_stamp(loaded.snapshot.folder / MANIFEST_FILE)
        return stamp not in (loaded.stamp, (0, 0))  # a folder that was removed is used on

    async def _require_model(self, snapshot_id: str) -> None:
        """Check that the model server has a snapshot's model. Raises SnapshotRefused: it has another one; it is asked again in a second."""
        if self._check_model is None:
            return
        version = read_manifest(self.folder / repository.check_name(snapshot_id)).facts.model_version
        if reason := await self._check_model(version):
            self._try_again(snapshot_id)
            raise SnapshotRefused(f"it is of model version {version}: {reason}")

    async def _require_records(self, snapshot_id: str) -> None:
        """Check that the store beside a snapshot has its records; one that does not answer may have all of them.

        Raises SnapshotRefused: it says that it has not; it is asked again in a second.
        """
        if read_manifest(self.folder / repository.check_name(snapshot_id)).store == "lmdb":
            return
        remote = self._open_remote(snapshot_id)
        try:
            is_lost = await find_store_status(remote) == "lost"
        finally:
            await remote.close()
        if is_lost:
            self._try_again(snapshot_id)
            raise SnapshotRefused("its users' lists are not in Redis, or have expired: export the run again")

    def _try_again(self, snapshot_id: str) -> None:
        """Look at a snapshot again in a moment: what it lacks is not in its files."""
        self._waiting_for.add(snapshot_id)
        self._look_again_at = time.monotonic() + _TRY_AGAIN_SECONDS

    def _refuse(self, snapshot_id: str, error: Exception) -> None:
        self.refused[snapshot_id] = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.error("snapshot %s is refused: %s", snapshot_id, error)

    async def _load_checked(self, snapshot_id: str) -> LoadedSnapshot:
        """Load a snapshot and have it answer. Raises whatever is wrong with it."""
        loaded = await asyncio.to_thread(self._load, snapshot_id)
        try:
            users = await _sample_records(loaded)
            await asyncio.to_thread(check_answers, loaded.snapshot, users)
        except BaseException:
            self._unload(loaded)
            raise
        return loaded

    def _load(self, snapshot_id: str) -> LoadedSnapshot:
        folder = self.folder / repository.check_name(snapshot_id)
        with self._load_lock.open("a") as turn:
            acquire_flock(turn.fileno(), math.inf)
            if self.current is not None:  # somebody is being answered
                verify_in_subprocess(folder)
            stamp = repository.file_stamp(folder / MANIFEST_FILE)
            snapshot = open_snapshot(folder)
            store = self._open_remote(snapshot_id) if snapshot.store is None or self._live_in_redis else None
            warm_up(snapshot, list(self.recent))
            live = self._open_live(snapshot_id) if self._open_live is not None else None
            remote = store if snapshot.store is None else None
            return LoadedSnapshot(snapshot, remote, self._unload, live, store if self._live_in_redis else None, stamp=stamp)

    def _unload(self, loaded: LoadedSnapshot) -> None:
        if self._loaded.get(loaded.snapshot.snapshot_id) is loaded:
            del self._loaded[loaded.snapshot.snapshot_id]
        loaded.snapshot.close()
        if loaded.live is not None:
            loaded.live.close()
        store = loaded.remote or loaded.live_store
        if store is not None:
            self._closing.add(task := asyncio.get_running_loop().create_task(store.close()))
            task.add_done_callback(self._closing.discard)


async def _sample_records(loaded: LoadedSnapshot) -> list[tuple[int | str, UserRecord]]:
    """Read some users and their records, wherever they are; those that Redis lacks, or does not answer for, are left out.

    Raises RecsysBatchError: a record cannot be read, or does not fit the snapshot.
    """
    snapshot = loaded.snapshot
    if loaded.remote is None:
        return stored_records(snapshot, _SAMPLED_USERS)
    users: list[tuple[int | str, UserRecord]] = []
    with contextlib.suppress(StoreUnavailable):
        for user_id in islice(snapshot.samples, _SAMPLED_USERS):
            if (key := snapshot.key(user_id)) is not None and (value := await loaded.remote.fetch(key)) is not None:
                users.append((user_id, decode_record(value)))
    for _, record in users:
        check_record(snapshot, record)
    return users
