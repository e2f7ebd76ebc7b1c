"""Have all workers go over to another snapshot, or none."""

import asyncio
import time
from pathlib import Path
from typing import Any

from recsys_batch.errors import InputMissing, RecsysBatchError
from recsys_batch.online.serving.traffic_split import TrafficSplit, write_traffic_split
from recsys_batch.online.serving.worker_state import read_worker_states
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.verify_process import verify_in_subprocess
from recsys_batch.storage.atomic import write_file

PREVIOUS_FILE = "PREVIOUS"
_POLL_SECONDS = 0.02


class ActivationFailed(RecsysBatchError):
    """A worker refused the snapshot, or did not say in time; the one before is in place again."""


async def activate(folder: Path, state: Path, snapshot_id: str, seconds: float) -> list[dict[str, Any]]:
    """Verify a snapshot, make it current, and wait until every worker answers from it; their reports.

    Raises:
        InputMissing: there is none of that id.
        SnapshotRefused: it is damaged.
        ActivationFailed: a worker did not take it within ``seconds``.
    """
    if snapshot_id not in repository.list_snapshots(folder):
        known = ", ".join(repository.list_snapshots(folder)) or "none"
        raise InputMissing(f"there is no snapshot {snapshot_id}; there are: {known}")
    await asyncio.to_thread(verify_in_subprocess, folder / snapshot_id)
    before = repository.read_current(folder)
    repository.set_current(folder, snapshot_id)
    taken, why = await _wait_until_current(state, snapshot_id, seconds)
    if not taken:
        if before is not None:
            repository.set_current(folder, before)
        raise ActivationFailed(f"snapshot {snapshot_id} was not taken ({why}); {before or 'none'} stays")
    if before not in (None, snapshot_id):
        write_file(folder / PREVIOUS_FILE, f"{before}\n")
    return read_worker_states(state)


async def roll_back(folder: Path, state: Path, seconds: float) -> list[dict[str, Any]]:
    """``activate`` the one before.

    Raises:
        InputMissing: there was none before.
    """
    try:
        before = (folder / PREVIOUS_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise InputMissing("no snapshot was activated before the current one: name one to activate") from None
    return await activate(folder, state, before, seconds)


async def set_traffic_split(folder: Path, state: Path, routes: TrafficSplit, seconds: float) -> list[dict[str, Any]]:
    """Give a share of the users or requests to other snapshots; the workers' reports once all do.

    Raises:
        InputMissing: a snapshot that there is not.
        SnapshotRefused: one is damaged.
        ActivationFailed: a worker did not take them in time; there are no routes then.
    """
    for name in routes.snapshot_ids:
        if name not in repository.list_snapshots(folder):
            raise InputMissing(f"there is no snapshot {name}; there are: {', '.join(repository.list_snapshots(folder)) or 'none'}")
        await asyncio.to_thread(verify_in_subprocess, folder / name)
    write_traffic_split(folder, routes)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        states = read_worker_states(state)
        if states and all(worker["routes"] == routes.to_dict() for worker in states):
            refused = {name: why for worker in states for name, why in worker["refused"].items()}
            if not refused:
                return states
            write_traffic_split(folder, TrafficSplit())
            raise ActivationFailed(f"routes were not taken: {refused}")
        await asyncio.sleep(_POLL_SECONDS)
    write_traffic_split(folder, TrafficSplit())
    raise ActivationFailed(f"not every worker took the routes within {seconds:g} s")


async def _wait_until_current(state: Path, snapshot_id: str, seconds: float) -> tuple[bool, str]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        states = read_worker_states(state)
        refused = [worker["refused"][snapshot_id] for worker in states if snapshot_id in worker["refused"]]
        if refused:
            return False, refused[0]
        if states and all(worker["current"] == snapshot_id for worker in states):
            return True, ""
        await asyncio.sleep(_POLL_SECONDS)
    return False, f"not every worker had it after {seconds:g} s"
