"""Unit costs that this installation has measured itself: from nights' manifests, and from the metrics of its servers."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from recsys_batch.errors import RecsysBatchError, UsageError
from recsys_batch.plan.unit_costs import UnitCosts
from recsys_batch.tables.run_manifest import CORES, Run

MIN_USERS = 20_000
"""Of a night that tells what a user costs: of a smaller one, what a night costs that has no users is the most."""
MIN_RATIO = 1.5
"""Of the sizes of nights that tell what is fixed from what grows."""
_GROWING = {"embed": "embed_user", "candidates": "search_user", "score": "score_user", "audit": "write_user"}
"""Steps whose cost grows with the users, and what they tell."""
_SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? ([0-9.e+-]+|\+Inf)$", re.MULTILINE)
_TIMEOUT_SECONDS = 10.0
_MIN_REQUESTS = 1000


@dataclass(frozen=True)
class NightSample:
    """A full night: its users and items, and core-seconds by step."""

    run_id: str
    users: int
    items: int
    core_seconds: Mapping[str, float]


def night_samples(runs: Iterable[Run]) -> list[NightSample]:
    """Take the nights that were computed in full and say on how many cores, the newest last; an incremental one costs what changed."""
    samples = []
    for run in sorted(runs, key=lambda one: one.started_at):
        metrics = run.metrics
        if CORES not in metrics or "score.seconds" not in metrics or metrics.get("incremental"):
            continue
        steps = {name.removesuffix(".seconds"): value * metrics[CORES] for name, value in metrics.items() if name.endswith(".seconds")}
        samples.append(NightSample(run.run_id, int(metrics["embed.users"]), int(metrics["index.rows"]), steps))
    return samples


def costs_of_nights(samples: list[NightSample], trial: UnitCosts) -> UnitCosts:
    """Replace a trial's costs of a night by those of the nights that ran here; the trial's stay where no night tells.

    Of nights of at least two sizes, what is fixed and what grows with the users is fitted by least squares. Of one size, the trial's fixed
    cost is taken off, in proportion.
    """
    known = [sample for sample in samples if sample.users >= MIN_USERS]
    if not known:
        return trial
    sizes = [sample.users for sample in known]
    changes: dict[str, float] = {}
    fixed = 0.0
    newest = known[-1]
    total = sum(newest.core_seconds.values())
    for step in newest.core_seconds:
        with_step = [sample for sample in known if step in sample.core_seconds]
        if max(sizes) / min(sizes) >= MIN_RATIO and len(with_step) > 1:
            base, slope = _fit([sample.users for sample in with_step], [sample.core_seconds[step] for sample in with_step])
        else:
            base = min(newest.core_seconds[step], trial.night_fixed * newest.core_seconds[step] / total)
            slope = (newest.core_seconds[step] - base) / newest.users
        fixed += base
        if step in _GROWING:
            changes[_GROWING[step]] = slope
        else:
            fixed += slope * newest.users
    names = ", ".join(sample.run_id for sample in known[-3:])
    origin = f"{len(known)} nights of this installation ({names})" if len(known) > 1 else f"the night {names} of this installation"
    sources = {**trial.sources, **dict.fromkeys((*changes, "night_fixed"), origin)}
    return replace(trial, **changes, night_fixed=fixed, items=newest.items, sources=sources)


def costs_of_tables(n_bytes: int, run: Run, trial: UnitCosts) -> UnitCosts:
    """Replace a trial's bytes per user by those of a run's files; the trial's stay where the run is small."""
    if not run.n_users or run.n_users < MIN_USERS:
        return trial
    return replace(trial, list_bytes=n_bytes / run.n_users, sources={**trial.sources, "list_bytes": f"files of run {run.run_id}"})


def _fit(users: list[int], core_seconds: list[float]) -> tuple[float, float]:
    """Fit (fixed, per user), neither below zero, by least squares of relative errors."""
    x, y = np.array(users, float), np.array(core_seconds)
    weights = 1 / np.maximum(y, 1e-9)
    slope, base = np.polyfit(x, y, 1, w=weights)
    if base < 0:
        return 0.0, float((x * y * weights**2).sum() / (x * x * weights**2).sum())
    if slope < 0:
        return float((y * weights**2).sum() / (weights**2).sum()), 0.0
    return float(base), float(slope)


def costs_of_server(page: str, url: str, trial: UnitCosts) -> UnitCosts:
    """Replace a trial's cost of a ranked answer by what a server's metrics say; the trial's stays where it answered too few.

    The mean and the 99th percentile of ``recsys_rank_stage_seconds`` are from a server under its own load, waiting included.

    Raises:
        UsageError: it is no page of ``serve``.
    """
    buckets: dict[float, float] = {}
    total = 0.0
    for name, labels, value in _SAMPLE.findall(page):
        if 'stage="total"' not in labels:
            continue
        if name == "recsys_rank_stage_seconds_bucket":
            bound = re.search(r'le="([^"]+)"', labels)
            if bound is not None:
                buckets[float(bound.group(1))] = float(value)
        elif name == "recsys_rank_stage_seconds_sum":
            total = float(value)
    if not buckets:
        raise UsageError(f"{url} has no recsys_rank_stage_seconds: pass the /metrics of `recsys-batch serve`")
    n = max(buckets.values())
    if n < _MIN_REQUESTS:
        return trial
    origin = f"{n:,.0f} answers of {url}"
    sources = {**trial.sources, "rank": origin, "rank_p99": origin}
    return replace(trial, rank=total / n, rank_p99=max(_quantile(buckets, 0.99), total / n), sources=sources)


def _quantile(buckets: Mapping[float, float], q: float) -> float:
    """Interpolate a quantile of a cumulative histogram, as Prometheus's histogram_quantile."""
    wanted, lower, below = q * max(buckets.values()), 0.0, 0.0
    for bound in sorted(buckets):
        if buckets[bound] >= wanted:
            if bound == float("inf") or buckets[bound] == below:
                return lower
            return lower + (bound - lower) * (wanted - below) / (buckets[bound] - below)
        lower, below = bound, buckets[bound]
    return lower


def fetch_metrics(url: str) -> str:
    """Fetch a server's page of metrics. Raises UsageError: no HTTP address; RecsysBatchError: no answer."""
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--metrics {url}: pass an address like http://127.0.0.1:8080/metrics")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
            page: bytes = answer.read()
    except OSError as error:
        raise RecsysBatchError(f"{url} does not answer: {error}") from None
    return page.decode("utf-8", "replace")
