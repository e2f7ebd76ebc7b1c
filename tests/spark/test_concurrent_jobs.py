"""Independent jobs run at the same time, with the caller's log context, and fail as one."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest

from recsys_batch.spark.concurrent_jobs import run_concurrently

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NAME: ContextVar[str] = ContextVar("NAME", default="nobody")


def test_results_come_in_order_from_jobs_that_ran_at_the_same_time(spark: SparkSession) -> None:
    together = threading.Barrier(2, timeout=20)

    def count(n: int) -> int:
        together.wait()  # none goes on before both are here
        return spark.range(n).count()

    assert run_concurrently(spark, lambda: count(5), lambda: count(7)) == [5, 7]


def test_each_has_the_callers_context(spark: SparkSession) -> None:
    token = NAME.set("a night")
    try:
        assert run_concurrently(spark, NAME.get, NAME.get) == ["a night", "a night"]
    finally:
        NAME.reset(token)


def test_local_properties_go_with_the_jobs(spark: SparkSession) -> None:
    context = spark.sparkContext
    context.setLocalProperty("callSite.short", "from the test")
    try:
        assert run_concurrently(spark, lambda: context.getLocalProperty("callSite.short")) == ["from the test"]
    finally:
        context.setLocalProperty("callSite.short", None)  # type: ignore[arg-type]


def test_an_error_is_raised_when_the_others_have_ended(spark: SparkSession) -> None:
    ended: list[int] = []

    def fail() -> None:
        raise ValueError("no such table")

    def work() -> None:
        ended.append(spark.range(3).count())

    with pytest.raises(ValueError, match="no such table"):
        run_concurrently(spark, work, fail)
    assert ended == [3]


def test_an_interrupt_cancels_what_runs(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    from recsys_batch.spark import concurrent_jobs

    cancelled = threading.Event()
    monkeypatch.setattr(type(spark.sparkContext), "cancelAllJobs", lambda _: cancelled.set())

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(concurrent_jobs, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_concurrently(spark, lambda: cancelled.wait(20))
    assert cancelled.is_set()
