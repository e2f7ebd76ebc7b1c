"""Have all workers go over to another snapshot, or none; one activation at a time, of whichever server shares the folder of snapshots.

What fails is undone only where nobody else has changed it since: a night's export may go over to its snapshot at any time, and that holds.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys_batch.errors import Busy, InputMissing, RecsysBatchError, UsageError, shorten
from recsys_batch.online.serving.traffic_split import ROUTES_FILE, TrafficSplit, read_traffic_split, write_traffic_split
from recsys_batch.online.serving.warm_up import check_answers, stored_records
from recsys_batch.online.serving.worker_state import WorkerState, read_worker_states
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.reader import open_snapshot
from recsys_batch.online.snapshot.verify_process import verify_in_subprocess
from recsys_batch.storage.file_lock import file_lock

SWITCH_SECONDS = 120.0
"""That workers are given to go over to another snapshot."""
_POLL_SECONDS = 0.02
_CHECKED_USERS = 3
_LOCK_FILE = ".activation.lock"


class _NotTaken(Exception):
    """Some worker does not take what it should; the message says why."""


class ActivationFailed(RecsysBatchError):
    """A worker refused the snapshot, or did not say in time, or another activation is under way; what was in place before is again."""


async def activate(folder: Path, state: Path, snapshot_id: str, seconds: float) -> None:
    """Verify a snapshot and have it answer, make it current, and wait until every worker answers from it.

    Raises:
        InputMissing: there is none of that id.
        SnapshotRefused: it is damaged, or does not answer.
        ActivationFailed: another activation is under way, or a worker did not take it within ``seconds``, or CURRENT was changed meanwhile.
    """
    with _one_at_a_time(folder):
        await _go_over(folder, state, snapshot_id, seconds)


async def roll_back(folder: Path, state: Path, seconds: float) -> None:
    """``activate`` the one before. Raises also InputMissing: there was none before; PointerUnreadable: PREVIOUS names none."""
    with _one_at_a_time(folder):
        before = repository.read_previous(folder)
        if before is None:
            raise InputMissing("no snapshot was activated before the current one: name one to activate")
        await _go_over(folder, state, before, seconds)


async def set_traffic_split(folder: Path, state: Path, routes: TrafficSplit, seconds: float) -> None:
    """``change_traffic_split`` to these routes, whatever they were."""
    await change_traffic_split(folder, state, lambda _: routes, seconds)


async def change_traffic_split(folder: Path, state: Path, change: Callable[[TrafficSplit], TrafficSplit], seconds: float) -> None:
    """Give a share of the users or requests to other snapshots, and wait until all workers do.

    Args:
        change: makes the new routes of those in place; what it raises is raised.

    Raises:
        InputMissing: a snapshot that there is not.
        SnapshotRefused: one is damaged.
        ActivationFailed: another activation is under way, or a worker did not take them in time.
    """
    with _one_at_a_time(folder):
        before = _read_routes(folder)
        routes = change(before)
        for name in sorted(routes.snapshot_ids):
            await _verify(folder, name)
        write_traffic_split(folder, routes)
        try:
            await _wait_for_workers(state, lambda workers: _are_routed(workers, folder, routes), seconds)
        except _NotTaken as why_not:
            if _read_routes(folder) == routes:
                write_traffic_split(folder, before)
            raise ActivationFailed(f"routes were not taken ({why_not}); those before are in place again, or what was set since") from None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    if not folder.is_dir():
        raise InputMissing(f"there is no folder {folder}: export a snapshot")
    try:
        with file_lock(folder / _LOCK_FILE, "another activation", "is under way"):
            yield
    except Busy as error:
        raise ActivationFailed(str(error)) from None


async def _go_over(folder: Path, state: Path, snapshot_id: str, seconds: float) -> None:
    await _verify(folder, snapshot_id)
    before = await asyncio.to_thread(repository.set_current, folder, snapshot_id)
    try:
        await _wait_for_workers(state, lambda workers: _are_current(workers, folder, snapshot_id), seconds)
    except _NotTaken as why_not:
        is_undone = await asyncio.to_thread(repository.undo_set_current, folder, snapshot_id, before)
        outcome = f"{before.current or 'none'} stays" if is_undone else "what CURRENT names now is left as it is"
        raise ActivationFailed(f"snapshot {snapshot_id} was not taken ({why_not}); {outcome}") from None


async def _verify(folder: Path, snapshot_id: str) -> None:
    if snapshot_id not in repository.list_snapshots(folder):
        raise InputMissing(
            f"there is no snapshot {shorten(snapshot_id, 60)}; there are: {', '.join(repository.list_snapshots(folder)) or 'none'}"
        )
    await asyncio.to_thread(_check, folder / snapshot_id)


def _check(folder: Path) -> None:
    """Verify a snapshot and have it answer, but for what is in Redis: before a worker is asked to. Raises SnapshotRefused."""
    verify_in_subprocess(folder)
    snapshot = open_snapshot(folder)
    try:
        check_answers(snapshot, stored_records(snapshot, _CHECKED_USERS))
    finally:
        snapshot.close()


async def _wait_for_workers(state: Path, is_done: Callable[[list[WorkerState]], bool], seconds: float) -> None:
    """Wait until the workers have what they should. Raises _NotTaken: what ``is_done`` raises, or it took too long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        workers = read_worker_states(state)
        if is_done(workers) and workers:
            return
        await asyncio.sleep(_POLL_SECONDS)
    raise _NotTaken(f"not every worker had it after {seconds:g} s")


def _are_current(workers: list[WorkerState], folder: Path, snapshot_id: str) -> bool:
    """Whether all workers answer from a snapshot. Raises _NotTaken: one refuses it, or CURRENT names another one by now."""
    named = repository.read_pointers(folder).current
    if named != snapshot_id:
        raise _NotTaken(f"CURRENT was changed meanwhile, and names {named or 'none'}")
    _raise_refusals(workers, repository.CURRENT_FILE, folder, frozenset({snapshot_id}))
    return all(worker["current"] == snapshot_id for worker in workers)


def _are_routed(workers: list[WorkerState], folder: Path, routes: TrafficSplit) -> bool:
    """Whether all workers have routes. Raises _NotTaken: one refuses a snapshot, or the file has other routes by now."""
    if _read_routes(folder) != routes:
        raise _NotTaken(f"{ROUTES_FILE} was changed meanwhile")
    _raise_refusals(workers, ROUTES_FILE, folder, routes.snapshot_ids)
    stamp = list(repository.file_stamp(folder / ROUTES_FILE))
    return all(worker["looked_at"][ROUTES_FILE] == stamp and worker["routes"] == routes.to_dict() for worker in workers)


def _raise_refusals(workers: list[WorkerState], pointer: str, folder: Path, snapshot_ids: frozenset[str]) -> None:
    """Raise _NotTaken where a worker that has looked at the file as it is now refuses one of the snapshots."""
    stamp = list(repository.file_stamp(folder / pointer))
    for worker in workers:
        for name in sorted(snapshot_ids & worker["refused"].keys()):
            if worker["looked_at"][pointer] == stamp:
                raise _NotTaken(f"{name}: {worker['refused'][name]}")


def _read_routes(folder: Path) -> TrafficSplit:
    """Read the routes in place, none where the file cannot be read: it is about to be written anew."""
    try:
        return read_traffic_split(folder)
    except UsageError:
        return TrafficSplit()
