"""The score step on plain batches: the ranker's order, ties by item_id, popular users as they came."""

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_batch.dataset.catalogue import Catalogue, write_catalogue
from recsys_batch.errors import BundleError, RecsysBatchError
from recsys_batch.model.onnx_export import export_ranker_onnx
from recsys_batch.model.ranker import Ranker, RankerParameters
from recsys_batch.ranking.features import FeatureSpec, compute_pair_features
from recsys_batch.registry.bundle import Bundle, load_bundle, write_bundle
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.executors import engines
from recsys_batch.spark.executors.engines import ScoringEngine
from recsys_batch.spark.executors.score import BatchRanker, ScoreTask, ScoringInput, make_scorer
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.slice_writer import TableSlice
from recsys_batch.tables.user_ranges import UserSortedFiles, ranges_of_files

N_ITEMS, DIM = 50, 6
IDS = IdTypes("BIGINT", "STRING")
NOW = dt.datetime(2026, 3, 1, 2, tzinfo=dt.UTC)


def arrays(scale: float = 1.0) -> dict[str, np.ndarray]:
    params = RankerParameters.initialize(DIM, len(FeatureSpec.default().names), seed=5)
    params.output += scale
    return params.to_arrays()


def embeddings() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(N_ITEMS, DIM)).astype(np.float32)


@pytest.fixture
def catalogue_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "catalogue"
    folder.mkdir()
    popularity = np.linspace(0, 3, N_ITEMS).astype(np.float32)
    ids = pa.array([f"i{code:02d}" for code in range(N_ITEMS)])
    write_catalogue(folder, Catalogue(ids, embeddings(), np.zeros((N_ITEMS, 0), np.float32), popularity, np.ones(N_ITEMS, bool)))
    return folder


def bundle(folder: Path, kind: str, ranker: bool = True, scale: float = 1.0) -> Bundle:
    manifest = {"kind": kind, "embedding_dim": DIM, "features": FeatureSpec.default().to_dict()}
    onnx = export_ranker_onnx(arrays(scale)) if ranker else None
    return write_bundle(folder, manifest, tensors=arrays(scale) if kind == "two_tower" else None, ranker_onnx=onnx)


def task(bundle_dir: Path, catalogue_dir: Path, k: int = 5, batch_users: int = 3, engine: ScoringEngine = "torch") -> ScoreTask:
    cache = NodeCache(str(catalogue_dir / "cache"))
    return ScoreTask("r1", NOW.date(), NOW, "7", IDS, str(bundle_dir), str(catalogue_dir), 12, k, batch_users, cache, engine)


def batch(users: list[tuple[int, list[tuple[int, float]], np.ndarray | None]]) -> pa.RecordBatch:
    """(user_id, [(item code, retrieval score)], embedding or None)."""
    items = [[{"item_id": f"i{code:02d}", "score": score} for code, score in pairs] for _, pairs, _ in users]
    vectors = [None if vector is None else vector.tolist() for _, _, vector in users]
    columns = [
        pa.array([user for user, _, _ in users], pa.int64()),
        pa.array(items, TABLES["candidates"].arrow_schema(IDS).field("items").type),
        pa.array(vectors, pa.list_(pa.float32())),
        pa.array([None if vector is None else 9 for _, _, vector in users], pa.int32()),
    ]
    return pa.RecordBatch.from_arrays(columns, names=["user_id", "items", "embedding", "n_events"])


def some_users(n: int) -> list[tuple[int, list[tuple[int, float]], np.ndarray | None]]:
    rng = np.random.default_rng(3)
    users: list[tuple[int, list[tuple[int, float]], np.ndarray | None]] = []
    for user in range(n):
        vector = rng.normal(size=DIM).astype(np.float32)
        codes = rng.choice(N_ITEMS, size=4 + user, replace=False)
        users.append((user, [(int(code), float(vector @ embeddings()[code])) for code in codes], vector))
    return users


def rows(scoring: ScoreTask, *batches: pa.RecordBatch) -> list[dict[str, object]]:
    return [row for part in make_scorer(scoring)(iter(batches)) for row in part.to_pylist()]


