"""make compat: what its verdict is of, and that the pairs it tries are those that setup.cfg speaks of."""

from pathlib import Path

import pyarrow as pa
import pytest
from compat import PAIRS, PairResult, StepFailed, is_in_range, judge, read_outputs, run_command
from deltalake import write_deltalake

from recsys_batch.spark.versions import OLDEST_DELTA


def result(wanted: str, outcome: str, *, in_range: bool = True, digest: str = "a") -> PairResult:
    return PairResult(wanted, "4.1.1", "4.3.1", in_range, outcome, rows=1, digest=digest)


@pytest.mark.parametrize(
    ("results", "complaint"),
    [
        ([result("one", "works"), result("two", "refused")], ""),
        ([result("one", "works"), result("two", "fails", in_range=False), result("three", "no jars", in_range=False)], ""),
        ([result("one", "works"), result("two", "fails")], "setup.cfg allows what does not work: two"),
        ([result("one", "works"), result("two", "no jars")], "setup.cfg allows what does not work: two"),
        ([result("one", "works"), result("two", "works", in_range=False)], "setup.cfg leaves out what works: two"),
        ([result("one", "works"), result("two", "works", digest="b")], "the rows are not the same for every pair"),
        ([result("one", "refused")], "no pair works"),
        ([], "no pair works"),
    ],
)
def test_ranges_are_held_to_what_the_pairs_did(results: list[PairResult], complaint: str) -> None:
    assert judge(results) == complaint


@pytest.mark.parametrize(
    ("pyspark", "delta", "expected"),
    [
        ("4.0.5", "4.0.1", True),
        ("4.0.4", "4.0.1", False),
        ("4.2.0", "4.4.0", True),
        ("4.2.1", "4.4.0", False),
        ("4.2.0", "4.4.1", False),
        ("3.5.9", "4.0.0", False),
    ],
)
def test_setup_cfg_is_asked_by_pip_whether_it_allows_a_pair(pyspark: str, delta: str, expected: bool) -> None:
    assert is_in_range(pyspark, delta) is expected


def test_each_minor_release_of_spark_is_tried_with_the_oldest_delta_that_has_jars_for_it() -> None:
    tried = {(pyspark[:3], delta[:3]) for pyspark, delta in PAIRS}
    assert {(spark, f"{major}.{minor}") for spark, (major, minor) in OLDEST_DELTA.items()} <= tried


def write_topk(warehouse: Path, table: str, scores: list[float]) -> None:
    n = len(scores)
    columns = {"run_id": ["r1"] * n, "user_id": range(1, n + 1), "rank": [1] * n, "item_id": [7] * n}
    rows = pa.table({**{name: pa.array(values) for name, values in columns.items()}, "score": pa.array(scores, pa.float32())})
    write_deltalake(str(warehouse / table), rows, partition_by=["run_id"])


def test_the_rows_are_those_that_three_readers_agree_on(tmp_path: Path) -> None:
    write_topk(tmp_path, "topk", [0.1, 0.2])
    write_topk(tmp_path, "topk_live", [0.3])
    rows = read_outputs(tmp_path)
    assert [row.partition(" ")[0] for row in rows] == ["topk", "topk", "topk_live"]
    assert "('r1', 1, 1, 7, 0.10000000149011612)" in rows[0]


def test_a_stream_that_refreshed_nobody_is_no_pass(tmp_path: Path) -> None:
    write_topk(tmp_path, "topk", [0.1])
    write_topk(tmp_path, "topk_live", [])
    with pytest.raises(StepFailed, match="topk_live: there are no rows"):
        read_outputs(tmp_path)


def test_a_command_that_fails_is_told_by_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="exit code 3: the last word"):
        run_command(["sh", "-c", "echo first; echo the last word; exit 3"], tmp_path, tmp_path / "log")
