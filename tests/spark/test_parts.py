"""Candidates meet the embeddings of their users without a shuffle."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.slices import Part, Slice
from recsys_batch.spark.parts import candidates_with_embeddings, part_writer, unchanged

IDS = IdTypes("BIGINT", "BIGINT")


def written(folder: Path, name: str, rows: list[list[dict[str, object]]]) -> tuple[Slice, list[Part]]:
    """A slice of one file for each list of rows."""
    where = Slice(str(folder / name), TABLES[name], IDS, {"run_id": "r1"}, 10**9)
    parts = [part for task, some in enumerate(rows) for part in where.write([pa.RecordBatch.from_pylist(some, schema=where.schema)], task)]
    return where, parts


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_each_user_gets_its_own_embedding_or_none(tmp_path: Path, batch_rows: int) -> None:
    items = [{"item_id": 1, "score": 0.5}]
    candidates, (first, second) = written(
        tmp_path, "candidates", [[{"user_id": user, "items": items} for user in users] for users in ([1, 3, 4, 8], [9, 12])]
    )
    embeddings, known = written(
        tmp_path,
        "user_embeddings",
        [[{"user_id": user, "embedding": [float(user)], "n_events": user} for user in users] for users in ([1, 2, 3], [5, 8, 9], [10])],
    )
    found = [
        [row for part in candidates_with_embeddings(candidates, one, embeddings, known, batch_rows) for row in part.to_pylist()]
        for one in (first, second)
    ]
    assert [(row["user_id"], row["embedding"], row["n_events"]) for row in found[0]] == [
        (1, [1.0], 1),
        (3, [3.0], 3),
        (4, None, None),
        (8, [8.0], 8),
    ]
    assert [(row["user_id"], row["embedding"]) for row in found[1]] == [(9, [9.0]), (12, None)]
    assert all(row["items"] == items for rows in found for row in rows)


def test_only_files_that_may_hold_the_users_are_read(tmp_path: Path) -> None:
    candidates, (part,) = written(tmp_path, "candidates", [[{"user_id": 5, "items": []}]])
    embeddings, known = written(tmp_path, "user_embeddings", [[{"user_id": user, "embedding": [1.0], "n_events": 1}] for user in (4, 5, 6)])
    for other in (known[0], known[2]):
        (Path(embeddings.root) / other.path).unlink()
    (rows,) = candidates_with_embeddings(candidates, part, embeddings, known, 10)
    assert rows["embedding"].to_pylist() == [[1.0]]


def test_a_writer_tells_its_files_and_nothing_of_no_rows(tmp_path: Path) -> None:
    where = Slice(str(tmp_path), TABLES["candidates"], IDS, {"run_id": "r1"}, 10**9)
    rows = pa.RecordBatch.from_pylist([{"user_id": 7, "items": []}], schema=where.schema)
    (told,) = part_writer(unchanged, where)(iter([rows]))
    assert (told["n_rows"].to_pylist(), told["first"].to_pylist()) == ([1], ["7"])
    assert list(part_writer(unchanged, where)(iter([]))) == []
