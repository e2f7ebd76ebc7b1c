"""The models follow the snapshot in use."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_batch.online.oip import snapshot_models
from recsys_batch.online.oip.dynamic_batcher import DynamicBatcher
from recsys_batch.online.oip.model_api import InvalidRequest, validate_inputs
from recsys_batch.online.oip.snapshot_models import RankerModel, RecommendModel, SnapshotModels
from recsys_batch.online.serving.freshness import FreshnessPolicy
from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.ranking.features import FeatureSpec


def test_a_snapshot_that_comes_back_is_answered_from_as_opened_anew(make: Any, current: Any, tmp_path: Path) -> None:
    """Nobody asks while the second one is in use: that is when a roll-back goes unnoticed."""
    make("first", seed=1)
    folder = make("second", seed=2)

    async def there_and_back() -> None:
        live = SnapshotManager(folder, lambda _: None, tmp_path / "turns")  # type: ignore[arg-type, return-value]
        models = SnapshotModels(live, 50, FreshnessPolicy(36, None))
        answers = []
        for name, asked in (("first", True), ("second", False), ("first", True)):
            current(folder, name)
            await live.poll()
            if asked:
                answers.append(models.get("recommend", None).infer({"user_id": np.array([5])})["item_id"])
        np.testing.assert_array_equal(*answers)

    asyncio.run(there_and_back())


def test_a_request_for_many_users_ends_on_the_snapshot_that_it_began_on(
    make: Any, current: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("first")
    current(folder, "first")

    async def retired_meanwhile() -> None:
        live = SnapshotManager(folder, lambda _: None, tmp_path / "turns")  # type: ignore[arg-type, return-value]
        await live.poll()
        assert live.current is not None and live.current.snapshot.store is not None
        model, closed = SnapshotModels(live, 50, FreshnessPolicy(36, None)).get("recommend", None), []
        monkeypatch.setattr(live.current.snapshot.store, "close", lambda: closed.append(True))
        request = asyncio.create_task(DynamicBatcher().infer(model, {"user_id": np.arange(200)}))
        await asyncio.sleep(0)
        live.current.release()
        assert not request.done() and not closed
        assert (await request)["item_id"].shape == (200, 10)
        assert closed

    asyncio.run(retired_meanwhile())


def test_users_asked_for_together_get_what_each_gets_alone(snapshot: Snapshot) -> None:
    model, users = RecommendModel(snapshot, 50), np.array([7, 10**12, *range(40)])
    together = asyncio.run(DynamicBatcher().infer(model, {"user_id": users, "k": np.array([4], np.int32)}))
    for row, user in enumerate(users):
        alone = model.infer({"user_id": np.array([user]), "k": np.array([4], np.int32)})
        np.testing.assert_array_equal(together["item_id"][row], alone["item_id"][0])
        np.testing.assert_allclose(together["score"][row], alone["score"][0], atol=1e-6)
    with pytest.raises(InvalidRequest, match="at most 1000"):
        validate_inputs(model, {"user_id": ("INT64", [1001])})


def test_requests_for_lists_of_any_length_run_together_and_get_what_each_gets_alone(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_ranked: list[int] = []
    rank_many = snapshot_models.rank_many

    def counting(snapshot: Snapshot, queries: Any, latency: Any) -> Any:
        n_ranked.append(len(queries))
        return rank_many(snapshot, queries, latency)

    monkeypatch.setattr(snapshot_models, "rank_many", counting)
    model = RecommendModel(snapshot, 50)
    requests: list[dict[str, Any]] = [{"user_id": np.array([user, 10**12])} for user in range(3)]
    requests += [{"user_id": np.array([user]), "k": np.array([user], np.int32)} for user in range(3, 7)]
    bad = {"user_id": np.array([5]), "k": np.array([51], np.int32)}

    async def all_at_once() -> list[Any]:
        batching = DynamicBatcher(max_rows=16)
        return await asyncio.gather(*(batching.infer(model, one) for one in (*requests, bad)), return_exceptions=True)

    *found, refused = asyncio.run(all_at_once())
    assert isinstance(refused, InvalidRequest) and n_ranked == [10]
    for one, answer in zip(requests, found, strict=True):
        alone = model.infer(one)
        np.testing.assert_array_equal(answer["item_id"], alone["item_id"])
        np.testing.assert_allclose(answer["score"], alone["score"], atol=1e-6)


def test_rows_that_the_ranker_scored_together_have_the_scores_that_each_has_alone(snapshot: Snapshot) -> None:
    """Within rounding: how a product is summed up is the library's choice, and may change with the number of rows."""
    rng = np.random.default_rng(3)
    widths = {"user_embedding": 16, "item_embedding": 16, "features": len(FeatureSpec.default().names)}

    def request(B: int, C: int) -> dict[str, np.ndarray]:
        shapes = {name: (B, width) if name == "user_embedding" else (B, C, width) for name, width in widths.items()}
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    runs: list[int] = []

    class Counting(RankerModel):
        def infer(self, inputs: Any) -> Any:
            runs.append(len(inputs["features"]))
            return super().infer(inputs)

    model = Counting(snapshot)
    requests = [request(1 + n % 3, 60) for n in range(12)] + [request(70, 400)]

    async def all_at_once() -> list[Any]:
        batching = DynamicBatcher(max_rows=8)
        return await asyncio.gather(*(batching.infer(model, one) for one in requests))

    found = asyncio.run(all_at_once())
    assert max(n for n in runs if n <= 8) > 3 and runs.count(32) == 2, runs
    for one, answer in zip(requests, found, strict=True):
        np.testing.assert_allclose(answer["score"], RankerModel(snapshot).infer(one)["score"], atol=1e-5)


def test_models_are_ready_once_a_snapshot_is_in_use_that_is_not_too_old(make: Any, current: Any, tmp_path: Path) -> None:
    folder = make("first")

    async def ready(hard: float | None) -> bool:
        live = SnapshotManager(folder, lambda _: None, tmp_path / "turns")  # type: ignore[arg-type, return-value]
        await live.poll()
        return SnapshotModels(live, 50, FreshnessPolicy(0, hard)).ready()

    assert not asyncio.run(ready(None))
    current(folder, "first")
    assert asyncio.run(ready(None)) and asyncio.run(ready(1.0)) and not asyncio.run(ready(1e-9))
