"""Claims that people repeat about batch and online, each computed for this installation."""

from __future__ import annotations

from dataclasses import dataclass

from recsys_batch.config import Prices
from recsys_batch.plan.modes import BATCH, ONLINE, full_catalogue_seconds, plan_mode
from recsys_batch.plan.surfaces import Surface
from recsys_batch.plan.unit_costs import UnitCosts

_CLAIM_BUDGET_MS = 50.0
_MILLION = 1_000_000


@dataclass(frozen=True)
class Claim:
    """A claim as it is said, its figure here, and what was compared."""

    said: str
    here: str
    compared: str


def check_claims(surface: Surface, name: str, units: UnitCosts, prices: Prices) -> list[Claim]:
    """Compute the claims for a surface."""
    batch, online = (plan_mode(mode, surface, prices, units).cost_per_day for mode in (BATCH, ONLINE))
    prediction = units.night_user(surface.items) + units.night_fixed / surface.users
    full = full_catalogue_seconds(surface.items, units)
    large = full_catalogue_seconds(_MILLION, units)
    return [
        Claim(
            "batch saves 99 %", _saving(batch, online), f"{name}: a day of batch + cache against ranking all {surface.items:,} items online"
        ),
        Claim(
            "a prediction is 10 to 100 times dearer online",
            f"{_times(units.rank / prediction)}, {_times(full / prediction)} over the full catalogue",
            "core-seconds of a ranked request against those of a user's night",
        ),
        Claim(
            "two stages cut ranking cost by 1,000",
            f"by {large / units.rank:,.0f}",
            f"a request over {_MILLION:,} items against one over the night's candidates",
        ),
        Claim(
            "a p99 of 50 ms",
            f"{1000 * units.rank_p99:.1f} ms ranked, {1000 * units.lookup_p99:.1f} ms read, "
            f"{_items_within(_CLAIM_BUDGET_MS / 1000, units):,} items at most without candidates",
            "of an answer that does not wait",
        ),
    ]


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.2g} times"


def _saving(batch: float, online: float) -> str:
    share = 1 - batch / online
    return f"{share:.1%}" if share >= 0 else f"it costs {batch / online:.1f} times as much"


def _items_within(seconds: float, units: UnitCosts) -> int:
    """Compute how many items a request can rank in a time, at the 99th percentile."""
    tail = units.rank_p99 / units.rank
    return max(0, int((seconds / tail - units.lookup - units.embed_user) / units.pair))