@pytest.mark.parametrize(("kind", "engine"), [("two_tower", "torch"), ("two_tower", "onnx"), ("embeddings", "onnx")])
def test_the_order_is_the_rankers_in_any_batch(tmp_path: Path, catalogue_dir: Path, kind: str, engine: ScoringEngine) -> None:
    """torch or ONNX Runtime for the reference model, ONNX Runtime for a brought ranker: the same weights, the same lists."""
    folder = bundle(tmp_path / kind, kind).path
    users = some_users(10)
    found = rows(task(folder, catalogue_dir, engine=engine), batch(users[:7]), batch(users[7:]))
    assert [row["user_id"] for row in found] == [user for user, _, _ in users for _ in range(min(5, 4 + user))]
    for user, pairs, vector in users:
        mine = [row for row in found if row["user_id"] == user]
        codes = np.array([code for code, _ in pairs])
        features = compute_pair_features(
            FeatureSpec.default(),
            retrieval_score=np.array([[score for _, score in pairs]], np.float32),
            log_popularity=np.linspace(0, 3, N_ITEMS).astype(np.float32)[codes][None],
            n_events=np.array([9]),
        )
        scores = Ranker(arrays()).score(np.asarray(vector)[None], embeddings()[codes][None], features)[0]
        best = sorted(zip(-scores, codes, strict=True))[:5]
        assert [row["item_id"] for row in mine] == [f"i{code:02d}" for _, code in best]
        np.testing.assert_allclose([row["score"] for row in mine], [-negative for negative, _ in best], atol=1e-4)
        assert [row["rank"] for row in mine] == list(range(1, len(mine) + 1))
        assert [codes[row["candidate_rank"] - 1] for row in mine] == [code for _, code in best]  # type: ignore[operator]
        assert {(row["source"], row["model_version"], row["run_id"], row["generated_at"]) for row in mine} == {("model", "7", "r1", NOW)}


def ranker_of(folder: Path, catalogue_dir: Path, engine: ScoringEngine) -> BatchRanker:
    ranker = task(folder, catalogue_dir, engine=engine).ranker()
    assert ranker is not None
    return ranker


def wide_pairs(rng: np.random.Generator, d: int, n_users: int) -> tuple[Catalogue, dict[str, np.ndarray]]:
    """A catalogue of 500 items, and users with 200 candidates each."""
    items, users = (rng.normal(size=(n, d)).astype(np.float32) for n in (500, n_users))
    ids = pa.array([f"i{code:03d}" for code in range(500)])
    codes = rng.integers(0, 500, (n_users, 200))
    retrieval = np.einsum("bd,bcd->bc", users, items[codes])
    market = Catalogue(ids, items, np.zeros((500, 0), np.float32), rng.random(500, dtype=np.float32) * 5, np.ones(500, bool))
    return market, {"users": users, "n_events": rng.integers(1, 200, n_users), "codes": codes, "retrieval": retrieval}


@pytest.mark.parametrize("d", [16, 65])
def test_the_engines_give_the_reference_ranker_the_same_scores_within_a_millionth(tmp_path: Path, catalogue_dir: Path, d: int) -> None:
    rng = np.random.default_rng(d)
    spec = FeatureSpec(mean=(1.0, 2.0, 3.0), scale=(8.0, 1.5, 1.0))
    params = RankerParameters.initialize(d, len(spec.names), seed=5)
    params.output += 0.05
    manifest = {"kind": "two_tower", "embedding_dim": d, "features": spec.to_dict()}
    folder = write_bundle(tmp_path / "b", manifest, tensors=params.to_arrays(), ranker_onnx=export_ranker_onnx(params.to_arrays())).path
    market, pairs = wide_pairs(rng, d, 40)
    engines: tuple[ScoringEngine, ...] = ("torch", "onnx")
    torch, onnx = (ranker_of(folder, catalogue_dir, engine).score(**pairs, catalogue=market) for engine in engines)
    assert torch.std() > 0.5
    np.testing.assert_allclose(onnx, torch, rtol=1e-6, atol=1e-6)


def test_a_users_scores_by_onnx_runtime_rest_on_nobody_else(tmp_path: Path, catalogue_dir: Path) -> None:
    folder = bundle(tmp_path / "b", "two_tower").path
    ranker = ranker_of(folder, catalogue_dir, "onnx")
    market, pairs = wide_pairs(np.random.default_rng(1), DIM, 17)
    together = ranker.score(**pairs, catalogue=market)
    for part in (slice(0, 1), slice(16, 17), slice(3, 5), slice(2, 12)):
        np.testing.assert_array_equal(
            ranker.score(**{name: values[part] for name, values in pairs.items()}, catalogue=market), together[part]
        )


