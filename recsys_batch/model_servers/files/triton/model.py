"""Triton's Python backend of the ranker: ONNX Runtime on ranker.onnx beside it. Requests with as many candidates are one run of it."""

import os
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

INPUTS, OUTPUT = ("user_embedding", "item_embedding", "features"), "score"


class TritonPythonModel:
    """Made once per instance of a version."""

    def initialize(self, args: dict[str, str]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = os.path.join(args["model_repository"], args["model_version"], "ranker.onnx")
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        queries = [[pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS] for request in requests]
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (_, items, _) in enumerate(queries):
            groups.setdefault(items.shape[1:], []).append(number)
        answers: list[Any] = [None] * len(requests)
        for numbers in groups.values():
            try:
                answer_group(answers, numbers, self._score([queries[number] for number in numbers]))
            except Exception as error:
                for number in numbers:
                    answers[number] = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return answers

    def _score(self, queries: list[list[np.ndarray]]) -> list[np.ndarray]:
        joined = [np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for arrays in zip(*queries, strict=True)]
        scores = self._session.run([OUTPUT], dict(zip(INPUTS, joined, strict=True)))[0]
        return np.split(scores, np.cumsum([len(query[0]) for query in queries])[:-1])


def answer_group(answers: list[Any], numbers: list[int], scores: list[np.ndarray]) -> None:
    """Put the scores of requests into their answers."""
    for number, of_one in zip(numbers, scores, strict=True):
        answers[number] = pb_utils.InferenceResponse([pb_utils.Tensor(OUTPUT, np.ascontiguousarray(of_one))])
