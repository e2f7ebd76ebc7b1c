"""Requests to model servers, and what came in a few words: what the rows of tools/protocol_cases.py are made of."""

from __future__ import annotations

import http.client
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from recsys_batch.ranking.features import FeatureSpec

D, F = 16, len(FeatureSpec.default().names)
TEXTS = "recommend_text"
"""The name elsewhere of the model that declares its users as BYTES; ours takes both for the one."""


@dataclass(frozen=True)
class Target:
    """A server that is asked, at 127.0.0.1; ``texts`` is its model that takes users as BYTES."""

    port: int
    grpc_port: int
    texts: str = TEXTS


@dataclass(frozen=True)
class HttpAnswer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The JSON, read as Python reads it; None where there is none."""
        length = int(self.headers.get("inference-header-content-length", len(self.body)))
        try:
            return json.loads(self.body[:length])
        except ValueError:
            return None

    def output(self, name: str) -> dict[str, Any]:
        return next((tensor for tensor in self.json["outputs"] if tensor["name"] == name), {})

    def written(self, name: str) -> list[str]:
        """The data of an output as it stands in the body."""
        texts = re.findall(
            rb'\{[^{}]*"name": *"([a-z_]+)"[^{}]*?"data": *\[([^\]]*)\]', re.sub(rb'"parameters": *\{[^{}]*\},?', b"", self.body)
        )
        return next((values.decode().replace(" ", "").split(",") for found, values in texts if found.decode() == name), [])


Ask = Callable[[Target], str]


# Requests


def call(target: Target, method: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None) -> HttpAnswer:
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=30)
    try:
        sent = body.encode() if isinstance(body, str) else body
        connection.request(method, path, sent, {"content-type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return HttpAnswer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


def infer(target: Target, model: str, body: bytes | str, version: str = "", **headers: str) -> HttpAnswer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return call(target, "POST", f"/v2/models/{model}{version and f'/versions/{version}'}/infer", body, sent)


def tensor(name: str, datatype: str, shape: Sequence[int], data: str) -> str:
    return f'{{"name":"{name}","datatype":"{datatype}","shape":{json.dumps(list(shape))},"data":{data}}}'


def request(*tensors: str, more: str = "") -> str:
    return f'{{{more}"inputs":[{",".join(tensors)}]}}'


def user(data: str = "[5]", shape: Sequence[int] = (1,), datatype: str = "INT64") -> str:
    return tensor("user_id", datatype, shape, data)


def pair(value: str = "0.5", datatype: str = "FP32") -> list[str]:
    """A user and a candidate for the ranker, whose first feature is ``value``."""
    vector, features = "[" + ",".join(["0.1"] * D) + "]", "[" + ",".join([value, *["0.5"] * (F - 1)]) + "]"
    vectors = tensor("user_embedding", "FP32", [1, D], vector), tensor("item_embedding", "FP32", [1, 1, D], vector)
    return [*vectors, tensor("features", datatype, [1, 1, F], features)]


def binary_pair(value: float, more: str = "", size: int = 4 * F, behind: bytes = b"") -> tuple[str, bytes]:
    """The same with its features as bytes behind the JSON: (length of the JSON, body)."""
    features = f'{{"name":"features","datatype":"FP32","shape":[1,1,{F}],"parameters":{{"binary_data_size":{size}}}}}'
    header = request(*pair()[:2], features, more=more).encode()
    return str(len(header)), header + struct.pack(f"<{F}f", value, *[0.5] * (F - 1)) + behind


# What came, in a few words


def status_or(answer: HttpAnswer, tell: Callable[[HttpAnswer], str]) -> str:
    return tell(answer) if answer.status == 200 else str(answer.status)


def taken(answer: HttpAnswer) -> str:
    return status_or(answer, lambda _: "taken")


def tell_id(*sent: str) -> Callable[[HttpAnswer], str]:
    def tell(answer: HttpAnswer) -> str:
        told = answer.json.get("id")
        return "none" if told is None else "made up" if told and told not in sent else f"`{json.dumps(told)}`"

    return lambda answer: status_or(answer, tell)


def shape_of(answer: HttpAnswer) -> str:
    return status_or(answer, lambda found: f"taken, scores {found.output('score')['shape']}")


def becomes(answer: HttpAnswer) -> str:
    return status_or(answer, lambda found: f"taken, scored `{found.written('score')[0]}`")


def last_score(answer: HttpAnswer) -> str:
    return status_or(answer, lambda found: f"`{found.written('score')[-1]}`")


def form_of(answer: HttpAnswer) -> str:
    return status_or(answer, lambda found: "bytes" if "inference-header-content-length" in found.headers else "JSON")


def first_item(answer: HttpAnswer) -> str:
    return status_or(answer, lambda found: f"taken, for user `{found.written('item_id')[0]}`")


def recommend(body: bytes | str, tell: Callable[[HttpAnswer], str] = taken, **headers: str) -> Ask:
    return lambda target: tell(infer(target, "recommend", body, **headers))


def texts(data: str) -> Ask:
    return lambda target: taken(infer(target, target.texts, request(user(data, datatype="BYTES"))))


def rank(value: str, tell: Callable[[HttpAnswer], str] = taken, datatype: str = "FP32") -> Ask:
    return lambda target: tell(infer(target, "ranker", request(*pair(value, datatype))))


def rank_binary(tell: Callable[[HttpAnswer], str], value: float = 0.5, **changes: Any) -> Ask:
    def ask(target: Target) -> str:
        length, body = binary_pair(value, **changes)
        return tell(infer(target, "ranker", body, inference_header_content_length=length))

    return ask


def names(answer: HttpAnswer) -> str:
    return status_or(answer, lambda found: ", ".join(one["name"] for one in found.json["outputs"]))


def by_grpc(model: str, arrays: Callable[[Target], Mapping[str, np.ndarray]], tell: Callable[[Any], str], **more: Any) -> Ask:
    """Ask by the official client over gRPC; errors are told by their code."""

    def ask(target: Target) -> str:
        inputs = []
        for name, array in arrays(target).items():
            datatype = {"O": "BYTES", "i": "INT64"}.get(array.dtype.kind, "FP32")
            inputs.append(tritonclient.grpc.InferInput(name, list(array.shape), datatype))
            inputs[-1].set_data_from_numpy(array)
        with grpc_client(target) as client:
            return grpc_code(lambda: tell(client.infer(target.texts if model == TEXTS else model, inputs, **more)))

    return ask


@contextmanager
def grpc_client(target: Target) -> Iterator[Any]:
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{target.grpc_port}")
    try:
        yield client
    finally:
        client.close()


def grpc_code(tell: Callable[[], str]) -> str:
    try:
        return tell()
    except InferenceServerException as error:
        return str(error.status()).removeprefix("StatusCode.")


def odd_arrays(target: Target) -> dict[str, np.ndarray]:
    features = np.full((1, 1, F), 0.5, np.float32)
    features[0, 0, 0] = np.nan
    return {"user_embedding": np.full((1, D), 0.1, np.float32), "item_embedding": np.full((1, 1, D), 0.1, np.float32), "features": features}


def one_user(target: Target) -> dict[str, np.ndarray]:
    return {"user_id": np.array([5])}


def not_utf8(target: Target) -> dict[str, np.ndarray]:
    return {"user_id": np.array([b"\xff"], dtype=object)}


def tell_grpc_id(sent: str) -> Callable[[Any], str]:
    return lambda result: f"`{json.dumps(told)}`" if (told := result.get_response().id) == sent else "made up"


def get(path: str, tell: Callable[[HttpAnswer], str]) -> Ask:
    return lambda target: tell(call(target, "GET", path))


def error_form(answer: HttpAnswer) -> str:
    keys = f"`{{{', '.join(json.dumps(key) for key in answer.json)}}}`" if isinstance(answer.json, dict) else "no object"
    return f"{answer.status}, {keys}, {answer.headers.get('content-type', 'no content type')}"


def versions(answer: HttpAnswer) -> str:
    return f"`{json.dumps(answer.json.get('versions'))}`"


def is_ready_by_grpc(target: Target) -> str:
    with grpc_client(target) as client:
        return grpc_code(lambda: str(client.is_model_ready("odd")).lower())