def test_a_node_without_torch_says_so_and_scores_nothing_by_another_engine(
    tmp_path: Path, catalogue_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundle(tmp_path / "b", "two_tower").path
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(RecsysBatchError, match=r"has no torch, by which this run is scored: .*set scoring\.engine = onnx"):
        rows(task(folder, catalogue_dir), batch(some_users(2)))
    assert len(rows(task(folder, catalogue_dir, engine="onnx"), batch(some_users(2)))) == 9


def test_a_reference_model_without_onnx_is_not_taken_for_one_without_a_ranker(tmp_path: Path, catalogue_dir: Path) -> None:
    folder = bundle(tmp_path / "b", "two_tower", ranker=False).path
    with pytest.raises(BundleError, match=r"has no ranker\.onnx"):
        rows(task(folder, catalogue_dir, engine="onnx"), batch(some_users(2)))


def test_without_a_ranker_the_retrieval_order_stands_and_ties_go_to_the_smaller_id(tmp_path: Path, catalogue_dir: Path) -> None:
    folder = bundle(tmp_path / "b", "embeddings", ranker=False).path
    pairs = [(9, 2.0), (30, 1.0), (4, 1.0), (12, 1.0), (1, 0.5)]
    found = rows(task(folder, catalogue_dir, k=4), batch([(1, pairs, np.ones(DIM, np.float32))]))
    assert [row["item_id"] for row in found] == ["i09", "i04", "i12", "i30"]


def test_a_user_without_an_embedding_keeps_the_popular_order(tmp_path: Path, catalogue_dir: Path) -> None:
    folder = bundle(tmp_path / "b", "two_tower").path
    found = rows(task(folder, catalogue_dir), batch([(1, [(7, 30.0), (3, 10.0), (2, 0.5)], None), *some_users(2)]))
    popular = [(row["item_id"], row["score"], row["source"]) for row in found if row["user_id"] == 1][:3]
    assert popular == [("i07", 30.0, "popular"), ("i03", 10.0, "popular"), ("i02", 0.5, "popular")]


def test_a_user_without_candidates_has_no_rows(tmp_path: Path, catalogue_dir: Path) -> None:
    folder = bundle(tmp_path / "b", "two_tower").path
    found = rows(task(folder, catalogue_dir), batch([(1, [], np.ones(DIM, np.float32)), (2, [], None)]))
    assert found == []
    assert rows(task(folder, catalogue_dir)) == []


def test_a_score_that_is_not_finite_names_the_user(tmp_path: Path, catalogue_dir: Path) -> None:
    folder = bundle(tmp_path / "b", "two_tower", scale=float("nan")).path
    with pytest.raises(RecsysBatchError, match="gave user 0 a score that is not finite"):
        rows(task(folder, catalogue_dir), batch(some_users(2)))
    assert load_bundle(folder).kind == "two_tower"


def of(folder: Path, name: str, groups: list[list[dict[str, object]]]) -> UserSortedFiles:
    """A slice of one file for each list of rows."""
    where = TableSlice(str(folder / name), TABLES[name], IdTypes("BIGINT", "BIGINT"), {"run_id": "r1"}, 10**9)
    parts = [
        part for task, rows in enumerate(groups) for part in where.write([pa.RecordBatch.from_pylist(rows, schema=where.schema)], task)
    ]
    return UserSortedFiles(where, parts)


def test_lists_meet_the_embeddings_of_their_users(tmp_path: Path) -> None:
    def candidates(*users: int) -> list[dict[str, object]]:
        return [{"user_id": user, "items": [{"item_id": user % 3, "score": 0.5}]} for user in users]

    def embeddings(*users: int) -> list[dict[str, object]]:
        return [{"user_id": user, "embedding": [float(user)], "n_events": user} for user in users]

    lists = ScoringInput(
        of(tmp_path, "candidates", [candidates(1, 3, 4, 8), candidates(9, 12)]),
        of(tmp_path, "user_embeddings", [embeddings(1, 2, 3), embeddings(5, 8, 9), embeddings(10)]),
    )

    def met(chosen: ScoringInput) -> list[tuple[object, ...]]:
        rows = [row for bounds in ranges_of_files(lists.candidates.parts) for batch in chosen.batches(bounds) for row in batch.to_pylist()]
        return [(row["user_id"], row["embedding"], row["n_events"], row["items"][0]["item_id"]) for row in rows]

    everybody = [(1, [1.0], 1, 1), (3, [3.0], 3, 0), (4, None, None, 1), (8, [8.0], 8, 2), (9, [9.0], 9, 0), (12, None, None, 0)]
    assert met(lists) == everybody
    pq.write_table(pa.table({"user_id": [4]}), tmp_path / "changed.parquet")
    again = replace(lists, changed=str(tmp_path / "changed.parquet"), new_items=pa.array([2]))
    assert met(again) == [everybody[2], everybody[3]]
