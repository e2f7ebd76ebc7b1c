"""Unit costs from nights' manifests and a server's metrics, in place of a trial's where they tell enough."""

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from recsys_batch.errors import RecsysBatchError, UsageError
from recsys_batch.plan.installation import costs_of_nights, costs_of_server, costs_of_tables, fetch_metrics, night_samples
from recsys_batch.plan.unit_costs import UnitCosts
from recsys_batch.tables.run_manifest import Run

STEPS = {
    "embed": (2.0, 1e-4),
    "index": (4.0, 0.0),
    "candidates": (3.0, 2e-4),
    "score": (1.0, 1e-4),
    "audit": (1.0, 5e-5),
    "publish": (0.5, 0.0),
}
"""Core-seconds that are fixed, and per user."""


def night(number: int, users: int, *, cores: float | None = 4.0, noise: float = 1.0, incremental: bool = False) -> Run:
    metrics = {f"{step}.seconds": noise * (fixed + per_user * users) / 4.0 for step, (fixed, per_user) in STEPS.items()}
    metrics |= {"embed.users": float(users), "index.rows": 30_000.0, "started_at": 1e9 + number, "incremental": float(incremental)}
    metrics |= {} if cores is None else {"cores": cores}
    return Run(f"night-{number}", dt.date(2026, 3, number), 1, "PUBLISHED", None, {}, {}, "1", "0", "", metrics=metrics)


def costs(units: UnitCosts, *runs: Run) -> UnitCosts:
    return costs_of_nights(night_samples(runs), units)


def test_nights_of_two_sizes_tell_what_is_fixed_and_what_a_user_costs(units: UnitCosts) -> None:
    found = costs(units, night(1, 50_000), night(2, 200_000), night(3, 100_000))
    assert (found.embed_user, found.search_user, found.score_user) == pytest.approx((1e-4, 2e-4, 1e-4))
    assert found.night_fixed == pytest.approx(11.5) and found.items == 30_000
    assert "3 nights of this installation (night-1, night-2, night-3)" in found.sources["search_user"]
    assert found.rank == units.rank and found.sources["rank"] == "made up"


def test_a_third_size_is_within_a_tenth_with_noise_in_the_others(units: UnitCosts) -> None:
    found = costs(units, night(1, 50_000, noise=1.05), night(2, 200_000, noise=0.95))
    total = found.night_fixed + 400_000 * (found.embed_user + found.search_user + found.score_user + found.write_user)
    assert total == pytest.approx(11.5 + 400_000 * 4.5e-4, rel=0.1)


def test_of_one_size_the_trials_fixed_cost_is_taken_off(units: UnitCosts) -> None:
    found = costs(units, night(1, 400_000))
    total = 11.5 + 400_000 * 4.5e-4
    whole = found.night_fixed + 400_000 * (found.embed_user + found.search_user + found.score_user + found.write_user)
    assert whole == pytest.approx(total) and found.night_fixed >= 40 * 0.9


@pytest.mark.parametrize("runs", [(), (night(1, 900),), (night(1, 100_000, cores=None),), (night(1, 100_000, incremental=True),)])
def test_nights_that_tell_nothing_leave_the_trials_costs(units: UnitCosts, runs: Any) -> None:
    assert costs(units, *runs) == units


def test_a_runs_files_tell_the_bytes_of_a_user_where_it_is_large_enough(units: UnitCosts) -> None:
    large, small = (replace(night(1, n), n_users=n) for n in (40_000, 400))
    assert costs_of_tables(80_000_000, large, units).list_bytes == 2000.0
    assert costs_of_tables(80_000_000, large, units).sources["list_bytes"] == "files of run night-1"
    assert costs_of_tables(80_000_000, small, units) == units


def page(n: int) -> str:
    buckets = {"0.001": n // 2, "0.002": n * 98 // 100, "0.005": n, "+Inf": n}
    lines = [f'recsys_rank_stage_seconds_bucket{{le="{bound}",stage="total"}} {count:.1f}' for bound, count in buckets.items()]
    lines += [f'recsys_rank_stage_seconds_sum{{stage="total"}} {0.0012 * n}', f'recsys_rank_stage_seconds_count{{stage="total"}} {n}.0']
    return "\n".join(["# HELP recsys_rank_stage_seconds time", *lines, 'recsys_rank_stage_seconds_sum{stage="model"} 7.0'])


def test_a_servers_metrics_tell_the_mean_and_the_p99_of_a_ranked_answer(units: UnitCosts) -> None:
    found = costs_of_server(page(10_000), "http://here/metrics", units)
    assert found.rank == pytest.approx(0.0012) and found.rank_p99 == pytest.approx(0.0035)
    assert found.sources["rank"] == "10,000 answers of http://here/metrics" and found.lookup == units.lookup


def test_few_answers_tell_nothing_and_another_page_is_refused(units: UnitCosts) -> None:
    assert costs_of_server(page(100), "http://here/metrics", units) == units
    with pytest.raises(UsageError, match="no recsys_rank_stage_seconds"):
        costs_of_server("up 1\n", "http://here/metrics", units)


@pytest.mark.parametrize(("url", "error"), [("file:///etc/hostname", UsageError), ("http://127.0.0.1:9/metrics", RecsysBatchError)])
def test_an_address_that_is_none_or_answers_nothing_is_said(url: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        fetch_metrics(url)
