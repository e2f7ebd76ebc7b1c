"""What a snapshot says of itself is checked before it is served: it is refused, or it answers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from recsys_batch.online.api.encode import encode_answer, to_json
from recsys_batch.online.export.synthetic_snapshot import make_snapshot
from recsys_batch.online.oip.snapshot_models import RecommendModel, version_number
from recsys_batch.online.ranking.ladder import published_order, rank
from recsys_batch.online.ranking.latency import LatencyTracker
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.serving import warm_up
from recsys_batch.online.serving.freshness import FreshnessPolicy
from recsys_batch.online.serving.inspection import describe_item, describe_user
from recsys_batch.online.serving.warm_up import check_answers, stored_records
from recsys_batch.online.snapshot.lmdb_store import write_lmdb
from recsys_batch.online.snapshot.manifest import SnapshotRefused, file_checksums
from recsys_batch.online.snapshot.reader import Snapshot, open_snapshot
from recsys_batch.online.snapshot.user_key import user_key
from recsys_batch.online.snapshot.user_record import UserRecord, encode_record
from recsys_batch.storage.tensor_files import write_tensors
from tests.online.conftest import small_ranker_weights


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(values | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"generated_at": "2026-03-01T02:00:00"}, "timezone"),
        ({"generated_at": "0001-01-01T00:00:00+14:00"}, "out of range"),
        ({"run_date": "9999-12-31"}, "out of range"),
        ({"files": []}, "files"),
        ({"files": {}}, "does not list .*users.lmdb"),
        ({"store": "somewhere"}, "somewhere"),
        ({"store": "redis"}, "lists users.lmdb, but says .* redis"),
        ({"metric": "euclid"}, "euclid"),
        ({"user_norm": math.nan}, "user_norm"),
        ({"segments": ["a", "a"]}, "names one twice"),
        ({"user_id": "STRING"}, "sampled user 0 is no STRING"),
        ({"item_id": "STRING"}, "item ids are int64"),
        ({"model_version": "\ud800"}, "surrogates"),
        ({"seen": "sometimes"}, "sometimes"),
        ({"embedding_dim": True}, "embedding_dim"),
        ({"n_items": 31}, "31"),
    ],
    ids=lambda value: "-".join(value) + "=" + str(*value.values()).encode("ascii", "replace").decode() if isinstance(value, dict) else "",
)
def test_a_manifest_by_which_no_request_could_be_answered_is_refused(
    changes: dict[str, Any], reason: str, make: Callable[..., Path]
) -> None:
    folder = make("first", users=10, items=30, with_ranker=False) / "first"
    rewrite_manifest(folder, **changes)
    with pytest.raises(SnapshotRefused, match=reason):
        open_snapshot(folder)


def test_keys_of_another_type_are_refused_where_no_sample_tells(make: Callable[..., Path]) -> None:
    folder = make("first", users=10, items=30, with_ranker=False) / "first"
    (folder / "samples.json").unlink()
    rewrite_manifest(folder, files=file_checksums(folder), user_id="STRING")
    with pytest.raises(SnapshotRefused, match="keys are not of STRING"):
        open_snapshot(folder)


def change_popular(folder: Path) -> None:
    arrays = load_file(folder / "popular.safetensors")
    write_tensors(folder / "popular.safetensors", {**arrays, "codes_0": arrays["codes_0"] + 1})


def change_samples(folder: Path) -> None:
    (folder / "samples.json").write_text(json.dumps({"user_ids": [1], "items": [[30]]}))


def change_offsets(folder: Path) -> None:
    np.save(folder / "items" / "category_offsets.npy", np.arange(31)[::-1].copy())


def change_categories(folder: Path) -> None:
    (folder / "items" / "categories.json").write_text('["one"]')


def change_norms(folder: Path) -> None:
    np.save(folder / "items" / "norms.npy", np.full(30, np.inf, np.float32))


def change_records(folder: Path, **fields: Any) -> None:
    good = {"embedding": np.ones(16, np.float32), "n_events": 3, "segment": None, "codes": np.arange(5), "top_places": np.arange(2)}
    record = UserRecord(**{**good, "retrieval": np.ones(5, np.float32), "top_scores": np.ones(2, np.float32), **fields})
    (folder / "users.lmdb").unlink()
    write_lmdb(folder / "users.lmdb", [(user_key(user, "BIGINT") or b"", encode_record(record)) for user in range(10)])
    (folder / "users.lmdb-lock").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(change_popular, "popular list of all", id="popular items that there are not"),
        pytest.param(change_samples, "sampled user 1", id="items of a sampled user that there are not"),
        pytest.param(change_offsets, "offsets", id="offsets in another order"),
        pytest.param(change_categories, "categories without a name", id="categories without a name"),
        pytest.param(change_norms, "norms", id="norms that are not finite"),
        pytest.param(lambda folder: change_records(folder, codes=np.arange(26, 31)), "codes outside", id="candidates that there are not"),
        pytest.param(lambda folder: change_records(folder, top_places=np.array([1, 5])), "published list", id="places that there are not"),
        pytest.param(lambda folder: change_records(folder, segment=0), "segment 0, there are 0", id="a segment that there is not"),
        pytest.param(lambda folder: change_records(folder, embedding=np.ones(8, np.float32)), "8 dimensions", id="too few dimensions"),
        pytest.param(
            lambda folder: change_records(folder, retrieval=np.full(5, np.nan, np.float32)), "not finite", id="scores that are not finite"
        ),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(change: Callable[[Path], None], reason: str, make: Callable[..., Path]) -> None:
    folder = make("first", users=10, items=30, with_ranker=False) / "first"
    change(folder)
    rewrite_manifest(folder, files=file_checksums(folder))
    with pytest.raises(SnapshotRefused, match=reason):
        open_snapshot(folder)


def test_a_snapshot_whose_model_fails_at_a_request_is_refused(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = open_snapshot(make("first", users=10, items=30) / "first")
    check_answers(snapshot, stored_records(snapshot, 3))

    def fail(*_: Any) -> np.ndarray:
        raise RuntimeError("no kernel")

    assert snapshot.ranker is not None
    monkeypatch.setattr(snapshot.ranker, "score", fail)
    with pytest.raises(SnapshotRefused, match=r"it does not answer (a stranger|user 0).*the ranker fails"):
        check_answers(snapshot, stored_records(snapshot, 3))
    snapshot.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=4,
)
TIMES = st.datetimes().map(lambda time: time.isoformat())
WORDS = st.text(max_size=5) | st.sampled_from(["STRING", "redis", "cosine", "allow"]) | st.dates().map(str)


def like(value: Any) -> st.SearchStrategy[Any]:
    """Other JSON of the same kind."""
    if isinstance(value, str):
        return WORDS | TIMES | TIMES.map(lambda time: f"{time}+14:00")
    if isinstance(value, dict):
        return st.sampled_from(sorted(value)).map(lambda gone: {key: kept for key, kept in value.items() if key != gone})
    if isinstance(value, list):
        return st.lists(st.sampled_from([*value, "a"]), max_size=len(value) + 1)
    return st.integers(-1, 40) | st.floats()


def paths_of(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every field of parsed JSON, and every one inside it."""
    children = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [*([path] if path else []), *(found for key, value in children for found in paths_of(value, (*path, key)))]


