"""The official client against a real server, over HTTP and gRPC, and whatever else may come over the wire."""

import asyncio
import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from recsys_batch.online.http.router import HttpError, Request, Response, Router, error_response
from recsys_batch.online.oip.content_encoding import MAX_BYTES_IN_FLIGHT
from recsys_batch.online.oip.dynamic_batcher import DynamicBatcher
from recsys_batch.online.oip.infer_json import JSON_LENGTH_HEADER
from recsys_batch.online.oip.model_api import InvalidRequest, ModelUnknown
from recsys_batch.online.oip.rest import OipRoutes
from recsys_batch.online.oip.snapshot_models import RankerModel, RecommendModel
from recsys_batch.online.serving.admission import Admission
from recsys_batch.online.snapshot.reader import Snapshot, open_snapshot
from recsys_batch.ranking.features import FeatureSpec

D, F, C = 16, len(FeatureSpec.default().names), 7


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ranker: bytes, servers: Any, find_port: Any) -> Iterator[Any]:
    from recsys_batch.online.export.synthetic_snapshot import make_snapshot
    from recsys_batch.online.snapshot.repository import set_current

    folder = tmp_path_factory.mktemp("protocol")
    make_snapshot(folder / "snapshots", snapshot_id="first", users=300, items=500, dim=D, candidates=60, ranker=ranker)
    set_current(folder / "snapshots", "first")
    started = servers(folder)
    port = find_port()
    found = started(folder / "snapshots", "--grpc-port", str(port), "--set", "online.max_waiting=100")
    found.grpc_url, found.url = f"127.0.0.1:{port}", f"127.0.0.1:{found.port}"
    wait = tritonclient.grpc.InferenceServerClient(found.grpc_url)
    for _ in range(200):
        try:
            if wait.is_server_ready():
                break
        except InferenceServerException:
            pass
        time.sleep(0.05)
    wait.close()
    yield found
    started.end()


