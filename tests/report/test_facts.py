"""What a report measures, on tables that are small enough to count by hand."""

import datetime as dt
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.read import published_run, read_table, run_slice
from recsys_batch.report.facts import collect_facts
from recsys_batch.report.plots import gini_coefficient, items_with_half_of_lists
from recsys_batch.report.segments import measure_segments
from recsys_batch.tables.run_manifest import Run

RUN = Run("a", dt.date(2026, 3, 1), 1, "PUBLISHED", None, {}, {}, "1", "0", "h")


@pytest.mark.parametrize(("counts", "expected"), [([5, 5, 5, 5], 0.0), ([0, 0, 0, 8], 0.75), ([1, 3], 0.25)])
def test_gini(counts: list[int], expected: float) -> None:
    assert gini_coefficient(np.array(counts)) == pytest.approx(expected)


@pytest.mark.parametrize(("counts", "expected"), [([1, 1, 1, 1], 2), ([10, 1, 1], 1), ([4, 3, 2, 1], 2)])
def test_the_fewest_items_with_half_of_everything(counts: list[int], expected: int) -> None:
    assert items_with_half_of_lists(np.array(counts)) == expected


def test_segments_without_users_or_holdout_have_everybody_and_no_quality(tmp_path: Any) -> None:
    sample = pa.table(
        {
            "user_id": pa.array([1, 1, 2, 2], pa.int64()),
            "rank": pa.array([1, 2, 1, 2], pa.int32()),
            "item_id": ["a", "b", "a", "c"],
            "source": ["model", "model", "popular", "popular"],
        }
    )
    (found,) = measure_segments(str(tmp_path), RUN, sample, pa.array(["a", "b", "c"]), np.array([9, 1, 1]), 0.0)
    assert (found.name, found.n_users, found.n_items, found.popular_share) == ("all", 2, 3, 0.5)
    assert (found.ndcg, found.n_judged) == (None, 0)
    assert found.head_share == 0.5  # "a" is the one item of the head, and has two of four places


def test_every_row_of_the_run_is_counted(published: Config) -> None:
    row = published_run(published.paths.warehouse)
    facts = collect_facts(published.paths.warehouse, row, 0.0)
    topk = run_slice(published.paths.warehouse, "topk", row, columns=["user_id", "item_id"])
    items = read_table(published.paths.warehouse, "items", columns=["item_id"])["item_id"].to_pylist()
    expected = {item: topk["item_id"].to_pylist().count(item) for item in items}
    assert dict(zip(items, facts.listed.tolist(), strict=True)) == expected
    assert facts.churn is None
    assert {card.user_id for card in facts.cards} <= set(topk["user_id"].to_pylist())


def test_a_run_without_lists_is_told(published: Config) -> None:
    row = replace(published_run(published.paths.warehouse), run_id="2026-03-01-r9", status="FAILED")
    with pytest.raises(InputMissing, match=r"run 2026-03-01-r9 \(FAILED\) has no rows in topk"):
        collect_facts(published.paths.warehouse, row, 0.0)
