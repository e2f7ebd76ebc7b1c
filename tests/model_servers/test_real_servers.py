"""Exported folders on the servers themselves: they start, score as we do, and rank for ``serve``.

Tests of a server that is not installed (``make servers``) are skipped.
"""

import asyncio
import http.client
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from benchmarks.scoring_calls import ScoringCall, largest_difference
from recsys_batch.config import Online
from recsys_batch.online.engine.remote_ranker import RemoteRanker, make_wire_format
from recsys_batch.online.settings import ServerSettings
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_key import user_id_from_key
from recsys_batch.ranking.onnx_ranker import INPUTS
from tools.model_servers import SERVERS, NotInstalled, Started, find, running

pytestmark = pytest.mark.slow

ENGINES: dict[str, dict[str, Any]] = {
    "torchserve": {"engine": "torchserve"},
    "triton": {"engine": "oip"},
    "mlserver": {"engine": "oip", "engine_binary": False},
}
TOLERANCE = 1e-5


class Exported:
    """A server that runs on what was exported for it, and our settings for it."""

    def __init__(self, name: str, folder: Path, started: Started, version: str, scratch: Path) -> None:
        self.name, self.folder, self.started, self.version = name, folder, started, version
        section = Online(engine_url=started.address, engine_timeout_ms=2000, **ENGINES[name])
        self.settings = ServerSettings.from_section(section, str(scratch), str(scratch / "warehouse"))
        self.wire = make_wire_format(self.settings)

    def score(self, call: ScoringCall) -> np.ndarray:
        request = self.wire.encode("ranker", self.version, call[:3])
        status, headers, body = self.post(request.path, request.headers, request.body)
        assert status == 200, body[:500]
        return self.wire.decode(headers, body)

    def post(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.started.port, timeout=30)
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()


def require(name: str) -> Path:
    """Find the interpreter of a server's environment; or skip the test."""
    try:
        return find(name)
    except NotInstalled as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, export: Callable[..., Path], published_snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exported]:
    name: str = request.param
    require(name)
    folder, scratch, version = export(name), tmp_path_factory.mktemp(name), published_snapshot.model_version
    with running(name, folder, "ranker", version, scratch) as started:
        yield Exported(name, folder, started, version, scratch)


def test_a_thousand_requests_have_our_scores_and_order(server: Exported, calls: list[ScoringCall]) -> None:
    assert len(calls) == 1001 and len({call.items.shape for call in calls}) > 20 and len(calls[-1].users) == 64
    assert max(largest_difference(server.score(call), call.expected) for call in calls) <= TOLERANCE


def test_requests_that_a_server_may_join_are_not_mixed_up(server: Exported, calls: list[ScoringCall]) -> None:
    with ThreadPoolExecutor(16) as pool:
        scores = list(pool.map(server.score, calls[:320]))
    assert max(largest_difference(*pair) for pair in zip(scores, (call.expected for call in calls[:320]), strict=True)) <= TOLERANCE


def test_the_example_is_answered_with_the_examples_scores(server: Exported) -> None:
    path = f"/predictions/ranker/{server.version}" if server.name == "torchserve" else f"/v2/models/ranker/versions/{server.version}/infer"
    body, expected = ((server.folder / f"example_{what}.json").read_bytes() for what in ("request", "response"))
    status, _, answer = server.post(path, {"Content-Type": "application/json"}, body)
    assert status == 200
    told = json.loads(answer)
    scores = told["score"] if server.name == "torchserve" else np.reshape(told["outputs"][0]["data"], told["outputs"][0]["shape"])
    assert np.allclose(scores, json.loads(expected)["score"], rtol=0, atol=TOLERANCE)


def test_another_version_is_refused_before_it_is_used(server: Exported, calls: list[ScoringCall]) -> None:
    async def ask() -> tuple[str | None, str | None]:
        ranker = RemoteRanker(server.settings)
        try:
            return await ranker.why_not(server.version), await ranker.why_not("999")
        finally:
            await ranker.close()

    ours, other = asyncio.run(ask())
    assert ours is None and other is not None and "no version 999" in other
    request = server.wire.encode("ranker", "999", calls[0][:3])
    assert server.post(request.path, request.headers, request.body)[0] == 404