def pairs(B: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"user_embedding": (B, D), "item_embedding": (B, C, D), "features": (B, C, F)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def expected(server: Any, tensors: dict[str, np.ndarray]) -> np.ndarray:
    snapshot = open_snapshot(server.snapshots / "first")
    assert snapshot.ranker is not None
    scores = snapshot.ranker.score(tensors["user_embedding"], tensors["item_embedding"], tensors["features"])
    snapshot.close()
    return scores


def inputs(kind: Any, tensors: dict[str, np.ndarray], **options: Any) -> list[Any]:
    made = []
    for name, array in tensors.items():
        datatype = np_to_triton_dtype(array.dtype)
        one = kind.InferInput(name, list(array.shape), datatype)
        one.set_data_from_numpy(array, **options)
        made.append(one)
    return made


@pytest.mark.parametrize("binary", [True, False])
def test_the_http_client_works_unchanged(server: Any, binary: bool) -> None:
    client = tritonclient.http.InferenceServerClient(server.url)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("ranker") and not client.is_model_ready("x")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_repository"]
    told = client.get_model_metadata("ranker")
    assert told["versions"] == ["first"] and [one["name"] for one in told["inputs"]] == ["user_embedding", "item_embedding", "features"]
    tensors = pairs()
    wanted = [tritonclient.http.InferRequestedOutput("score", binary_data=binary)]
    result = client.infer(
        "ranker", inputs(tritonclient.http, tensors, binary_data=binary), outputs=wanted, request_id="mine", model_version="first"
    )
    np.testing.assert_allclose(result.as_numpy("score"), expected(server, tensors), atol=1e-5)
    assert result.get_response()["id"] == "mine"
    with pytest.raises(InferenceServerException, match="no version"):
        client.infer("ranker", inputs(tritonclient.http, tensors), model_version="9")
    client.close()


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf], ids=["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("wire", ["http binary", "http json", "grpc"])
def test_the_client_sends_and_reads_what_is_no_finite_number(server: Any, wire: str, odd: float) -> None:
    kind, url = (tritonclient.grpc, server.grpc_url) if wire == "grpc" else (tritonclient.http, server.url)
    form: dict[str, Any] = {} if wire == "grpc" else {"binary_data": wire == "http binary"}
    tensors = pairs()
    tensors["features"][1, 2, 0] = odd
    client = kind.InferenceServerClient(url)
    result = client.infer("ranker", inputs(kind, tensors, **form), outputs=[kind.InferRequestedOutput("score", **form)])
    scores, wanted = result.as_numpy("score"), expected(server, tensors)
    assert np.isnan(wanted[1, 2]) and np.isnan(scores[1, 2])
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    short = inputs(kind, {"user_id": np.array([5]), "k": np.array([150], np.int32)}, **form)
    padded = client.infer("recommend", short, outputs=[kind.InferRequestedOutput("score", **form)]).as_numpy("score")
    assert np.isfinite(padded[0, :60]).all() and (padded[0, 60:] == -np.inf).all()
    client.close()


def test_without_the_client_the_words_stand_bare_in_json_and_numbers_beyond_the_datatype_are_refused(server: Any) -> None:
    def ask(value: str, datatype: str = "FP32", **more: Any) -> tuple[int, Any]:
        tensors = json_tensors(pairs(1))
        tensors[2]["datatype"], tensors[2]["data"][0][0][0] = datatype, "HERE"
        body = json.dumps({"inputs": tensors, **more}).replace('"HERE"', value)
        status, text, _ = server.call("POST", "/v2/models/ranker/infer", body.encode())
        return status, text

    for word in ("NaN", "Infinity", "-Infinity"):
        status, told = ask(word)
        assert status == 200 and np.isnan(told["outputs"][0]["data"][0]) and np.isfinite(told["outputs"][0]["data"][1:]).all()
    assert ask("1e39") == (400, {"error": "input features holds 1e+39, which is beyond FP32"})
    assert ask("1e5", "FP16") == (400, {"error": "input features holds 100000.0, which is beyond FP16"})
    assert ask("3.4e38")[0] == 200 and ask("65504", "FP16")[0] == 200
    for beside in ("1", "NaN"):  # whatever else stands in the body
        status, told = ask("1e400", id=beside)
        assert status == 400 and "out of range" in told["error"]
    status, told = ask("NaN", id="\ud800")
    assert status == 400 and "not JSON" in told["error"]


@pytest.mark.parametrize(("id", "told"), [("mine", "mine"), ("", ""), ("7", "7"), (None, None)])
def test_an_id_comes_back_as_it_was_sent_over_both_wires(server: Any, id: str | None, told: str | None) -> None:
    for kind, url in ((tritonclient.http, server.url), (tritonclient.grpc, server.grpc_url)):
        client = kind.InferenceServerClient(url)
        sent = {} if id is None else {"request_id": id}
        answer = client.infer("recommend", inputs(kind, {"user_id": np.array([5])}), **sent).get_response()
        # gRPC's messages, and the client over HTTP, do not tell no id from an empty one.
        assert (answer.get("id", "") if isinstance(answer, dict) else answer.id) == (told or "")
        client.close()
    body: dict[str, Any] = {"inputs": [{"name": "user_id", "datatype": "INT64", "shape": [1], "data": [5]}]}
    status, answer, _ = server.call("POST", "/v2/models/recommend/infer", body if id is None else {**body, "id": id})
    assert status == 200 and answer.get("id") == told


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_the_http_client_may_compress_its_requests(server: Any, algorithm: str) -> None:
    client = tritonclient.http.InferenceServerClient(server.url)
    tensors = pairs()
    result = client.infer("ranker", inputs(tritonclient.http, tensors), request_compression_algorithm=algorithm)
    np.testing.assert_allclose(result.as_numpy("score"), expected(server, tensors), atol=1e-5)
    client.close()


def test_no_outputs_named_are_all_of_them(snapshot: Snapshot) -> None:
    user = {"name": "user_id", "datatype": "INT64", "shape": [1], "data": [5]}
    for more in ({}, {"outputs": []}, {"outputs": None}):
        body = json.dumps({"inputs": [user], **more}).encode()
        response = answer("POST", "/v2/models/recommend/infer", {}, body, snapshot)
        assert [one["name"] for one in json.loads(response.body)["outputs"]] == ["item_id", "score"]


def test_the_grpc_client_works_unchanged(server: Any) -> None:
    client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("recommend") and not client.is_model_ready("x")
    assert client.get_server_metadata().name == "recsys_batch"
    assert list(client.get_model_metadata("ranker").versions) == ["first"]
    tensors = pairs(3)
    result = client.infer("ranker", inputs(tritonclient.grpc, tensors), request_id="mine")
    np.testing.assert_allclose(result.as_numpy("score"), expected(server, tensors), atol=1e-5)
    assert result.get_response().id == "mine"
    with pytest.raises(InferenceServerException) as caught:
        client.infer("nothing", inputs(tritonclient.grpc, tensors))
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match=r"expected FP32 \[-1, 16\]") as caught:
        client.infer("ranker", inputs(tritonclient.grpc, {**tensors, "user_embedding": np.zeros((3, 5), np.float32)}))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    client.close()


