"""Capacity of a night and of a fleet of servers: cores, memory, disk, hours, and what bounds them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from recsys_batch.config import Prices
from recsys_batch.plan.queueing import p99_seconds, required_cores
from recsys_batch.plan.unit_costs import UnitCosts

_WORKER_BYTES, _BLOCK_BYTES = 220e6, 80e6
"""A Python worker with Arrow, numpy, torch and faiss loaded, and what a block of users takes in it."""
_EVENT_BYTES, _GB, _HOUR = 24.0, 1e9, 3600.0
_KEPT_RUNS = 2
TRUSTED_RANGE = 10.0
"""Times the size that was measured: beyond it an estimate says that it extrapolates."""


@dataclass(frozen=True)
class NightCapacity:
    """Machines, memory, disk and hours of a night.

    Attributes:
        hours: that it takes on ``cores``. executors: machines of the size in [prices]. executor_memory_gb: of each.
        disk_gb: tables of the runs that are kept. shuffle_gb: events, which a night shuffles once.
        shares: of the core-seconds, by piece of work, greatest first; the first is the bottleneck.
        range_note: what the estimate rests on, or that it goes beyond it.
    """

    users: int
    items: int
    dim: int
    cores: int
    hours: float
    executors: int
    executor_memory_gb: float
    disk_gb: float
    shuffle_gb: float
    shares: tuple[tuple[str, float], ...]
    range_note: str

    @property
    def bottleneck(self) -> str:
        return self.shares[0][0]


@dataclass(frozen=True)
class FleetCapacity:
    """Servers for ranked answers: workers of one core each, machines, and the 99th percentile that they have."""

    requests_per_second: float
    workers: int
    machines: int
    p99_ms: float


def night_core_seconds(users: int, items: int, dim: int, units: UnitCosts, measured_dim: int) -> dict[str, float]:
    """Compute a night's core-seconds by piece of work; search and scoring grow with the embedding's width."""
    wide = dim / measured_dim
    search = units.search_seconds(items) * wide
    per_user = {"embed": units.embed_user * wide, "search": search, "score": units.score_user * wide, "write": units.write_user}
    return {"fixed": units.night_fixed} | {name: users * seconds for name, seconds in per_user.items()}


def plan_night(
    users: int,
    items: int,
    dim: int,
    units: UnitCosts,
    prices: Prices,
    *,
    hours: float,
    measured_users: int,
    measured_dim: int,
    events: int = 20,
) -> NightCapacity:
    """Plan a night that must end within some hours.

    Args:
        measured_users, measured_dim: of what the unit costs were measured on. events: of a user.
    """
    seconds = night_core_seconds(users, items, dim, units, measured_dim)
    total = sum(seconds.values())
    cores = max(1, math.ceil(total / (hours * _HOUR)))
    executors = math.ceil(cores / prices.node_cores)
    per_executor = min(cores, prices.node_cores)
    shared = items * dim * 4 + items * 16
    factor = max(users / measured_users, measured_users / users)
    basis = f"measured on {measured_users:,} users"
    note = basis if factor <= TRUSTED_RANGE else f"{basis}: this is {factor:,.0f} times as far, an extrapolation"
    return NightCapacity(
        users=users,
        items=items,
        dim=dim,
        cores=cores,
        hours=total / cores / _HOUR,
        executors=executors,
        executor_memory_gb=(per_executor * (_WORKER_BYTES + _BLOCK_BYTES) + shared) / _GB,
        disk_gb=users * units.list_bytes * _KEPT_RUNS / _GB,
        shuffle_gb=users * events * _EVENT_BYTES / _GB,
        shares=tuple(sorted(((name, value / total) for name, value in seconds.items()), key=lambda one: -one[1])),
        range_note=note,
    )


def plan_fleet(rate: float, p99_ms: float, units: UnitCosts, prices: Prices) -> FleetCapacity | None:
    """Plan servers for ranked answers at a rate and a 99th percentile; None where one answer alone takes longer."""
    workers = required_cores(rate, units.rank, units.rank_p99, p99_ms / 1000)
    if workers is None:
        return None
    p99 = p99_seconds(workers, rate, units.rank, units.rank_p99)
    return FleetCapacity(rate, workers, math.ceil(workers / prices.node_cores), 1000 * p99)
