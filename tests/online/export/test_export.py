"""A published run as a snapshot: the same lists, the same order, no JVM."""

import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from recsys_batch.ann.index import build_index
from recsys_batch.cli import run
from recsys_batch.config import Config, Retrieval
from recsys_batch.dataset.seen_policy import make_seen_policy
from recsys_batch.errors import IndexDamaged
from recsys_batch.online.export import published_run as published_run_module
from recsys_batch.online.export.published_run import open_published_run
from recsys_batch.online.export.snapshot_export import export_snapshot
from recsys_batch.online.ranking.ladder import rank
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.snapshot.layout import FINGERPRINTS_FILE
from recsys_batch.online.snapshot.reader import Snapshot, open_snapshot
from recsys_batch.online.snapshot.redis_store import completion_key, redis_key
from recsys_batch.online.snapshot.user_fingerprints import open_fingerprints
from recsys_batch.online.snapshot.user_record import decode_record
from recsys_batch.online.snapshot.vector_search import IvfLists
from recsys_batch.online.snapshot.writer import write_snapshot
from recsys_batch.read import latest_topk, published_run, read_table
from recsys_batch.storage.artifacts import artifact_root, catalogue_folder, set_pointer
from recsys_batch.storage.node_cache import NodeCache


@pytest.fixture(scope="module")
def exported(published: Config, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("snapshots")
    opened = open_published_run(published.paths.warehouse, NodeCache.from_paths(published.paths))
    return open_snapshot(folder / export_snapshot(opened, folder, n_samples=40).snapshot_id)


def test_the_online_order_is_the_batch_order_under_the_neutral_context(published: Config, exported: Snapshot) -> None:
    """All users of the run; where two scores differ by rounding alone, their order may."""
    topk = latest_topk(published.paths.warehouse).to_pandas()
    modelled = 0
    for user, rows in topk.groupby("user_id"):
        assert exported.store is not None
        record = exported.store.get(exported.key(user))  # type: ignore[arg-type]
        assert record is not None
        ranked = rank(exported, RankQuery(user, len(rows)), decode_record(record), LatencyTracker())
        items = [exported.items.item_id(int(code)) for code in ranked.codes]
        expected, scores = rows["item_id"].tolist(), rows["score"].to_numpy()
        np.testing.assert_allclose(ranked.scores, scores, atol=2e-4)
        for place, (item, wanted) in enumerate(zip(items, expected, strict=True)):
            assert item == wanted or abs(scores[place] - scores[expected.index(item)]) < 2e-4
        assert ranked.source == ("ranker" if rows["source"].iloc[0] == "model" else "popular")
        modelled += ranked.source == "ranker"
    assert modelled > 100 and exported.manifest.n_users == topk["user_id"].nunique()


def test_samples_are_users_of_the_run_with_their_newest_items(published: Config, exported: Snapshot) -> None:
    row = published_run(published.paths.warehouse)
    events = read_table(published.paths.warehouse, "interactions", version=row.input_versions["interactions"]).to_pandas()
    assert 20 <= len(exported.samples) <= 40
    for user, codes in exported.samples.items():
        assert exported.store is not None and exported.store.get(exported.key(user)) is not None  # type: ignore[arg-type]
        newest = events[events.user_id == user].groupby("item_id").event_ts.max().reset_index()
        newest = newest.sort_values(["event_ts", "item_id"], ascending=[False, True]).head(20)
        assert exported.items.item_ids(np.array(codes, dtype=np.int64)) == newest.item_id.tolist()


def test_lists_titles_and_popular_items_are_the_runs_own(published: Config, exported: Snapshot) -> None:
    warehouse, row = published.paths.warehouse, published_run(published.paths.warehouse)
    assert exported.model_version == row.model_version
    candidates = read_table(warehouse, "candidates").to_pylist()
    for one in candidates[::9]:
        lists = decode_record(exported.store.get(exported.key(one["user_id"])))  # type: ignore[union-attr, arg-type]
        found = [exported.items.item_id(int(code)) for code in lists.codes]
        assert found == [item["item_id"] for item in one["items"]]
        assert lists.retrieval.tolist() == [np.float32(item["score"]) for item in one["items"]]
    titles = {item["item_id"]: item["title"] for item in read_table(warehouse, "items").to_pylist()}
    assert exported.items.titles(range(len(titles))) == [titles[exported.items.item_id(code)] for code in range(len(titles))]
    popular = read_table(warehouse, "popular").to_pylist()
    for segment in {one["segment"] for one in popular}:
        codes, _ = exported.popular.for_segment(segment)
        listed = sorted((one["rank"], one["item_id"]) for one in popular if one["segment"] == segment)
        assert [exported.items.item_id(int(code)) for code in codes] == [item for _, item in listed]


def test_items_of_an_exact_night_are_all_searched(exported: Snapshot) -> None:
    assert exported.item_lists is None


@pytest.mark.parametrize("settings", [{"mode": "ivf"}, {"mode": "ivf", "storage": "int8"}, {"mode": "sharded"}])
def test_a_snapshot_has_the_lists_of_the_nights_index(
    fresh_published: Config, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse, cache = fresh_published.paths.warehouse, NodeCache.from_paths(fresh_published.paths)
    root, run_id = artifact_root(warehouse), published_run(warehouse).run_id
    location = Path(catalogue_folder(root, run_id))
    retrievable = np.load(location / "retrievable.npy")
    retrievable[::7] = False
    np.save(location / "retrievable.npy", retrievable)
    codes, vectors = np.flatnonzero(retrievable), np.load(location / "embeddings.npy")
    index = build_index(vectors[codes], Retrieval(nlist=6, **settings), Path(root) / "indexes", n_threads=1)
    set_pointer(root, run_id, "index", {"index": index.to_dict()})

    def export(name: str) -> IvfLists | None:
        contents = open_published_run(warehouse, cache).contents(with_records=True)
        write_snapshot(tmp_path / name, contents)
        return open_snapshot(tmp_path / name / run_id).item_lists

    assert export("few items") is None
    monkeypatch.setattr(published_run_module, "EXACT_ITEMS", len(codes) - 1)
    lists = export("many items")
    assert lists is not None and sorted(lists.codes.tolist()) == codes.tolist() and len(lists.centroids) == 6
    distances = np.linalg.norm(vectors[lists.codes][:, None] - lists.centroids, axis=2)
    np.testing.assert_array_equal(distances.argmin(axis=1), np.repeat(np.arange(6), np.diff(lists.offsets)))
    assert index.lists is not None
    (Path(root) / "indexes" / index.lists.name).write_bytes(b"cut")
    with pytest.raises(IndexDamaged, match=index.lists.name):
        export("damaged")


def test_a_snapshot_says_who_may_have_things_again(published: Config, options: Any, tmp_path: Path) -> None:
    setting = 'retrieval.seen={all = "exclude", even = "allow", odd = {after_days = 7}}'
    command = ["export-snapshot", *options(published), "--set", setting, "--out", str(tmp_path / "snapshots")]
    assert run(command) == 0
    (folder,) = (path for path in (tmp_path / "snapshots").iterdir() if path.is_dir())
    policy = open_snapshot(folder).seen_policy
    assert [policy.allows_all(segment) for segment in ("even", "odd", None)] == [True, False, False]
    assert policy == make_seen_policy({"all": "exclude", "even": "allow", "odd": {"after_days": 7}}, dt.date(2026, 3, 1))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["seen"]  # as earlier releases wrote it
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert open_snapshot(folder).seen_policy.excludes_all


def test_the_command_writes_it_once_and_makes_it_current(
    published: Config, options: Callable[[Config], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export-snapshot", *options(published), "--out", str(tmp_path / "snapshots")]
    assert run(command) == 0
    told = capsys.readouterr().out
    assert "users" in told and "MiB" in told
    name = (tmp_path / "snapshots" / "CURRENT").read_text().strip()
    assert name == published_run(published.paths.warehouse).run_id
    assert run(command) == 0 and "already" in capsys.readouterr().out
    assert run([*command, "--run-id", "nothing"]) == 4


def test_exporting_and_serving_load_no_jvm_torch_or_mlflow(
    published: Config, options: Callable[[Config], list[str]], tmp_path: Path
) -> None:
    code = """
import sys
from recsys_batch.cli import run
assert run(sys.argv[1:]) == 0
import recsys_batch.online.server.supervisor
import os
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[-1]
import recsys_batch.online.server.worker
print([name for name in ("pyspark", "py4j", "torch", "mlflow", "faiss", "pandas") if name in sys.modules and name != "pandas"])
"""
    command = [sys.executable, "-c", code, "export-snapshot", *options(published), "--out", str(tmp_path / "snapshots")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_the_executors_fill_redis_with_the_same_records(
    published: Config,
    exported: Snapshot,
    options: Callable[[Config], list[str]],
    server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RECSYS_BATCH_REDIS_URL", server.url)
    command = ["export-snapshot", *options(published), "--set", "online.store=redis", "--out", str(tmp_path / "snapshots")]
    assert run(command) == 0
    client, name = redis.Redis.from_url(server.url), exported.snapshot_id
    assert int(client.get(completion_key(name))) == exported.manifest.n_users == client.dbsize() - 1  # type: ignore[arg-type]
    for user in latest_topk(published.paths.warehouse, columns=["user_id"])["user_id"].unique().to_pylist()[::5]:
        key = exported.key(user)
        assert key is not None and client.get(redis_key(name, key)) == exported.store.get(key)  # type: ignore[union-attr]
    manifest = json.loads((tmp_path / "snapshots" / name / "manifest.json").read_text())
    assert manifest["store"] == "redis" and "users.lmdb" not in manifest["files"]
    fingerprints = open_fingerprints(tmp_path / "snapshots" / name / FINGERPRINTS_FILE)
    assert exported.store is not None and all(key in fingerprints for key, _ in exported.store.records())
    n_records = client.dbsize()
    client.flushall()
    capsys.readouterr()
    assert run(command) == 0 and "were put again" in capsys.readouterr().out and client.dbsize() == n_records
    assert run(command) == 0 and "put again" not in capsys.readouterr().out
    client.close()
