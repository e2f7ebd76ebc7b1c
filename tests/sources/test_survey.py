"""What a source holds as a whole: id types, clocks, columns that some files lack, types that cannot be one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_batch.errors import SourceError
from recsys_batch.sources.file_tasks import FileTask, SourceFile, pack_tasks, split_tasks
from recsys_batch.sources.reading import survey_task
from recsys_batch.sources.source_format import SourceFormat
from recsys_batch.sources.survey import Survey, count_missing, merge_surveys, resolve_types

PARQUET = SourceFormat(kind="parquet")
NAMES = {0: "1.parquet", 1: "2.parquet"}


def survey_of(tmp_path: Path, *tables: pa.Table) -> Survey:
    parts = []
    for number, table in enumerate(tables):
        path = tmp_path / NAMES[number]
        pq.write_table(table, path)
        part = survey_task(FileTask(number, SourceFile(str(path), 1), ""), "interactions", PARQUET)
        parts.append(Survey.from_json(part.to_json()))
    return merge_surveys(parts)


def test_days_that_lack_a_column_are_known(tmp_path: Path) -> None:
    found = survey_of(tmp_path, pa.table({"user_id": [1], "item_id": [2], "weight": [1.0]}), pa.table({"item_id": [1], "user_id": ["x"]}))
    assert count_missing(found, "interactions", PARQUET, NAMES) == {"weight": ["2.parquet"]}
    assert (found.n_rows, found.id_type("user_id"), found.id_type("item_id")) == (2, "STRING", "BIGINT")
    resolve_types(found, NAMES)


@pytest.mark.parametrize(
    ("first", "second", "widens"),
    [
        (pa.array([1], pa.int32()), pa.array([1.5]), True),
        (pa.nulls(1), pa.array(["1"]), True),
        (pa.array([1]), pa.array(["1"]), True),
        (pa.array([1]), pa.array([[1]]), False),
        (pa.array([1]), pa.array([{"x": 1}]), False),
    ],
)
def test_types_that_widen_are_one_column_and_others_are_refused(tmp_path: Path, first: pa.Array, second: pa.Array, widens: bool) -> None:
    ids = {"user_id": [1], "item_id": [2]}
    found = survey_of(tmp_path, pa.table({**ids, "weight": first}), pa.table({**ids, "weight": second}))
    if widens:
        resolve_types(found, NAMES)
    else:
        with pytest.raises(SourceError, match=r"column for weight is (list|struct)<.*> in 2.parquet and int64 in 1.parquet"):
            resolve_types(found, NAMES)


def test_a_time_column_is_of_timestamps_or_of_numbers(tmp_path: Path) -> None:
    ids = {"user_id": [1], "item_id": [2]}
    times = pa.array([0], pa.timestamp("us"))
    found = survey_of(tmp_path, pa.table({**ids, "event_ts": times}), pa.table({**ids, "event_ts": times.cast(pa.date32(), safe=False)}))
    resolve_types(found, NAMES)
    found = survey_of(tmp_path, pa.table({**ids, "event_ts": times}), pa.table({**ids, "event_ts": [5]}))
    with pytest.raises(SourceError, match=r"int64 in 2\.parquet and timestamp"):
        resolve_types(found, NAMES)


def test_ids_that_are_bytes_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"1.parquet: column user_id holds bytes .*--binary-ids hex"):
        survey_of(tmp_path, pa.table({"user_id": [b"\xff"], "item_id": [1]}))


def test_event_types_are_counted_where_they_carry_weights(task: Callable[..., FileTask]) -> None:
    how = SourceFormat(weights={"view": 1.0})
    found = survey_task(task("user_id,item_id,event_type\n1,2,view\n1,2,gift\n1,3,gift\n"), "interactions", how)
    assert found.event_types == {"view": 1, "gift": 2}


def test_large_text_files_are_cut_and_small_ones_packed() -> None:
    large = split_tasks(0, SourceFile("a.csv", 200 * 2**20), "a.csv", splittable=True)
    assert [task.start // 2**20 for task in large] == list(range(0, 200, 32))
    assert [task.end for task in large] == [*(task.start for task in large[1:]), None]
    assert len(split_tasks(0, SourceFile("a.csv.gz", 200 * 2**20), "a.csv.gz", splittable=True)) == 1
    small = [FileTask(i, SourceFile(f"{i}.csv", 60_000), "days") for i in range(305)]
    groups = pack_tasks(small, 2)
    assert 4 <= len(groups) <= 10
    assert [task for group in groups for task in group] == small
