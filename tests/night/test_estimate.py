"""The dry run tells what the candidates step will do, and leaves nothing behind."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from recsys_batch.cli import run
from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.night import estimate as module
from recsys_batch.night.estimate import benchmark_exact_search, estimate_night
from recsys_batch.read import run_rows

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def test_before_any_night_it_rests_on_inputs_and_a_trial(
    fresh: Config, options: Callable[[Config], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["candidates", "--run-date", "2026-03-01", "--dry-run", *options(fresh)]) == 0
    printed = capsys.readouterr().out
    assert "items       89 of 16 dimensions, 40 candidates per user" in printed
    assert "mode        exact, float32 (auto: 89 items" in printed
    for line in ("index", "memory", "partitions", "time        about"):
        assert f"\n{line}" in printed
    assert run_rows(fresh.paths.warehouse) == []


def test_of_a_run_it_knows_the_users_and_the_measured_time(spark: SparkSession, published: Config) -> None:
    before = len(run_rows(published.paths.warehouse))
    found = estimate_night(spark, published, dt.date(2026, 3, 1))
    assert (found.n_users, found.n_items, found.embedding_dim) == (151, 89, 16)
    assert found.index_bytes == found.shared_bytes == 89 * 16 * 4
    assert found.n_tasks * found.users_per_task >= found.n_users
    assert found.seconds > 0
    assert len(run_rows(published.paths.warehouse)) == before


def test_a_run_that_is_not_there_is_named(spark: SparkSession, published: Config) -> None:
    with pytest.raises(InputMissing, match="there is no run nothing"):
        estimate_night(spark, published, dt.date(2026, 3, 1), "nothing")


def test_a_trial_grows_with_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TRIAL_ITEMS", 1_000)
    monkeypatch.setattr(module, "_TRIAL_USERS", 100)
    assert benchmark_exact_search(1_000_000, 16, 10) > 100 * benchmark_exact_search(1_000, 16, 10) / 10