def test_the_aio_clients_work_unchanged_many_at_once(server: Any) -> None:
    requests = [pairs(1 + n % 3, n) for n in range(40)]

    async def ask(kind: Any, url: str) -> list[np.ndarray]:
        async with kind.InferenceServerClient(url) as client:
            assert await client.is_server_ready()
            base = tritonclient.http if "http" in kind.__name__ else tritonclient.grpc
            found = await asyncio.gather(*(client.infer("ranker", inputs(base, tensors)) for tensors in requests))
            return [one.as_numpy("score") for one in found]

    wanted = [expected(server, tensors) for tensors in requests]
    for kind, url in ((tritonclient.http.aio, server.url), (tritonclient.grpc.aio, server.grpc_url)):
        for got, scores in zip(asyncio.run(ask(kind, url)), wanted, strict=True):
            np.testing.assert_allclose(got, scores, atol=1e-5)


def test_recommend_ranks_as_v1_does_under_the_neutral_context(server: Any) -> None:
    users = np.array([5, 6, 10**12])
    for kind, url in ((tritonclient.http, server.url), (tritonclient.grpc, server.grpc_url)):
        client = kind.InferenceServerClient(url)
        result = client.infer("recommend", inputs(kind, {"user_id": users, "k": np.array([4], np.int32)}))
        ids = result.as_numpy("item_id")
        for row, user in enumerate(users.tolist()):
            assert [int(one) for one in ids[row]] == [item["item_id"] for item in server.rank(user, k=4)["items"]]
        with pytest.raises(InferenceServerException, match="k is 0"):
            client.infer("recommend", inputs(kind, {"user_id": users, "k": np.array([0], np.int32)}))
        client.close()


def test_columns_and_digits_are_taken_as_other_servers_codecs_send_them(server: Any) -> None:
    wanted = [[item["item_id"] for item in server.rank(user, k=4)["items"]] for user in (5, 6)]
    sent = [np.array([[5], [6]]), np.array([b"5", b"06"], dtype=object), np.array([[b"5"], [b"6"]], dtype=object)]
    for kind, url in ((tritonclient.http, server.url), (tritonclient.grpc, server.grpc_url)):
        client = kind.InferenceServerClient(url)
        for users in sent:
            result = client.infer("recommend", inputs(kind, {"user_id": users, "k": np.array([[4]], np.int32)}))
            assert [[int(one) for one in row] for row in result.as_numpy("item_id")] == wanted
        for digits in (b"+5", b"5.0", b"", b"\xff", b"9" * 20):
            with pytest.raises(InferenceServerException, match="expected the decimal digits of an INT64"):
                client.infer("recommend", inputs(kind, {"user_id": np.array([digits], dtype=object)}))
        with pytest.raises(InferenceServerException, match=r"expected INT64 \[-1\]"):
            client.infer("recommend", inputs(kind, {"user_id": np.array([[5, 6]])}))
        client.close()


def test_a_killed_grpc_process_is_replaced(server: Any, wait_for: Any) -> None:
    def processes() -> list[int]:
        told = subprocess.run(["pgrep", "-P", str(server.process.pid), "-f", "grpc_server"], capture_output=True, text=True, check=False)
        return [int(pid) for pid in told.stdout.split()]

    before = processes()
    os.kill(before[0], signal.SIGKILL)
    assert wait_for(lambda: (found := processes()) and before[0] not in found and len(found) == len(before))

    def ready() -> bool:
        client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
        try:
            return bool(client.is_server_ready())
        except InferenceServerException:
            return False
        finally:
            client.close()

    assert wait_for(ready)


