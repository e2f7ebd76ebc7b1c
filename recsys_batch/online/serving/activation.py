"""Have all workers go over to another snapshot, or none."""

import asyncio
import time
from pathlib import Path

from recsys_batch.errors import InputMissing, RecsysBatchError, shorten
from recsys_batch.online.serving.traffic_split import TrafficSplit, write_traffic_split
from recsys_batch.online.serving.worker_state import read_worker_states
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.verify_process import verify_in_subprocess
from recsys_batch.storage.atomic import write_file

PREVIOUS_FILE = "PREVIOUS"
SWITCH_SECONDS = 120.0
"""That workers are given to go over to another snapshot."""
_POLL_SECONDS = 0.02


class ActivationFailed(RecsysBatchError):
    """A worker refused the snapshot, or did not say in time; the one before is in place again."""


async def activate(folder: Path, state: Path, snapshot_id: str, seconds: float) -> None:
    """Verify a snapshot, make it current, and wait until every worker answers from it.

    Raises:
        InputMissing: there is none of that id.
        SnapshotRefused: it is damaged.
        ActivationFailed: a worker did not take it within ``seconds``.
    """
    await _verify(folder, snapshot_id)
    before = repository.read_current(folder)
    repository.set_current(folder, snapshot_id)
    why_not = await _wait_until_current(state, snapshot_id, seconds)
    if why_not is not None:
        if before is not None:
            repository.set_current(folder, before)
        raise ActivationFailed(f"snapshot {snapshot_id} was not taken ({why_not}); {before or 'none'} stays")
    if before not in (None, snapshot_id):
        write_file(folder / PREVIOUS_FILE, f"{before}\n")


async def roll_back(folder: Path, state: Path, seconds: float) -> None:
    """``activate`` the one before. Raises also InputMissing: there was none before."""
    try:
        before = (folder / PREVIOUS_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise InputMissing("no snapshot was activated before the current one: name one to activate") from None
    await activate(folder, state, before, seconds)


async def set_traffic_split(folder: Path, state: Path, routes: TrafficSplit, seconds: float) -> None:
    """Give a share of the users or requests to other snapshots, and wait until all workers do.

    Raises:
        InputMissing: a snapshot that there is not.
        SnapshotRefused: one is damaged.
        ActivationFailed: a worker did not take them in time; there are no routes then.
    """
    for name in routes.snapshot_ids:
        await _verify(folder, name)
    write_traffic_split(folder, routes)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        states = read_worker_states(state)
        if states and all(worker["routes"] == routes.to_dict() for worker in states):
            refused = {name: why for worker in states for name, why in worker["refused"].items()}
            if not refused:
                return
            write_traffic_split(folder, TrafficSplit())
            raise ActivationFailed(f"routes were not taken: {refused}")
        await asyncio.sleep(_POLL_SECONDS)
    write_traffic_split(folder, TrafficSplit())
    raise ActivationFailed(f"not every worker took the routes within {seconds:g} s")


async def _verify(folder: Path, snapshot_id: str) -> None:
    if snapshot_id not in repository.list_snapshots(folder):
        raise InputMissing(
            f"there is no snapshot {shorten(snapshot_id, 60)}; there are: {', '.join(repository.list_snapshots(folder)) or 'none'}"
        )
    await asyncio.to_thread(verify_in_subprocess, folder / snapshot_id)


async def _wait_until_current(state: Path, snapshot_id: str, seconds: float) -> str | None:
    """Return None once every worker answers from the snapshot, else why not."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        states = read_worker_states(state)
        for worker in states:
            if snapshot_id in worker["refused"]:
                return str(worker["refused"][snapshot_id])
        if states and all(worker["current"] == snapshot_id for worker in states):
            return None
        await asyncio.sleep(_POLL_SECONDS)
    return f"not every worker had it after {seconds:g} s"
