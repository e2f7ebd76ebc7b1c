"""Users' lists in a real redis-server."""

from pathlib import Path
from typing import Any

import pytest
import redis

from recsys_batch.errors import RecsysBatchError
from recsys_batch.online.snapshot.reader import open_snapshot
from recsys_batch.online.snapshot.redis_store import completion_key, connect, mark_complete, redis_key, write_records


@pytest.fixture
def in_redis(make: Any, server: Any) -> Path:
    """The made-up snapshot with its users' lists in Redis instead of LMDB."""
    import json

    folder: Path = make("first")
    snapshot = open_snapshot(folder / "first")
    assert snapshot.store is not None
    records = [(key, snapshot.store.get(key)) for key in (snapshot.key(user) for user in range(300)) if key is not None]
    client = connect(server.url)
    assert write_records(client, "first", [(key, record) for key, record in records if record], 1000) == 300
    mark_complete(client, "first", 300, 1000)
    client.close()
    snapshot.close()
    manifest = json.loads((folder / "first" / "manifest.json").read_text())
    manifest["store"] = "redis"
    del manifest["files"]["users.lmdb"]
    (folder / "first" / "users.lmdb").unlink()
    (folder / "first" / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_records_expire_by_themselves_and_keys_name_their_snapshot(server: Any) -> None:
    client = connect(server.url)
    assert write_records(client, "run", ((bytes([n]), b"x" * n) for n in range(1, 256)), 100) == 255
    mark_complete(client, "run", 255, 100)
    for key in (redis_key("run", b"\x01"), completion_key("run")):
        assert 90 < client.ttl(key) <= 100 and key.startswith("recs:run:") and "{" not in key
    assert client.get(redis_key("run", b"\x05")) == b"xxxxx" and client.dbsize() == 256
    client.close()


def test_a_server_that_is_away_is_named_when_filling(server: Any) -> None:
    server.kill()
    with pytest.raises(RecsysBatchError, match="stopped taking records"):
        write_records(connect(server.url), "run", [(b"a", b"b")], 10)


def test_answers_from_redis_and_popular_while_it_is_away_and_back_by_itself(
    in_redis: Path, server: Any, serve: Any, current: Any, wait_for: Any, make: Any
) -> None:
    current(in_redis, "first")
    ranker = serve(in_redis, RECSYS_BATCH_REDIS_URL=server.url)
    told = ranker.rank(5, k=5)
    assert (told["source"], told["degraded"]) == ("ranker", None)
    assert ranker.rank("nobody")["degraded"] == "unknown_user"
    client = redis.Redis.from_url(server.url)
    saved = {key: client.get(key) for key in client.keys("recs:*")}
    server.kill()
    for _ in range(20):
        away = ranker.rank(5, k=5)
        assert (away["source"], away["degraded"]) == ("popular", "store_unavailable") and len(away["items"]) == 5
    assert ranker.call("GET", "/v1/users/5/topk")[0] == 503
    server.start()
    for key, value in saved.items():
        client.set(key, value)
    client.close()
    wait_for(lambda: ranker.rank(5, k=5)["source"] == "ranker", 10)
    assert ranker.rank(5, k=5)["items"] == told["items"]


def test_a_snapshot_whose_records_are_not_all_there_is_refused(
    in_redis: Path, server: Any, serve: Any, current: Any, wait_for: Any
) -> None:
    current(in_redis, "first")
    redis.Redis.from_url(server.url).delete(completion_key("first"))
    ranker = serve(in_redis, ready=False, RECSYS_BATCH_REDIS_URL=server.url)
    told = wait_for(lambda: (found := ranker.call("GET", "/readyz")) and found[0] == 503 and found[1])
    assert "export the run again" in told["error"]


def test_a_snapshot_in_redis_needs_the_url(in_redis: Path, serve: Any, current: Any, wait_for: Any) -> None:
    current(in_redis, "first")
    server = serve(in_redis, ready=False)
    told = wait_for(lambda: (found := server.call("GET", "/readyz")) and found[0] == 503 and found[1])
    assert "RECSYS_BATCH_REDIS_URL" in told["error"]