class OneModel:
    """The ranker and recommend of a snapshot that stays."""

    def __init__(self, snapshot: Snapshot, recommend: RecommendModel | None = None) -> None:
        self._models = {model.name: model for model in (RankerModel(snapshot), recommend or RecommendModel(snapshot, 50))}

    def get(self, name: str, version: str | None) -> Any:
        if name not in self._models:
            raise ModelUnknown(name)
        return self._models[name]

    def names(self) -> list[str]:
        return list(self._models)

    def ready(self) -> bool:
        return True


def answer(method: str, path: str, headers: Any, body: bytes, snapshot: Snapshot) -> Response:
    routes = OipRoutes(OneModel(snapshot), DynamicBatcher(), Admission(MAX_BYTES_IN_FLIGHT))
    try:
        route, parameters = Router(routes.routes()).find(method, path)
        return asyncio.run(route.handler(Request(method, path, headers, body, 0.0, parameters)))  # type: ignore[arg-type, misc]
    except HttpError as error:
        return error_response(error.status, str(error), error.headers)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["user_embedding", "item_embedding", "features", "user_id", "k"]) | ANY,
        "datatype": st.sampled_from(["FP32", "INT64", "INT32", "BYTES"]) | ANY,
        "shape": st.lists(st.integers(-1, 20), max_size=3) | ANY,
        "data": st.lists(st.integers(-3, 3) | st.floats(allow_nan=False), max_size=20) | ANY,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-2, 50) | ANY}) | ANY,
    },
)
BODY = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=3) | ANY},
    optional={"outputs": st.lists(st.fixed_dictionaries({"name": st.just("score") | ANY}), max_size=2) | ANY, "parameters": ANY, "id": ANY},
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=BODY.map(lambda value: json.dumps(value).encode(errors="surrogatepass")) | st.binary(max_size=60),
    behind=st.binary(max_size=40),
    length=st.none() | st.integers(-5, 300).map(str) | st.text(max_size=5) | st.just("right"),
    name=st.sampled_from(["ranker", "recommend", "x"]),
    encoding=st.none() | st.sampled_from(["gzip", "deflate", "br"]),
    packed=st.booleans(),
)
def test_no_request_makes_the_protocol_fail(
    snapshot: Snapshot, body: bytes, behind: bytes, length: str | None, name: str, encoding: str | None, packed: bool
) -> None:
    headers = {} if length is None else {JSON_LENGTH_HEADER: str(len(body)) if length == "right" else length}
    whole = body + behind
    if encoding is not None:
        headers["content-encoding"] = encoding
        whole = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)(whole) if packed else whole
    response = answer("POST", f"/v2/models/{name}/infer", headers, whole, snapshot)
    assert response.status in (200, 400, 404, 415)
    if response.status != 200:
        assert json.loads(response.body)["error"]


def ask(snapshot: Snapshot, model: str, inputs: list[Any], **more: Any) -> tuple[int, Any]:
    """(status, answer) of a request in JSON; NaN and Infinity go bare, as the official client sends them."""
    response = answer("POST", f"/v2/models/{model}/infer", {}, json.dumps({"inputs": inputs, **more}).encode(), snapshot)
    return response.status, json.loads(response.body)


def json_tensors(tensors: dict[str, np.ndarray]) -> list[Any]:
    return [{"name": name, "datatype": "FP32", "shape": list(array.shape), "data": array.tolist()} for name, array in tensors.items()]


