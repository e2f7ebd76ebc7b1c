"""Ways to serve a surface, each with what it takes: feasible or not, cores, memory, money, freshness, and the time of an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from recsys_batch.config import Prices
from recsys_batch.plan.queueing import p99_seconds, required_cores
from recsys_batch.plan.surfaces import Surface
from recsys_batch.plan.unit_costs import UnitCosts

BATCH, TWO_STAGE, STREAMING, ONLINE = MODES = ("batch", "two_stage", "streaming", "online")
MODE_TITLES = {
    BATCH: "batch + cache",
    TWO_STAGE: "two-stage",
    STREAMING: "streaming refresh + two-stage",
    ONLINE: "online, full catalogue",
}
MAX_WINDOW_HOURS, MIN_PERIOD_HOURS = 4.0, 0.5
"""A night takes a third of the tolerated age of its lists, the first at most; below the second nobody would start another one."""
_KEPT_RUNS = 2
_ANSWER_BYTES = 100
"""Of an item in an answer that is read from a store."""
_HOUR, _DAY, _GB, _DAYS_PER_MONTH = 3600.0, 86_400.0, 1e9, 30.0


@dataclass(frozen=True)
class ModePlan:
    """Cores, memory, money, freshness and p99 of a mode for a surface.

    Attributes:
        reasons: why it is not feasible; empty where it is.
        serving_cores, night_cores: at peak, and while a night runs. nodes: for both, at the size of a node in [prices].
        memory_gb: of the servers. storage_gb: of tables and snapshots.
        costs: money per day, by what it is for.
        freshness_seconds: greatest age of what an answer knows of its user. p99_ms: network included; infinite where it never answers.
    """

    mode: str
    reasons: tuple[str, ...]
    serving_cores: int
    night_cores: int
    nodes: int
    memory_gb: float
    storage_gb: float
    costs: dict[str, float]
    cost_per_million: float
    freshness_seconds: float
    p99_ms: float

    @property
    def is_feasible(self) -> bool:
        return not self.reasons

    @property
    def cost_per_day(self) -> float:
        return sum(self.costs.values())


@dataclass(frozen=True)
class _Night:
    """A schedule of nights: hours between two, hours that each may take, core-seconds of one."""

    period: float
    window: float
    core_seconds: float

    @property
    def age_seconds(self) -> float:
        return (self.period + self.window) * _HOUR

    @property
    def cores(self) -> int:
        return max(1, math.ceil(self.core_seconds / (self.window * _HOUR)))


def plan_mode(mode: str, surface: Surface, prices: Prices, units: UnitCosts) -> ModePlan:
    """Plan one of MODES for a surface."""
    return {BATCH: _plan_batch, TWO_STAGE: _plan_two_stage, STREAMING: _plan_streaming, ONLINE: _plan_online}[mode](surface, units, prices)


def _plan_batch(surface: Surface, units: UnitCosts, prices: Prices) -> ModePlan:
    limit = min(surface.staleness_hours, surface.candidates_change_hours)
    night, reasons = _schedule(surface, units, limit, "lists")
    if surface.context != "none":
        reasons.insert(0, f"an answer depends on the {surface.context}, which no night knows")
    record = surface.shown * _ANSWER_BYTES
    return _assemble(BATCH, surface, units, prices, reasons, night, units.lookup, units.lookup_p99, record, freshness=night.age_seconds)


def _plan_two_stage(surface: Surface, units: UnitCosts, prices: Prices) -> ModePlan:
    # What happens in the session comes with the request; else the ranker knows of the user what the night does.
    in_session = surface.context == "session"
    limit = surface.candidates_change_hours if in_session else min(surface.staleness_hours, surface.candidates_change_hours)
    night, reasons = _schedule(surface, units, limit, "candidates")
    reasons[:0] = _query_reasons(surface)
    freshness = 0.0 if in_session else night.age_seconds
    return _assemble(TWO_STAGE, surface, units, prices, reasons, night, units.rank, units.rank_p99, units.record_bytes, freshness=freshness)


def _plan_streaming(surface: Surface, units: UnitCosts, prices: Prices) -> ModePlan:
    night, _ = _schedule(surface, units, 24 + MAX_WINDOW_HOURS, "candidates")
    reasons = _query_reasons(surface)
    limit = min(surface.candidates_change_hours, surface.staleness_hours if surface.context == "none" else math.inf) * _HOUR
    if units.refresh_seconds > limit:
        reasons.append(f"a refresh takes {units.refresh_seconds:.1f} s, {limit:.1f} s are tolerated")
    stream_cores = units.refresh_fixed + surface.events_per_second * units.refresh_user  # micro-batches of a second
    freshness = 0.0 if surface.context == "session" else units.refresh_seconds
    return _assemble(
        STREAMING,
        surface,
        units,
        prices,
        reasons,
        night,
        units.rank,
        units.rank_p99,
        units.record_bytes,
        freshness=freshness,
        stream_cores=stream_cores,
    )


def _plan_online(surface: Surface, units: UnitCosts, prices: Prices) -> ModePlan:
    seconds = full_catalogue_seconds(surface.items, units)
    p99_alone = seconds * units.rank_p99 / units.rank
    return _assemble(ONLINE, surface, units, prices, [], None, seconds, p99_alone, 0.0, freshness=0.0)


def full_catalogue_seconds(items: int, units: UnitCosts) -> float:
    """Compute the core-seconds of a request that ranks every item."""
    return units.lookup + units.embed_user + items * units.pair


def _query_reasons(surface: Surface) -> list[str]:
    return ["candidates depend on a query, which no night knows"] if surface.context == "query" else []


def _schedule(surface: Surface, units: UnitCosts, limit_hours: float, what: str) -> tuple[_Night, list[str]]:
    """Schedule nights so that what they make is never older than a limit: as rarely as that allows, once a day at most."""
    window = min(MAX_WINDOW_HOURS, limit_hours / 3)
    period = min(24.0, limit_hours - window)
    night = _Night(period, window, units.night_fixed + surface.users * units.night_user(surface.items))
    if period >= MIN_PERIOD_HOURS:
        return night, []
    return night, [f"{what} may be {limit_hours:g} h old: a night about every {60 * period:.0f} min is a stream's work"]


def _assemble(
    mode: str,
    surface: Surface,
    units: UnitCosts,
    prices: Prices,
    reasons: list[str],
    night: _Night | None,
    seconds: float,
    p99_alone: float,
    record_bytes: float,
    *,
    freshness: float,
    stream_cores: float = 0.0,
) -> ModePlan:
    """Add up what a mode takes.

    Args:
        seconds, p99_alone: of a core for an answer, and of an answer that does not wait. record_bytes: of a user, on every server.
    """
    cores = required_cores(surface.peak_rate, seconds, p99_alone, surface.budget_seconds)
    if cores is None:
        reasons = [*reasons, f"one answer takes {1000 * p99_alone:,.1f} ms (p99), {1000 * surface.budget_seconds:g} ms are there for it"]
        cores = math.floor(surface.peak_rate * seconds) + 1
    p99 = p99_seconds(cores, surface.peak_rate, seconds, p99_alone)
    server_nodes = math.ceil(cores / prices.node_cores)
    server_bytes = surface.items * units.item_bytes + surface.users * record_bytes
    # Users are divided over servers where one cannot hold all of them.
    holding_nodes = math.ceil(server_bytes / (prices.node_memory_gb * _GB))
    server_nodes = max(server_nodes, holding_nodes)
    night_cores = night.cores if night is not None else 0
    night_seconds_per_day = night.core_seconds * 24 / night.period if night is not None else 0.0
    per_user = units.list_bytes * _KEPT_RUNS + record_bytes
    storage = (surface.users * per_user if night is not None else 0.0) + surface.items * units.item_bytes
    core_second = prices.core_hour / _HOUR
    costs = {
        "serving": max(cores, holding_nodes * prices.node_cores if holding_nodes > 1 else 0) * _DAY * core_second,
        "night": night_seconds_per_day * core_second,
        "stream": stream_cores * _DAY * core_second,
        "storage": storage / _GB * prices.gb_month / _DAYS_PER_MONTH,
        "reads": surface.requests_per_day * surface.shown * _ANSWER_BYTES / _GB * prices.gb_read if mode == BATCH else 0.0,
    }
    return ModePlan(
        mode=mode,
        reasons=tuple(reasons),
        serving_cores=cores,
        night_cores=night_cores,
        nodes=server_nodes + math.ceil((night_cores + stream_cores) / prices.node_cores),
        memory_gb=server_bytes * max(1, math.ceil(server_nodes / max(holding_nodes, 1))) / _GB,
        storage_gb=storage / _GB,
        costs=costs,
        cost_per_million=sum(costs.values()) / surface.requests_per_day * 1e6,
        freshness_seconds=freshness,
        p99_ms=1000 * p99 + surface.network_ms,
    )
