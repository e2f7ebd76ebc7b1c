"""TorchServe's handler of the ranker: ONNX Runtime on the archive's model. Requests of a batch with as many candidates are one run of it.

A body is one of:
- JSON {"user_embedding": [B][d], "item_embedding": [B][C][d], "features": [B][C][F]} -> {"score": [B][C], "model_version"};
- JSON of the Open Inference Protocol {"inputs": [{"name", "datatype", "shape", "data"}]} -> {"outputs": [..]};
- the same protocol with binary tensors, under the header Inference-Header-Content-Length -> the same;
- nothing -> what the model takes.
What is none of them is answered 400; the other requests of the batch are not affected.
"""

import json
import os
from typing import Any

import numpy as np
import onnxruntime as ort

INPUTS, OUTPUT = ("user_embedding", "item_embedding", "features"), "score"
HEADER_LENGTH = "Inference-Header-Content-Length"


class RankerHandler:
    """Made once per worker; TorchServe calls ``initialize``, then ``handle`` with a batch of bodies."""

    def initialize(self, context: Any) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = context.manifest["model"]
        path = os.path.join(context.system_properties["model_dir"], model["serializedFile"])
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._about = {"model_name": model["modelName"], "model_version": model["modelVersion"]}

    def handle(self, rows: list[dict[str, Any]], context: Any) -> list[Any]:
        answers: list[Any] = [None] * len(rows)
        queries = {}
        for number, row in enumerate(rows):
            body = row.get("body", row.get("data"))
            header = context.get_request_header(number, HEADER_LENGTH)
            try:
                if not body:
                    answers[number] = {**self._about, "inputs": [self._describe(name) for name in INPUTS]}
                    continue
                if header is None and not isinstance(body, dict):
                    body = json.loads(body)  # of a client that does not say that it is JSON
                queries[number] = self._check(read_arrays(body, header)), read_form(body, header)
            except (KeyError, TypeError, ValueError) as error:
                context.set_response_status(400, "Bad Request", number)
                answers[number] = {"code": 400, "type": "InvalidRequest", "message": f"no input of the ranker: {error!r}"}
        for numbers in group_by_candidates(queries):
            scores = self._score([queries[number][0] for number in numbers])
            for number, rows_of_one in zip(numbers, scores, strict=True):
                answers[number] = self._encode(rows_of_one, queries[number][1], number, context)
        return answers

    def _describe(self, name: str) -> dict[str, Any]:
        (node,) = (node for node in self._session.get_inputs() if node.name == name)
        return {"name": name, "datatype": "FP32", "shape": [size if isinstance(size, int) else -1 for size in node.shape]}

    def _check(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Refuse arrays that the model does not take, or that do not fit together: those of others in the batch do. Raises ValueError."""
        for node in self._session.get_inputs():
            array = arrays[INPUTS.index(node.name)]
            if array.ndim != len(node.shape) or any(isinstance(n, int) and n != m for n, m in zip(node.shape, array.shape, strict=True)):
                raise ValueError(f"{node.name} has shape {array.shape}, expected {node.shape}")
        users, items, features = arrays
        if len(users) != len(items) or items.shape[:2] != features.shape[:2]:
            raise ValueError(f"shapes {users.shape}, {items.shape}, {features.shape} are not [B, d], [B, C, d], [B, C, F]")
        return arrays

    def _score(self, queries: list[list[np.ndarray]]) -> list[np.ndarray]:
        joined = [np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for arrays in zip(*queries, strict=True)]
        scores = self._session.run([OUTPUT], dict(zip(INPUTS, joined, strict=True)))[0]
        return np.split(scores, np.cumsum([len(query[0]) for query in queries])[:-1])

    def _encode(self, scores: np.ndarray, form: str, number: int, context: Any) -> Any:
        if form == "columns":
            return {OUTPUT: scores.tolist(), "model_version": self._about["model_version"]}
        output = {"name": OUTPUT, "datatype": "FP32", "shape": scores.shape}
        if form == "tensors":
            return {**self._about, "outputs": [{**output, "data": scores.ravel().tolist()}]}
        raw = np.ascontiguousarray(scores, "<f4").tobytes()
        head = json.dumps({**self._about, "outputs": [{**output, "parameters": {"binary_data_size": len(raw)}}]}).encode()
        context.set_response_header(number, HEADER_LENGTH, str(len(head)))
        context.set_response_content_type(number, "application/octet-stream")
        return head + raw


def read_form(body: Any, header: str | None) -> str:
    """Tell how a request's answer is to be written: columns, tensors or binary."""
    if header is not None:
        return "binary"
    return "tensors" if "inputs" in body else "columns"


def read_arrays(body: Any, header: str | None) -> list[np.ndarray]:
    """Read the arrays of INPUTS. Raises KeyError, TypeError or ValueError: they are not there."""
    if header is not None:
        arrays = read_binary(bytes(body), int(header))
    elif "inputs" in body:
        arrays = {one["name"]: np.array(one["data"], np.float32).reshape(one["shape"]) for one in body["inputs"]}
    else:
        arrays = {name: np.array(body[name], np.float32) for name in INPUTS}
    return [arrays[name] for name in INPUTS]


def read_binary(body: bytes, header_length: int) -> dict[str, np.ndarray]:
    """Read the tensors that follow a header."""
    arrays, start = {}, header_length
    for one in json.loads(body[:header_length])["inputs"]:
        size = one["parameters"]["binary_data_size"]
        arrays[one["name"]] = np.frombuffer(body[start : start + size], "<f4").reshape(one["shape"])
        start += size
    return arrays


def group_by_candidates(queries: dict[int, tuple[list[np.ndarray], str]]) -> list[list[int]]:
    """Group the numbers of queries whose arrays can be joined: those with as many candidates."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, ((_, items, features), _) in queries.items():
        groups.setdefault((*items.shape[1:], features.shape[-1]), []).append(number)
    return list(groups.values())
