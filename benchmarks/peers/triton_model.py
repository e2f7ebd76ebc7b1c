"""Triton's Python backend: ONNX Runtime on our very ranker.onnx, a process per instance; requests that were batched are one run of it."""

import os
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from lookup import Lookup


class TritonPythonModel:
    """Made once per instance."""

    def initialize(self, args: dict[str, str]) -> None:
        snapshot = os.environ["PEER_SNAPSHOT"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(f"{snapshot}/ranker.onnx", options, providers=["CPUExecutionProvider"])
        self._lookup = Lookup(snapshot)

    def execute(self, requests: list[Any]) -> list[Any]:
        asked = [int(pb_utils.get_input_tensor_by_name(request, "user_id").as_numpy()[0, 0]) for request in requests]
        users, codes, items, features = zip(*(self._lookup.get(user) for user in asked), strict=True)
        feed = {"user_embedding": np.stack(users), "item_embedding": np.stack(items), "features": np.stack(features)}
        answers = []
        for row, mine in zip(self._session.run(["score"], feed)[0], codes, strict=True):
            best, scores = self._lookup.best(row, mine)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("items", best[None]), pb_utils.Tensor("scores", scores[None])]))
        return answers
