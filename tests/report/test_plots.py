"""What the plots draw, from a run's numbers alone."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from recsys_batch.report import plots
from recsys_batch.report.facts import RunFacts
from recsys_batch.tables.run_manifest import Run

# Measured milliseconds do not always grow with the lists that are searched, and metrics come back in any order.
TUNING = {1: (0.9, 0.41), 16: (3.2, 0.97), 2: (0.8, 0.62), 4: (1.1, 0.81), 64: (8.0, 1.0), 8: (1.9, 0.90), 32: (3.0, 0.995)}


def facts_of(metrics: dict[str, float]) -> RunFacts:
    run = Run("2026-03-01-r1", dt.date(2026, 3, 1), 1, "PUBLISHED", None, {}, {}, "1", "0", "0", metrics=metrics)
    counts = np.zeros(1, np.int64)
    sample = pa.table({"rank": [1, 2], "score": [0.9, 0.5], "candidate_rank": pa.array([None, None], pa.int32())})
    return RunFacts(run, counts == 0, counts, None, sample, 1, None, (), ())


def tuning_of(facts: RunFacts) -> plots.Plot:
    return next(plot for plot in plots.draw_plots(facts) if plot.title == "Recall, and what it costs")


@pytest.fixture
def tuned() -> RunFacts:
    metrics = {"nprobe": 16.0, "nlist": 64.0, "overfetch": 1.0, "knn_recall": 0.97, "limit.knn_recall": 0.95}
    for nprobe, (cost_ms, recall) in TUNING.items():
        for overfetch in (1.0, 2.0):
            point = f"nprobe_{nprobe}.overfetch_{overfetch}"
            metrics[f"tuning.recall.{point}"] = recall if overfetch == 1.0 else min(recall + 0.004, 1.0)
            metrics[f"tuning.seconds_per_1000_users.{point}"] = cost_ms * overfetch**0.3 / 1000
    return facts_of(metrics)


def test_recall_is_drawn_in_order_of_cost(tuned: RunFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "to_svg", lambda figure, name: figures.append(figure) or "")
    plots.draw_plots(tuned)
    lines = [line for line in figures[0].axes[0].lines if len(line.get_xdata()) == len(TUNING)]
    assert len(lines) == 2
    for line in lines:
        costs = np.asarray(line.get_xdata())
        assert (np.diff(costs) > 0).all(), costs
    np.testing.assert_allclose(np.asarray(lines[0].get_ydata()), [0.62, 0.41, 0.81, 0.90, 0.995, 0.97, 1.0])


def test_points_at_the_ends_say_how_many_lists_they_searched(tuned: RunFacts) -> None:
    plot = tuning_of(tuned)
    assert ">2<" in plot.svg and ">64<" in plot.svg
    assert "chosen: 16 lists, recall 0.970" in plot.svg