def test_what_is_no_finite_number_stands_bare_in_json_and_is_never_a_plausible_score(snapshot: Snapshot) -> None:
    tensors = pairs()
    tensors["features"][0, 0, 0], tensors["features"][1, 0, 0] = np.nan, np.inf
    status, told = ask(snapshot, "ranker", json_tensors(tensors))
    assert status == 200
    scores = np.array(told["outputs"][0]["data"], np.float32).reshape(told["outputs"][0]["shape"])
    np.testing.assert_array_equal(scores, RankerModel(snapshot).infer(tensors)["score"])
    assert np.isnan(scores[0, 0]) and np.isfinite(scores[:, 1:]).all()
    everybody = [{"name": "user_id", "datatype": "INT64", "shape": [1], "data": [10**12]}]
    k = {"name": "k", "datatype": "INT32", "shape": [1], "data": [50]}
    status, told = ask(snapshot, "recommend", [*everybody, k])
    padded = [item == "" for item in told["outputs"][0]["data"]]
    assert [score == -np.inf for score in told["outputs"][1]["data"]] == padded


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param({"id": 7}, "id is 7: expected text", id="a number as id"),
        pytest.param({"id": {"a": "b" * 10**6}}, "id is {'a': 'b", id="an object as id"),
        pytest.param({"inputs": [{"name": "n" * 10**6, "datatype": "INT64", "shape": [1], "data": [1]}]}, "no input 'nnn", id="input"),
        pytest.param({"inputs": [{"name": "n" * 10**6, "datatype": 1}]}, "the datatype of nnn", id="input without datatype"),
        pytest.param({"inputs": [{"name": "k", "datatype": "t" * 10**6, "shape": [1]}]}, "input k is ttt", id="datatype"),
        pytest.param({"inputs": [{"name": "k", "datatype": "INT32", "shape": [1] * 10**5}]}, "input k is INT32 [1, 1", id="shape"),
        pytest.param({"inputs": [{"name": "k", "datatype": "INT32", "shape": [1], "data": ["d" * 10**6]}]}, "holds 'ddd", id="value"),
        pytest.param({"inputs": [{"name": "k", "datatype": "INT32", "shape": [1], "data": "d" * 10**6}]}, "k is 'ddd", id="values"),
        pytest.param({"inputs": [], "outputs": [{"name": "n" * 10**6}]}, "has no output 'nnn", id="output"),
        pytest.param({"parameters": "p" * 10**6}, "parameters are 'ppp", id="parameters"),
    ],
)
def test_what_is_refused_is_told_by_its_beginning(snapshot: Snapshot, body: Any, words: str) -> None:
    user = {"name": "user_id", "datatype": "INT64", "shape": [1], "data": [5]}
    status, told = ask(
        snapshot, "recommend", [user, *body.get("inputs", [])], **{name: value for name, value in body.items() if name != "inputs"}
    )
    assert status == 400 and words in told["error"] and len(told["error"]) < 300, told["error"][:300]


def test_a_model_that_is_not_there_is_told_by_its_beginning_over_both_wires(server: Any) -> None:
    status, told, _ = server.call("GET", f"/v2/models/{'m' * 30_000}")
    assert status == 404 and len(told["error"]) < 300
    client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
    for name in ("m" * 10**6, "\U0001f600" * 10**5):
        with pytest.raises(InferenceServerException, match="there is no model") as caught:
            client.infer(name, inputs(tritonclient.grpc, pairs()))
        assert caught.value.status() == "StatusCode.NOT_FOUND" and len(caught.value.message()) < 300
    client.close()


def test_more_json_than_is_decoded_at_once_is_refused_and_says_what_to_send(snapshot: Snapshot) -> None:
    users = {"name": "user_id", "datatype": "INT64", "shape": [10**6], "data": [1234] * 10**6}
    status, told = ask(snapshot, "recommend", [users])
    assert status == 413 and "at most 4194304 are taken: send fewer rows, or, by /v2, tensors as bytes" in told["error"]


def test_too_many_users_are_refused_by_their_number_before_they_are_looked_at(snapshot: Snapshot) -> None:
    status, told = ask(snapshot, "recommend", [{"name": "user_id", "datatype": "INT64", "shape": [1001], "data": None}])
    assert status == 400 and told["error"] == "input user_id has 1001 rows: at most 1000 are answered at once"


def test_what_numpy_makes_of_lists_of_numbers_is_taken_over_both_wires_and_in_both_forms(server: Any) -> None:
    tensors = {name: np.round(array, 3) for name, array in pairs().items()}
    wanted = expected(server, tensors)
    users = {"user_id": np.array([5, 6], np.int32), "k": np.array([[4]])}
    ranked = [[item["item_id"] for item in server.rank(user, k=4)["items"]] for user in (5, 6)]
    for kind, url, forms in ((tritonclient.http, server.url, (True, False)), (tritonclient.grpc, server.grpc_url, (None,))):
        client = kind.InferenceServerClient(url)
        for binary in forms:
            options = {} if binary is None else {"binary_data": binary}
            doubles = inputs(kind, {name: array.astype(np.float64) for name, array in tensors.items()}, **options)
            np.testing.assert_allclose(client.infer("ranker", doubles).as_numpy("score"), wanted, atol=1e-5)
            result = client.infer("recommend", inputs(kind, users, **options))
            assert [[int(one) for one in row] for row in result.as_numpy("item_id")] == ranked
        client.close()


