"""The protocol's model repository over the folder of snapshots: a snapshot is a version of ranker and recommend, loading one activates it.

Made by server/worker.py and grpc_server.py; the wires are repository_rest.py and grpc_server.py.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from recsys_batch.errors import RecsysBatchError, quote
from recsys_batch.online.api.decode import decode_json
from recsys_batch.online.oip.model_api import InvalidRequest, ModelUnknown
from recsys_batch.online.oip.snapshot_models import RANKER, RECOMMEND
from recsys_batch.online.serving import activation
from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from recsys_batch.online.serving.traffic_split import TrafficSplit
from recsys_batch.online.snapshot import repository
from recsys_batch.online.snapshot.layout import RANKER as RANKER_FILE
from recsys_batch.online.snapshot.manifest import read_manifest

_POLL_SECONDS = 0.02


class SnapshotRepository:
    """Lists, loads and unloads versions of the models for all workers of a server.

    Args:
        manager: of this process. state: folder in which the server's workers tell each other what they answer from.
    """

    def __init__(self, manager: SnapshotManager, state: Path) -> None:
        self._manager, self._state = manager, state

    def index(self, only_ready: bool) -> list[dict[str, str]]:
        """List every snapshot as a version of each of its models: name, version, state (READY or UNAVAILABLE), and why not."""
        rows = [row for snapshot_id in repository.list_snapshots(self._manager.folder) for row in self._versions(snapshot_id)]
        return [row for row in rows if row["state"] == "READY" or not only_ready]

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Activate a snapshot, both its models: the parameter ``snapshot_id``, or that key of the JSON in ``config``; else the newest.

        Raises:
            ModelUnknown: another model, or no snapshot. InvalidRequest: another parameter. What ``activation.activate`` raises.
        """
        _check_model(name)
        snapshot_id = _wanted_snapshot(parameters)
        if snapshot_id is None:
            names = repository.list_snapshots(self._manager.folder)
            if not names:
                raise ModelUnknown("there is no snapshot to load: export one")
            snapshot_id = names[-1]
        await activation.activate(self._manager.folder, self._state, snapshot_id, activation.SWITCH_SECONDS)
        await self._wait_until_current(snapshot_id)

    async def unload(self, name: str) -> None:
        """End the canary. Raises InvalidRequest: there is none, and the snapshot in use is only left for another."""
        _check_model(name)
        await activation.change_traffic_split(self._manager.folder, self._state, _without_canary, activation.SWITCH_SECONDS)

    async def _wait_until_current(self, snapshot_id: str) -> None:
        """Wait for this process, too: the workers answer from the snapshot, gRPC's process follows in a moment."""
        until = time.monotonic() + activation.SWITCH_SECONDS
        while (current := self._manager.current) is None or current.snapshot.snapshot_id != snapshot_id:
            if snapshot_id in self._manager.refused or time.monotonic() > until:
                why = self._manager.refused.get(snapshot_id, f"it was not opened within {activation.SWITCH_SECONDS:g} s")
                raise activation.ActivationFailed(f"the workers answer from snapshot {snapshot_id}, this process does not: {why}")
            if repository.read_pointers(self._manager.folder).current != snapshot_id:
                return  # somebody has gone over to another one since
            await asyncio.sleep(_POLL_SECONDS)

    def _in_use(self) -> list[str]:
        return [loaded.snapshot.snapshot_id for loaded in (self._manager.current, self._manager.canary) if loaded is not None]

    def _versions(self, snapshot_id: str) -> Iterator[dict[str, str]]:
        names, reason = [RANKER, RECOMMEND], self._manager.refused.get(snapshot_id, "neither in use nor the canary")
        try:
            if RANKER_FILE not in read_manifest(self._manager.folder / snapshot_id).files:
                names.remove(RANKER)
        except RecsysBatchError as error:
            reason = str(error)
        status = {"state": "READY", "reason": ""} if snapshot_id in self._in_use() else {"state": "UNAVAILABLE", "reason": reason}
        for name in names:
            yield {"name": name, "version": snapshot_id, **status}


def _without_canary(split: TrafficSplit) -> TrafficSplit:
    if split.canary is None:
        raise InvalidRequest("there is no canary to unload, and the snapshot in use is not unloaded: load another")
    return replace(split, canary=None, weight=0.0)


def _check_model(name: str) -> None:
    if name not in (RANKER, RECOMMEND):
        raise ModelUnknown(f"there is no model {quote(name)}; there are: {RANKER}, {RECOMMEND}")


def _wanted_snapshot(parameters: Mapping[str, Any]) -> str | None:
    """Find the snapshot that parameters name; the official clients send what they are given in ``config``, as text."""
    wanted = dict(parameters)
    if "config" in wanted:
        config = wanted.pop("config")
        found = decode_json(config.encode()) if isinstance(config, str) else None
        if not isinstance(found, dict):
            raise InvalidRequest(f'config is {quote(config)}: expected {{"snapshot_id": ID}} as text')
        wanted |= found
    if unknown := sorted(set(wanted) - {"snapshot_id"}):
        raise InvalidRequest(f"load takes no {quote(unknown[0])}: expected snapshot_id, or nothing for the newest snapshot")
    snapshot_id = wanted.get("snapshot_id")
    if snapshot_id is not None and not isinstance(snapshot_id, str):
        raise InvalidRequest(f"snapshot_id is {quote(snapshot_id)}: expected text")
    return snapshot_id
