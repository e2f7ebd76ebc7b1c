"""Unit costs: seconds of a core, and bytes, of each piece of work in this installation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class UnitCosts:
    """Seconds of one core, and bytes.

    Attributes:
        night_fixed: of a night, whatever its size.
        embed_user, search_user, score_user, write_user: of a night, per user; search over ``items`` items.
        search_exponent: of its growth with the catalogue: 1 for exact search, about 0.5 for inverted lists.
        snapshot_user: of turning a run into a snapshot.
        lookup, lookup_p99: an answer that is read: mean of a core, and the 99th percentile without waiting.
        rank, rank_p99: an answer whose candidates are ranked.
        pair: ranking one more item in a request.
        refresh_fixed, refresh_user: of a micro-batch, and of each user in it. refresh_seconds: from an event to the changed answer, p95.
        list_bytes, record_bytes: of a user, in tables and in a snapshot. item_bytes: of an item in memory.
        items: of the catalogue that was searched.
        sources: where each value is from, by its name.
    """

    night_fixed: float
    embed_user: float
    search_user: float
    score_user: float
    write_user: float
    search_exponent: float
    snapshot_user: float
    lookup: float
    lookup_p99: float
    rank: float
    rank_p99: float
    pair: float
    refresh_fixed: float
    refresh_user: float
    refresh_seconds: float
    list_bytes: float
    record_bytes: float
    item_bytes: float
    items: int
    sources: Mapping[str, str] = field(default_factory=dict)

    def search_seconds(self, items: int) -> float:
        """Compute the core-seconds per user of a search over a catalogue."""
        seconds: float = self.search_user * (items / self.items) ** self.search_exponent
        return seconds

    def night_user(self, items: int) -> float:
        """Compute the core-seconds per user of a night over a catalogue, its snapshot included."""
        return self.embed_user + self.search_seconds(items) + self.score_user + self.write_user + self.snapshot_user