def test_a_snapshot_stays_open_while_a_request_for_it_is_decoded_in_the_thread(snapshot: Snapshot) -> None:
    holders = []

    @contextlib.contextmanager
    def lease() -> Iterator[None]:
        holders.append(1)
        yield
        holders.pop()

    async def ask() -> None:
        models = OneModel(snapshot, RecommendModel(snapshot, 50, lease))
        routes = OipRoutes(models, DynamicBatcher(), Admission(MAX_BYTES_IN_FLIGHT))
        body = json.dumps({"inputs": [{"name": "user_id", "datatype": "INT64", "shape": [1], "data": [5]}]}) + 100_000 * " "
        request = Request("POST", "/v2/models/recommend/infer", {}, body.encode(), 0.0, {"name": "recommend"})
        answering = asyncio.create_task(routes.infer(request))
        await asyncio.sleep(0)
        assert holders and not answering.done()
        assert (await answering).status == 200 and not holders

    asyncio.run(ask())


def test_a_long_request_ends_with_its_client(server: Any, wait_for: Any) -> None:
    users = {"name": "user_id", "datatype": "INT64", "shape": [1000], "data": [5] * 1000}
    body = json.dumps({"inputs": [users]}).encode()
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
    for connection in connections:
        connection.sendall(b"POST /v2/models/recommend/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        connection.close()
    wait_for(lambda: b'recsys_http_requests_total{route="/v2/models/{name}/infer",status="499"} ' in server.call("GET", "/metrics")[1])


def test_calls_over_grpc_are_counted_by_method_and_code(server: Any, wait_for: Any) -> None:
    client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
    client.infer("ranker", inputs(tritonclient.grpc, pairs()))
    with pytest.raises(InferenceServerException, match="no model"):
        client.get_model_metadata("x")
    client.close()
    for line in (b'{code="OK",method="ModelInfer"}', b'{code="NOT_FOUND",method="ModelMetadata"}'):
        wait_for(lambda line=line: b"recsys_grpc_requests_total" + line in server.call("GET", "/metrics")[1])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/models/ranker/versions/first", 200),
        ("GET", "/v2/models/ranker/ready", 200),
        ("POST", "/v2", 405),
        ("GET", "/v2/models/ranker/infer", 405),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/ranker/odd", 404),
        ("GET", "/v2/models/x", 404),
        ("GET", "/v2/models/ranker/versions", 404),
    ],
)
def test_paths_of_the_protocol(snapshot: Snapshot, method: str, path: str, status: int) -> None:
    assert answer(method, path, {}, b"", snapshot).status == status


def test_tensors_that_do_not_fit_each_other_are_told_apart(snapshot: Snapshot) -> None:
    model = RankerModel(snapshot)
    with pytest.raises(InvalidRequest, match="must agree"):
        model.infer({**pairs(2), "user_embedding": np.zeros((3, D), np.float32)})
    assert model.infer(pairs(0))["score"].shape == (0, C)


def test_health_is_open_and_the_rest_asks_for_the_clients_token(
    find_port: Any, make: Any, serve: Any, current: Any, tmp_path: Path
) -> None:
    folder = make()
    current(folder, "first")
    port = find_port()
    server = serve(folder, "--grpc-port", str(port), RECSYS_BATCH_CLIENT_TOKEN="theirs")
    assert server.call("GET", "/v2/health/ready")[0] == 200 and server.call("GET", "/v2")[0] == 401
    assert server.call("GET", "/v2", None, {"authorization": "Bearer theirs"})[0] == 200
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}")

    def status() -> str:
        try:
            client.get_server_metadata()
        except InferenceServerException as error:
            return str(error.status())
        return "answered"

    for _ in range(100):
        if status() != "StatusCode.UNAVAILABLE":
            break
        time.sleep(0.05)
    assert status() == "StatusCode.UNAUTHENTICATED" and client.is_server_live() and client.is_server_ready()
    with pytest.raises(InferenceServerException, match="authorization: Bearer TOKEN"):
        client.get_server_metadata(headers={"authorization": "Bearer another's"})
    assert client.get_server_metadata(headers={"authorization": "Bearer theirs"}).name == "recsys_batch"
    client.close()
