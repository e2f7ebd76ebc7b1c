"""What stands in answers for app backends, whose parsers of JSON are strict, where a number is none."""

import http.client
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_batch.online.snapshot.lmdb_store import write_lmdb
from recsys_batch.online.snapshot.manifest import file_checksums
from recsys_batch.online.snapshot.repository import set_current
from recsys_batch.online.snapshot.user_key import user_key
from recsys_batch.online.snapshot.user_record import UserRecord, encode_record

DIM, N = 16, 20
ODD = {"embedding": 7, "retrieval": 8, "top_scores": 9, "infinite": 11}
"""Users whose record has what is no finite number, by its part; opening a snapshot checks others, of which every 50th."""


def records() -> Iterator[tuple[bytes, bytes]]:
    rng = np.random.default_rng(5)
    for user in range(100):
        parts = {"embedding": rng.standard_normal(DIM), "retrieval": -np.sort(-rng.standard_normal(N)), "top_scores": np.arange(N, 0, -1)}
        arrays = {name: array.astype(np.float32) for name, array in parts.items()}
        for part, odd_user in ODD.items():
            if user == odd_user:
                arrays["embedding" if part == "infinite" else part][2] = np.inf if part == "infinite" else np.nan
        record = UserRecord(n_events=3, segment=None, codes=np.arange(user, user + N), top_places=np.arange(N), **arrays)
        yield user_key(user, "BIGINT") or b"", encode_record(record)


@pytest.fixture(scope="module")
def odd_server(tmp_path_factory: pytest.TempPathFactory, ranker: bytes, ranker_weights: Any, servers: Any) -> Iterator[Any]:
    """A server of a snapshot in which a few users' numbers are none."""
    from recsys_batch.online.export.synthetic_snapshot import make_snapshot

    folder = tmp_path_factory.mktemp("odd")
    sizes = {"users": 100, "items": 200, "dim": DIM, "candidates": N}
    make_snapshot(folder / "snapshots", snapshot_id="first", ranker=ranker, ranker_weights=ranker_weights, **sizes)
    replace_records(folder / "snapshots" / "first")
    set_current(folder / "snapshots", "first")
    started = servers(folder)
    yield started(folder / "snapshots")
    started.end()


def replace_records(snapshot: Path) -> None:
    (snapshot / "users.lmdb").unlink()
    write_lmdb(snapshot / "users.lmdb", records())
    (snapshot / "users.lmdb-lock").unlink(missing_ok=True)
    manifest = json.loads((snapshot / "manifest.json").read_text())
    (snapshot / "manifest.json").write_text(json.dumps({**manifest, "files": file_checksums(snapshot)}))


def refuse(word: str) -> float:
    raise AssertionError(f"{word} is no JSON")


def ask(server: Any, method: str, path: str, body: Any = None) -> Any:
    """The answer, read as a strict parser does."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(method, path, None if body is None else json.dumps(body).encode())
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert response.status == 200, text
    return json.loads(text, parse_constant=refuse)


def ask_batch(server: Any, body: dict[str, Any]) -> Any:
    return ask(server, "POST", "/v1/rank:batch", {"requests": [{"user_id": 3}, body]})["answers"][1]


def ask_alone(server: Any, body: dict[str, Any]) -> Any:
    return ask(server, "POST", "/v1/rank", body)


@pytest.mark.parametrize("post", [ask_alone, ask_batch])
@pytest.mark.parametrize(
    "more", [{}, {"explain": True}, {"context": {"session_item_ids": [1, 2]}}, {"candidate_item_ids": [30, 9, 10, 31]}]
)
@pytest.mark.parametrize("part", ODD)
def test_every_score_is_a_finite_number_whatever_a_user_has(
    odd_server: Any, part: str, more: dict[str, Any], post: Callable[[Any, dict[str, Any]], Any]
) -> None:
    answer = post(odd_server, {"user_id": ODD[part], "k": 10, **more})
    assert answer["items"] and all(isinstance(item["score"], float) and math.isfinite(item["score"]) for item in answer["items"])
    if part in ("embedding", "infinite", "retrieval"):
        assert answer["source"] != "ranker" and answer["degraded"] == "ranker_failed"
    else:
        assert (answer["source"], answer["degraded"]) == ("ranker", None)


def test_a_published_place_without_a_finite_score_is_not_in_the_list(odd_server: Any) -> None:
    places = [item["candidate_rank"] for item in ask(odd_server, "GET", f"/v1/users/{ODD['top_scores']}/topk?k=5")["items"]]
    assert places == [1, 2, 4, 5, 6]


def test_what_else_is_no_number_is_null_where_a_user_is_described(odd_server: Any) -> None:
    told = ask(odd_server, "GET", f"/v1/users/{ODD['retrieval']}")
    scores = [candidate["score"] for candidate in told["candidates"]]
    assert scores[2] is None and all(isinstance(score, float) for score in scores[:2] + scores[3:])