def test_its_open_inference_endpoint_takes_the_official_clients_requests(server: Exported, calls: list[ScoringCall]) -> None:
    call, client = calls[-1], tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.started.port}")
    inputs = [tritonclient.http.InferInput(name, list(array.shape), "FP32") for name, array in zip(INPUTS, call[:3], strict=True)]
    for one, array in zip(inputs, call[:3], strict=True):
        one.set_data_from_numpy(array, binary_data=server.name == "triton")
    outputs = [tritonclient.http.InferRequestedOutput("score", binary_data=server.name == "triton")]
    try:
        version = "" if server.name == "torchserve" else server.version  # which has no such path for a version
        answer = client.infer("ranker", inputs, version, outputs=outputs)
        assert largest_difference(answer.as_numpy("score"), call.expected) <= TOLERANCE
    finally:
        client.close()


def test_the_official_client_over_grpc(server: Exported, calls: list[ScoringCall]) -> None:
    if server.name == "torchserve":
        pytest.skip("TorchServe's gRPC is a protocol of its own")
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.started.grpc_port}")
    inputs = [tritonclient.grpc.InferInput(name, list(array.shape), "FP32") for name, array in zip(INPUTS, calls[-1][:3], strict=True)]
    for one, array in zip(inputs, calls[-1][:3], strict=True):
        one.set_data_from_numpy(array)
    try:
        scores = client.infer("ranker", inputs, server.version).as_numpy("score")
        assert largest_difference(scores, calls[-1].expected) <= TOLERANCE
    finally:
        client.close()


def test_a_request_of_other_shapes_is_told_so_and_harms_no_other(server: Exported, calls: list[ScoringCall]) -> None:
    wrong = ScoringCall(calls[0].users[:, :-1], *calls[0][1:])
    request = server.wire.encode("ranker", server.version, wrong[:3])
    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(server.score, call) for call in calls[:40]]
        statuses = {pool.submit(server.post, request.path, request.headers, request.body).result()[0] for _ in range(10)}
        assert statuses <= {400, 500}
        assert all(largest_difference(one.result(), call.expected) <= TOLERANCE for one, call in zip(good, calls[:40], strict=True))


def test_it_ranks_for_serve_as_serve_does_itself_and_its_end_costs_no_answer(
    server: Exported, published_snapshot: Snapshot, serve: Any, tmp_path: Path
) -> None:
    """Last of this server's: it is killed."""
    snapshots, options = published_snapshot.folder.parent, server.settings
    shown = {"engine": options.engine, "engine_binary": str(options.engine_binary).lower(), "engine_url": options.engine_url}
    shown["engine_timeout_ms"] = "500"
    own = serve(snapshots)
    remote = serve(snapshots, *(word for key, value in shown.items() for word in ("--set", f"online.{key}={value}")))
    assert published_snapshot.store is not None
    users = [user_id_from_key(key, "STRING") for key in published_snapshot.store.sample_keys(50)]
    for user in users:
        ours, theirs = ({"items": (answer := one.rank(user))["items"], "source": answer["source"]} for one in (own, remote))
        assert [item["item_id"] for item in ours["items"]] == [item["item_id"] for item in theirs["items"]]
        assert ours["source"] == theirs["source"]
    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            statuses.append(remote.call("POST", "/v1/rank", {"user_id": users[len(statuses) % len(users)], "k": 5})[0])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    server.started.kill()
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(statuses) > 100 and set(statuses) == {200}
    assert remote.rank(users[0])["degraded"] == "ranker_unavailable"


SIGNATURE = """
import sys
import numpy as np
import tensorflow as tf

folder, asked, told = sys.argv[1:]
score = tf.saved_model.load(folder).signatures["serving_default"]
names = [name for name in score.structured_input_signature[1]]
arrays = np.load(asked)
n = len({key.split("-")[0] for key in arrays.files})
scores = {}
for number in range(n):
    inputs = {name: tf.constant(arrays[f"{number}-{name}"]) for name in names}
    scores[str(number)] = score(**inputs)["score"].numpy()
np.savez(told, **scores)
"""


def test_a_saved_model_scores_as_we_do_in_tensorflow_itself(
    export: Callable[..., Path], calls: list[ScoringCall], published_snapshot: Snapshot, tmp_path: Path
) -> None:
    python = require("tensorflow")
    folder = export("tfserving", "--tensorflow-python", str(python)) / "ranker" / published_snapshot.model_version
    named = {f"{number}-{name}": array for number, call in enumerate(calls) for name, array in zip(INPUTS, call[:3], strict=True)}
    np.savez(tmp_path / "asked.npz", **named)
    script = [str(python), "-c", SIGNATURE, str(folder), str(tmp_path / "asked.npz"), str(tmp_path / "told.npz")]
    subprocess.run(script, check=True, capture_output=True)
    scores = np.load(tmp_path / "told.npz")
    assert max(largest_difference(scores[str(number)], call.expected) for number, call in enumerate(calls)) <= TOLERANCE
