"""What is no finite number, over a real server."""

import json
import math
from typing import Any

import pytest

from recsys_batch.ranking.features import FeatureSpec

D, F = 16, len(FeatureSpec.default().names)


def ask_ranker(server: Any, value: str) -> tuple[int, Any]:
    row = {"user_embedding": [0.1] * D, "item_embedding": [[0.1] * D] * 2, "features": [["HERE", *[0.5] * (F - 1)], [0.5] * F]}
    body = json.dumps({"instances": [row]}).replace('"HERE"', value)
    status, told, _ = server.call("POST", "/v1/models/ranker:predict", body.encode())
    return status, told


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_the_bare_words_are_read_and_a_score_that_is_none_is_one_of_them(shared_server: Any, word: str) -> None:
    status, told = ask_ranker(shared_server, word)
    assert status == 200 and math.isnan(told["predictions"][0][0]) and math.isfinite(told["predictions"][0][1])


def test_a_number_beyond_a_float_is_refused_and_does_not_become_infinite(shared_server: Any) -> None:
    assert ask_ranker(shared_server, "1e39") == (400, {"error": "input features holds 1e+39, which is beyond FP32"})
    status, told = ask_ranker(shared_server, "1e400")
    assert status == 400 and "out of range" in told["error"]


def test_short_lists_end_with_minus_infinity(shared_server: Any) -> None:
    status, told, _ = shared_server.call("POST", "/v1/models/recommend:predict", b'{"instances": [{"user_id": 5, "k": 150}]}')
    scores = told["predictions"][0]["score"]
    assert status == 200 and all(map(math.isfinite, scores[:60])) and set(scores[60:]) == {-math.inf}
