"""Every user gets n unseen retrievable items in order, or all that are left; tested on plain batches, without a session."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys_batch.ann.index import build_index
from recsys_batch.config import Retrieval
from recsys_batch.dataset.catalogue import Catalogue, write_catalogue
from recsys_batch.dataset.seen_policy import make_seen_policy
from recsys_batch.schemas import IdTypes
from recsys_batch.spark.executors.retrieve import RetrieveTask, make_retriever
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.list_columns import matrix_column

N_ITEMS, DIM, N = 300, 8, 10
IDS = IdTypes("STRING", "STRING")


@pytest.fixture(scope="module", params=["exact", "ivf"])
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RetrieveTask:
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp(request.param)
    retrievable = np.arange(N_ITEMS) % 5 != 0
    catalogue = Catalogue(
        item_ids=pa.array([f"i{code:03d}" for code in range(N_ITEMS)]),
        embeddings=rng.normal(size=(N_ITEMS, DIM)).astype(np.float32),
        history=np.zeros((N_ITEMS, 0), np.float32),
        log_popularity=np.zeros(N_ITEMS, np.float32),
        retrievable=retrievable,
    )
    (folder / "catalogue").mkdir()
    write_catalogue(folder / "catalogue", catalogue)
    info = build_index(catalogue.embeddings[retrievable], Retrieval(mode=request.param), folder / "indexes", 1)
    everybody = np.array([1, 2, 3], dtype=np.int64), np.array([9, 5, 5], dtype=np.float32)
    return RetrieveTask(
        run_id="r1",
        ids=IDS,
        catalogue_dir=str(folder / "catalogue"),
        index_dir=str(folder / "indexes"),
        index=info.to_dict(),
        nprobe=info.nlist,
        overfetch=1.0,
        n_candidates=N,
        popular={"all": everybody, "young": (np.array([7, 8], dtype=np.int64), np.array([2, 1], dtype=np.float32))},
        seen=make_seen_policy("exclude", dt.date(2026, 3, 1)),
        cache=NodeCache(str(folder / "cache")),
    )


def batch(users: list[tuple[str, np.ndarray | None, list[str] | None, str | None]]) -> pa.RecordBatch:
    ids, vectors, seen, segments = zip(*users, strict=True)
    return pa.RecordBatch.from_arrays(
        [
            pa.array(ids, pa.string()),
            pa.array([None if v is None else v.tolist() for v in vectors], pa.list_(pa.float32())),
            pa.array(seen, pa.list_(pa.string())),
            pa.array(segments, pa.string()),
        ],
        names=["user_id", "embedding", "seen", "segment"],
    )


def find(task: RetrieveTask, *batches: pa.RecordBatch) -> dict[str, list[tuple[str, float]]]:
    found: Iterator[pa.RecordBatch] = make_retriever(task)(iter(batches))
    return {row["user_id"]: [(item["item_id"], item["score"]) for item in row["items"]] for part in found for row in part.to_pylist()}


def best_by_hand(query: np.ndarray, seen: set[str], folder: str) -> list[str]:
    embeddings = np.load(Path(folder) / "embeddings.npy")
    scores = (embeddings * query).sum(axis=1)
    allowed = [code for code in np.argsort(-scores, kind="stable") if code % 5 and f"i{code:03d}" not in seen]
    return [f"i{code:03d}" for code in allowed[:N]]


def test_lists_are_the_best_unseen_available_items(task: RetrieveTask) -> None:
    rng = np.random.default_rng(4)
    users = []
    for number in range(40):
        seen = [f"i{code:03d}" for code in rng.choice(N_ITEMS, size=rng.integers(0, 60), replace=False)] + ["unknown"]
        users.append((f"u{number}", rng.normal(size=DIM).astype(np.float32), seen, None))
    found = find(task, batch(users[:25]), batch(users[25:]))
    for user_id, query, seen, _ in users:
        assert [item for item, _ in found[user_id]] == best_by_hand(query, set(seen), task.catalogue_dir)
        scores = [score for _, score in found[user_id]]
        assert scores == sorted(scores, reverse=True)


def test_a_user_who_has_seen_nearly_everything_gets_what_is_left(task: RetrieveTask) -> None:
    left = {"i001", "i299"}
    seen = [f"i{code:03d}" for code in range(N_ITEMS) if f"i{code:03d}" not in left]
    query = np.ones(DIM, np.float32)
    found = find(task, batch([("short", query, seen, None), ("fresh", query, None, None), ("done", query, [*seen, *left], None)]))
    assert {item for item, _ in found["short"]} == left
    assert len(found["fresh"]) == N
    assert found["done"] == []


def test_without_an_embedding_the_segments_popular_list_comes_first(task: RetrieveTask) -> None:
    found = find(task, batch([("y", None, None, "young"), ("z", None, ["i002"], None), ("w", None, None, "nobody's")]))
    assert [item for item, _ in found["y"]][:5] == ["i007", "i008", "i001", "i002", "i003"]
    assert [item for item, _ in found["z"]][:3] == ["i001", "i003", "i004"]
    assert [item for item, _ in found["w"]][:3] == ["i001", "i002", "i003"]
    for items in found.values():
        assert len(items) == N
        assert items == sorted(items, key=lambda pair: (-pair[1], pair[0]))
        assert not {item for item, _ in items} & {"i000", "i005"}


def test_empty_batches_and_no_batches_give_nothing(task: RetrieveTask) -> None:
    assert find(task) == {}
    assert find(task, batch([("u", None, None, None)]).slice(0, 0)) == {}


def test_a_user_gets_the_same_list_in_any_company(task: RetrieveTask) -> None:
    rng = np.random.default_rng(5)
    users = [(f"u{number}", rng.normal(size=DIM).astype(np.float32), [f"i{number:03d}"] * (number % 3), None) for number in range(30)]
    together = find(task, batch(users))
    for user in users:
        assert find(task, batch([user]))[user[0]] == together[user[0]]


def test_matrix_column_is_what_the_step_reads(task: RetrieveTask) -> None:
    query = np.arange(DIM, dtype=np.float32)[None]
    rows = pa.RecordBatch.from_arrays(
        [pa.array(["u"]), matrix_column(query), pa.nulls(1, pa.list_(pa.string())), pa.nulls(1, pa.string())],
        names=["user_id", "embedding", "seen", "segment"],
    )
    assert [item for item, _ in find(task, rows)["u"]] == best_by_hand(query[0], set(), task.catalogue_dir)
