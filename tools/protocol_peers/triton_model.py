"""The models of tools/protocol_table.py in Triton's Python backend; which one, says its name."""

from typing import Any

import answers
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Made once per model."""

    def initialize(self, args: dict[str, str]) -> None:
        self._is_ranker = args["model_name"] == "ranker"

    def execute(self, requests: list[Any]) -> list[Any]:
        return [pb_utils.InferenceResponse([pb_utils.Tensor(*output) for output in self._answer(request)]) for request in requests]

    def _answer(self, request: Any) -> list[tuple[str, np.ndarray]]:
        if self._is_ranker:
            return [("score", answers.score(pb_utils.get_input_tensor_by_name(request, "features").as_numpy()))]
        k = pb_utils.get_input_tensor_by_name(request, "k")
        users = pb_utils.get_input_tensor_by_name(request, "user_id").as_numpy()
        items, scores = answers.recommend(users, answers.DEFAULT_K if k is None else int(k.as_numpy()[0]))
        return [("item_id", items), ("score", scores)]