def replaced(values: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = dict(values) if isinstance(values, dict) else list(values)
    changed[path[0]] = replaced(values[path[0]], path[1:], value)
    return changed


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, ranker: bytes) -> Path:
    folder = tmp_path_factory.mktemp("snapshots")
    make_snapshot(folder, snapshot_id="first", users=12, items=30, dim=16, candidates=10, ranker=ranker)
    (folder / "good.json").write_text((folder / "first" / "manifest.json").read_text())
    return folder


def answer_everything(snapshot: Snapshot) -> None:
    """What /v1, /v2 and /readyz ask of a snapshot."""
    items = snapshot.items.item_ids(np.arange(2))
    model = RecommendModel(snapshot, 50)
    for user in range(13):  # the last one is a stranger
        record = snapshot.lookup(user)
        for query in (RankQuery(user, 5), RankQuery(user, 5, session_item_ids=items, explain=True, segment="a")):
            result = rank(snapshot, query, record, LatencyTracker())
            assert len(result.codes) == 5 and result.degraded != "ranker_failed"
            to_json(encode_answer(result, query, snapshot, "id", result.stages))
        if record is not None:
            to_json(describe_user(snapshot, user, record))
            to_json(encode_answer(published_order(query, record), query, snapshot, "id", {}))
    assert model.infer({"user_id": np.arange(3)})["item_id"].shape == (3, 10)
    to_json(describe_item(snapshot, items[0]))
    assert FreshnessPolicy(1.0, 2.0).status(snapshot.generated_at) and version_number(snapshot.generated_at) >= 0
    to_json({"generated_at": snapshot.generated_at.isoformat(), "age": snapshot.generated_at.timestamp()})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_field_of_a_manifest_replaced_is_refused_or_a_snapshot_that_answers(
    data: st.DataObject, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_up, "_PAUSE_SECONDS", 0.0)
    values = json.loads((good / "good.json").read_text())
    path = data.draw(st.sampled_from([(name,) for name in values]) | st.sampled_from(paths_of(values)))
    before = values
    for key in path:
        before = before[key]
    changed = replaced(values, path, data.draw(st.one_of(JSON, like(before))))
    (good / "first" / "manifest.json").write_text(json.dumps(changed))
    try:
        snapshot = open_snapshot(good / "first")
        check_answers(snapshot, stored_records(snapshot, 3))
    except SnapshotRefused:
        return
    answer_everything(snapshot)
    snapshot.close()


def test_weights_of_another_ranker_than_the_model_are_refused(tmp_path: Path, ranker: bytes) -> None:
    sizes = {"users": 12, "items": 30, "dim": 16, "candidates": 10}
    with pytest.raises(SnapshotRefused, match="give other scores: they are not of one ranker"):
        make_snapshot(tmp_path, snapshot_id="first", ranker=ranker, ranker_weights=small_ranker_weights(seed=2), **sizes)
