"""A night dies at every point where it writes, and the same command again ends with the tables of a night that never died."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from recsys_batch.ann import index as ann_index
from recsys_batch.config import Config
from recsys_batch.errors import EXIT_MISSING, Busy
from recsys_batch.night import open_run, publish, run_context, steps
from recsys_batch.night import runner as night_module
from recsys_batch.night.run_context import RunContext
from recsys_batch.night.runner import run_night
from recsys_batch.night.steps import build_index as night_index
from recsys_batch.night.steps import gather_events
from recsys_batch.read import published_run
from recsys_batch.storage import artifacts

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAY = dt.date(2026, 3, 1)
OUTPUTS = ("user_embeddings", "item_embeddings", "candidates", "shortfalls", "popular", "topk")


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL: no FAILED row, no tidying up in ``except Exception``."""


Point = tuple[Any, str, Callable[..., bool]]
"""Where to die: the holder of a function, its name, and which of its calls it is."""


def table(name: str) -> Callable[..., bool]:
    return lambda where, *_: where.spec.name == name


def row(step: str) -> Callable[..., bool]:
    """The manifest's row after a step."""
    return lambda _, runs: f"{step}.seconds" in runs[-1].metrics and f"{_AFTER[step]}.seconds" not in runs[-1].metrics


def pointer(name: str) -> Callable[..., bool]:
    return lambda root, run_id, found, value: found == name


def any_call(*_: Any, **__: Any) -> bool:
    return True


_AFTER = {"embed": "index", "index": "candidates", "candidates": "score", "score": "audit", "audit": "publish", "publish": "nothing"}
POINTS: dict[str, Point] = {
    "the copy of the bundle": (artifacts, "put_folder", any_call),
    "the run's first row": (run_context, "append_runs", lambda _, runs: not any(key.endswith(".seconds") for key in runs[-1].metrics)),
    "the pointer bundle": (open_run, "set_pointer", pointer("bundle")),
    **{f"the pointer {name}": (artifacts, "set_pointer", pointer(name)) for name in ("gathered", "popularity", "catalogue", "index")},
    **{f"the commit of {name}": (run_context, "commit", table(name)) for name in OUTPUTS},
    "what is gathered": (gather_events, "_write_gathered", any_call),
    "the index's files": (ann_index, "store_index_file", any_call),
    "the index's tuning": (night_index, "tune", any_call),
    **{f"the row after {step}": (run_context, "append_runs", row(step)) for step in _AFTER},
    "what publishing tidies up": (publish, "_remove_old_gathered_events", any_call),
    "the metrics in MLflow": (night_module.RunContext, "append_manifest", lambda night, **changes: changes.get("status") == "AUDITED"),
}


def manifest_of(config: Config) -> dict[str, Any]:
    """What the published run's row says, without times and the numbers of versions and attempts."""
    run = published_run(config.paths.warehouse)
    # Bytes too: how well a file compresses depends on generated_at.
    timed = ("seconds", "started_at", "event", "bytes")
    metrics = {key: value for key, value in run.metrics.items() if not any(part in key for part in timed)}
    same = ("run_id", "run_date", "status", "input_versions", "model_version", "code_version", "config_hash", "n_users", "n_rows")
    return {"metrics": metrics, "tables": sorted(run.table_versions), **{name: getattr(run, name) for name in same}}


@contextlib.contextmanager
def dying_at(point: Point, after: bool, death: BaseException) -> Iterator[list[bool]]:
    holder, name, chosen = point
    real, died = getattr(holder, name), []

    def function(*arguments: Any, **named: Any) -> Any:
        if died or not chosen(*arguments, **named):
            return real(*arguments, **named)
        if after:
            real(*arguments, **named)
        died.append(True)
        raise death

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holder, name, function)
        yield died


def is_after(name: str) -> bool:
    """Whether the walk in turn dies after the point: after a commit, and before everything else."""
    return name.startswith("the commit")


def test_a_night_that_dies_at_every_point_in_turn_ends_with_the_same_tables(
    spark: SparkSession, fresh: Config, published: Config, tables_of: Any, readers_see_nothing_or_all: Any
) -> None:
    with contextlib.ExitStack() as patches:
        deaths = {name: patches.enter_context(dying_at(point, is_after(name), Killed())) for name, point in POINTS.items()}
        n_died = 0
        while n_died < len(POINTS):
            with pytest.raises(Killed):
                run_night(spark, fresh, DAY)
            died = sum(map(len, deaths.values()))
            assert n_died < died <= n_died + 3  # three where as many tables are written at the same time
            n_died = died
            readers_see_nothing_or_all(fresh)
        with contextlib.suppress(open_run.AlreadyDone):
            run_night(spark, fresh, DAY)
    assert tables_of(fresh) == tables_of(published)
    assert manifest_of(fresh) == manifest_of(published)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", POINTS)
def test_the_same_command_again_ends_with_the_same_tables(
    spark: SparkSession, fresh: Config, published: Config, tables_of: Any, readers_see_nothing_or_all: Any, name: str, after: bool
) -> None:
    with dying_at(POINTS[name], after, Killed()) as died, contextlib.suppress(Killed):
        run_night(spark, fresh, DAY)
    assert died, "nothing died: the point is not one that a night passes"
    readers_see_nothing_or_all(fresh)
    with contextlib.suppress(open_run.AlreadyDone):
        run_night(spark, fresh, DAY)
    assert tables_of(fresh) == tables_of(published)
    assert manifest_of(fresh) == manifest_of(published)


@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only file system")])
def test_a_disk_that_is_full_fails_the_night_and_nothing_else(spark: SparkSession, fresh_published: Config, problem: OSError) -> None:
    """At one write after the other: the run that was forced fails each time, and goes on."""
    before, force = published_run(fresh_published.paths.warehouse), True
    for name in ("the index's files", "the commit of topk", "the row after score"):
        with dying_at(POINTS[name], False, problem), pytest.raises(OSError, match=problem.strerror):
            run_night(spark, fresh_published, DAY, force=force)
        force = False
        assert published_run(fresh_published.paths.warehouse) == before
    run = run_night(spark, fresh_published, DAY)
    assert (run.run_id, run.status) == ("2026-03-01-r2", "PUBLISHED")


def test_of_two_nights_of_a_date_one_wins(
    spark: SparkSession, fresh: Config, published: Config, tables_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    real = steps.STEPS["index"]

    def waiting(night: RunContext) -> Any:
        inside.set()
        assert go_on.wait(300)
        return real(night)

    monkeypatch.setitem(steps.STEPS, "index", waiting)
    first = threading.Thread(target=run_night, args=(spark, fresh, DAY))
    first.start()
    try:
        assert inside.wait(300)
        with pytest.raises(Busy, match=r"the night of 2026-03-01 is being computed already by process \d+") as refused:
            run_night(spark, fresh, DAY)
        assert refused.value.exit_code == EXIT_MISSING
    finally:
        go_on.set()
        first.join()
    assert tables_of(fresh) == tables_of(published)
