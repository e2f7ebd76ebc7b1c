"""Where a follower keeps live lists: in LMDB folders of this host, or in Redis for all hosts."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from recsys_batch.online.snapshot.live_overlay import open_overlay, remove_overlay
from recsys_batch.online.snapshot.redis_overlay import RedisOverlay, WriterLease, read_progress


class Overlay(Protocol):
    """The live lists of a run."""

    @property
    def is_in_place(self) -> bool:
        """Whether the overlay is the one to write on: readers find it, and nobody else writes."""

    @property
    def version(self) -> int | None:
        """Version of topk_live that it goes up to; None where it is new."""

    def add(self, records: Iterable[tuple[bytes, bytes]], version: int) -> None:
        """Put (key, live record) of a batch, and move the version on; of a user's records that of the greatest batch_id stays."""

    def note_checked(self) -> None:
        """Note that it has all that there is now."""

    def close(self) -> None: ...


class OtherWriter(NamedTuple):
    """Another follower writes a run's overlay; ``checked_at``: when, in seconds since 1970, it last had all lists, None if not yet."""

    checked_at: float | None


class OverlayStore(Protocol):
    """The overlays of the runs that a server answers from."""

    def open(self, run_id: str, source: str) -> Overlay | OtherWriter:
        """Open a run's overlay to write, or begin one; ``source`` is the table whose versions are counted."""

    def keep_only(self, run_ids: Collection[str]) -> None:
        """Drop the overlays of other runs."""

    def close(self) -> None: ...


class LocalOverlays:
    """Overlays in LMDB folders, which this follower alone writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, run_id: str, source: str) -> Overlay:
        self._folder.mkdir(parents=True, exist_ok=True)
        return open_overlay(self._folder / run_id, source)

    def keep_only(self, run_ids: Collection[str]) -> None:
        for path in self._folder.iterdir() if self._folder.exists() else ():
            if path.name not in run_ids:
                remove_overlay(path)

    def close(self) -> None:
        pass


class RedisOverlays:
    """Overlays in Redis, each of which one follower of all hosts writes at a time: who has the run's lease.

    What is of runs that are served no more expires by itself.
    """

    def __init__(self, client: Any, expire_seconds: int) -> None:
        self._client, self._expire_seconds = client, expire_seconds

    def open(self, run_id: str, source: str) -> Overlay | OtherWriter:
        lease = WriterLease(self._client, run_id)
        if not lease.acquire():
            return OtherWriter(read_progress(self._client, run_id).get("checked_at"))
        return RedisOverlay(self._client, run_id, source, self._expire_seconds, lease)

    def keep_only(self, run_ids: Collection[str]) -> None:
        pass

    def close(self) -> None:
        self._client.close()
