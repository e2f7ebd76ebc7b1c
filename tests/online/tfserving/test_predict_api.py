"""What the documentation and the sources of TensorFlow Serving say of its REST API, asked of our models."""

import asyncio
import gzip
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_batch.online.http.router import HttpError, Request
from recsys_batch.online.oip.content_encoding import MAX_BYTES_IN_FLIGHT
from recsys_batch.online.oip.dynamic_batcher import DynamicBatcher
from recsys_batch.online.oip.model_api import ModelUnknown
from recsys_batch.online.oip.snapshot_models import RankerModel, RecommendModel
from recsys_batch.online.serving.admission import Admission
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.tfserving.predict_api import TfServingRoutes
from recsys_batch.ranking.features import FeatureSpec

D, F, C = 16, len(FeatureSpec.default().names), 3
RANKER, RECOMMEND = "/v1/models/ranker:predict", "/v1/models/recommend:predict"


class OneSnapshot:
    """The models of a snapshot that stays, under the label stable."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._models = {model.name: model for model in (RankerModel(snapshot), RecommendModel(snapshot, 50))}

    def get(self, name: str, version: str | None) -> Any:
        model = self.labelled(name)["stable"]
        if version not in (None, model.version, str(model.version_number)):
            raise ModelUnknown(f"no version {version}")
        return model

    def labelled(self, name: str) -> Any:
        if name not in self._models:
            raise ModelUnknown(f"there is no {name}")
        return {"stable": self._models[name]}

    def ready(self) -> bool:
        return True


def ask(snapshot: Snapshot, path: str, body: Any = None, method: str = "", headers: Any = None) -> tuple[int, Any]:
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    routes = TfServingRoutes(OneSnapshot(snapshot), DynamicBatcher(), Admission(MAX_BYTES_IN_FLIGHT))
    request = Request(method or ("GET" if body is None else "POST"), path, headers or {}, raw, 0.0)
    try:
        response = asyncio.run(routes.answer(request))
    except HttpError as error:
        return error.status, {"error": str(error)}
    return response.status, json.loads(response.body)


def rows(n: int = 2) -> list[dict[str, Any]]:
    rng = np.random.default_rng(n)
    shapes = {"user_embedding": (D,), "item_embedding": (C, D), "features": (C, F)}
    return [{name: rng.standard_normal(shape).astype(np.float32).tolist() for name, shape in shapes.items()} for _ in range(n)]


def columns(n: int = 2) -> dict[str, Any]:
    made = rows(n)
    return {name: [row[name] for row in made] for name in made[0]}


def test_ranker_answers_rows_as_predictions_and_columns_as_outputs_one_output_without_its_name(snapshot: Snapshot) -> None:
    arrays = {name: np.array(column, np.float32) for name, column in columns().items()}
    wanted = RankerModel(snapshot).infer(arrays)["score"]
    status, by_row = ask(snapshot, RANKER, {"signature_name": "serving_default", "instances": rows()})
    assert status == 200 and list(by_row) == ["predictions"]
    status, by_column = ask(snapshot, RANKER, {"inputs": {**columns(), "more": "passes"}})
    assert status == 200 and list(by_column) == ["outputs"]
    np.testing.assert_array_equal(np.array(by_row["predictions"], np.float32), np.array(by_column["outputs"], np.float32))
    np.testing.assert_allclose(by_row["predictions"], wanted, atol=1e-6)


def test_recommend_answers_several_outputs_by_name_in_both_forms(snapshot: Snapshot) -> None:
    wanted = RecommendModel(snapshot, 50).infer({"user_id": np.array([5, 6]), "k": np.array([3], np.int32)})
    ids = [[one.decode() for one in row] for row in wanted["item_id"]]
    status, by_row = ask(snapshot, RECOMMEND, {"instances": [{"user_id": 5, "k": 3}, {"user_id": 6, "k": 3}]})
    assert status == 200 and [row["item_id"] for row in by_row["predictions"]] == ids
    np.testing.assert_array_equal(np.array([row["score"] for row in by_row["predictions"]], np.float32), wanted["score"])
    status, by_column = ask(snapshot, RECOMMEND, {"inputs": {"user_id": [5, 6], "k": [3]}})
    assert status == 200 and by_column["outputs"]["item_id"] == ids


def test_a_column_of_users_is_their_list(snapshot: Snapshot) -> None:
    assert ask(snapshot, RECOMMEND, {"instances": [[5], [6]]}) == ask(snapshot, RECOMMEND, {"instances": [5, 6]})
    assert ask(snapshot, RECOMMEND, {"inputs": {"user_id": [[5], [6]], "k": [[3]]}})[0] == 200


def test_what_is_refused_is_told_by_its_beginning(snapshot: Snapshot) -> None:
    long = "x" * 10**6
    for body in (
        {"instances": long},
        {"instances": [long]},
        {"instances": [{long: 1}]},
        {"instances": [5], "signature_name": long},
        [long],
    ):
        status, told = ask(snapshot, RECOMMEND, body)
        assert status == 400 and "xxx" in told["error"] and len(told["error"]) < 300
    assert ask(snapshot, RECOMMEND, {"instances": [1234] * 10**6})[0] == 413


def test_values_without_names_are_for_the_one_input_that_is_required(snapshot: Snapshot) -> None:
    named = ask(snapshot, RECOMMEND, {"instances": [{"user_id": 5}, {"user_id": 6}]})
    assert named[0] == 200 and len(named[1]["predictions"][0]["item_id"]) == 10
    assert ask(snapshot, RECOMMEND, {"instances": [5, 6]}) == named
    assert ask(snapshot, RECOMMEND, {"inputs": [5, 6]})[1]["outputs"]["item_id"] == [row["item_id"] for row in named[1]["predictions"]]
    status, told = ask(snapshot, RANKER, {"instances": [1.0]})
    assert status == 400 and "user_embedding, item_embedding, features" in told["error"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (RECOMMEND, {"instances": []}, "one row or more"),
        (RECOMMEND, {"instances": 5}, "one row or more"),
        (RECOMMEND, {"instances": [5], "inputs": [5]}, "and not both"),
        (RECOMMEND, {}, "either the key instances"),
        (RECOMMEND, {"instances": [5], "signature_name": "other"}, "'other' not found in signature def"),
        (RECOMMEND, {"instances": [{"user_id": 5, "other": 1}]}, "and nothing else"),
        (RECOMMEND, {"instances": [{"k": 3}]}, "takes user_id, k (optional)"),
        (RECOMMEND, {"instances": [{"user_id": 5, "k": 3}, {"user_id": 5}]}, "the same inputs in every row"),
        (RECOMMEND, {"instances": [{"user_id": 5}, 6]}, "the same inputs in every row"),
        (RECOMMEND, {"instances": [{"user_id": 5, "k": 3}, {"user_id": 5, "k": 4}]}, "k differs between rows"),
        (RECOMMEND, {"instances": [1.0]}, "1.0, which is no INT64"),
        (RECOMMEND, {"instances": ["5"]}, "which is no INT64"),
        (RECOMMEND, {"instances": [2**63]}, "beyond INT64"),
        (RECOMMEND, {"inputs": 5}, "expected INT64 [-1]"),
        (RECOMMEND, {"inputs": {"user_id": [5], "k": 3}}, "expected INT32 [1]"),
        (RECOMMEND, {"inputs": {"b64": "NQ=="}}, "no INT64"),
        (RECOMMEND, {"inputs": {"k": [3]}}, "lacks the input user_id"),
        (RECOMMEND, b"{", "JSON Parse error"),
        (RECOMMEND, b"\xff", "JSON Parse error"),
        (RECOMMEND, b"[" * 100_000, "JSON Parse error"),
        (RECOMMEND, [1], "expected a JSON object"),
        (RANKER, {"inputs": {**columns(), "user_embedding": columns(3)["user_embedding"]}}, "must agree"),
    ],
)
def test_what_that_server_refuses_is_refused_with_a_sentence(snapshot: Snapshot, path: str, body: Any, words: str) -> None:
    status, told = ask(snapshot, path, body)
    assert status == 400 and words in told["error"], told


def test_rows_with_other_numbers_of_candidates_are_refused(snapshot: Snapshot) -> None:
    first, second = rows()
    second["item_embedding"].append([0.0] * D)
    status, told = ask(snapshot, RANKER, {"instances": [first, second]})
    assert status == 400 and "item_embedding has a list of 3 and a list of 4 at level 1" in told["error"]


@pytest.mark.parametrize(
    ("number", "taken"),
    [
        ("16777215", True),
        ("16777216", False),
        ("-16777217", False),
        ("16777217.0", True),
        ("3.4e38", True),
        ("1e39", False),
        ("true", False),
    ],
)
def test_floats_are_taken_that_lose_nothing_by_the_sources_rule(snapshot: Snapshot, number: str, taken: bool) -> None:
    body = json.dumps({"instances": rows(1)}).encode()
    features = json.dumps(rows(1)[0]["features"][0][0]).encode()
    assert features in body
    status, told = ask(snapshot, RANKER, body.replace(features, number.encode(), 1))
    assert status == (200 if taken else 400), told


def test_nan_is_read_and_infinity_written_bare(snapshot: Snapshot) -> None:
    body = json.dumps({"instances": rows(1)}).encode()
    features = json.dumps(rows(1)[0]["features"][0][0]).encode()
    status, told = ask(snapshot, RANKER, body.replace(features, b"NaN", 1))
    assert status == 200 and math.isnan(told["predictions"][0][0])
    status, told = ask(snapshot, RECOMMEND, {"instances": [{"user_id": 5, "k": 50}]})
    assert status == 200 and all(isinstance(score, float) for score in told["predictions"][0]["score"])


def test_half_of_a_surrogate_pair_is_refused_also_where_nan_stands_beside_it(snapshot: Snapshot) -> None:
    for beside in (b"1", b"NaN"):
        status, told = ask(snapshot, RECOMMEND, rb'{"instances": [{"\ud800": 5}], "signature_name": "", "x": ' + beside + b"}")
        assert status == 400 and "JSON Parse error" in told["error"]


def test_status_names_versions_by_numbers_and_takes_the_snapshots_id_as_well(snapshot: Snapshot) -> None:
    number = str(RankerModel(snapshot).version_number)
    healthy = {"version": number, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("", f"/versions/{number}", "/versions/first", "/labels/stable"):
        assert ask(snapshot, f"/v1/models/ranker{path}") == (200, {"model_version_status": [healthy]})
        assert ask(snapshot, f"/v1/models/recommend{path}:predict", {"instances": [5]})[0] == 200
    assert len(number) == 17 and number.startswith(f"{snapshot.generated_at:%Y%m%d%H%M%S}")


def test_metadata_has_the_signature_as_that_server_writes_it(snapshot: Snapshot) -> None:
    status, told = ask(snapshot, "/v1/models/recommend/metadata")
    assert status == 200 and told["model_spec"]["name"] == "recommend" and told["model_spec"]["version"].isdigit()
    signature = told["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert signature["inputs"]["user_id"] == {"dtype": "DT_INT64", "tensor_shape": shape, "name": "user_id:0"}
    assert {name: info["dtype"] for name, info in signature["outputs"].items()} == {"item_id": "DT_STRING", "score": "DT_FLOAT"}


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v1/models/x", 404, "there is no x"),
        ("GET", "/v1/models/ranker/versions/7", 404, "no version 7"),
        ("GET", "/v1/models/ranker/labels/x", 400, "Unrecognized servable version label: x"),
        ("GET", RANKER, 400, "Malformed request: GET /v1/models/ranker:predict"),
        ("POST", "/v1/models/ranker", 400, "Malformed request"),
        ("POST", "/v1/models/ranker:classify", 400, "Malformed request"),
        ("GET", "/v1/models", 400, "Malformed request"),
        ("GET", "/v1/models/ranker/versions", 400, "Malformed request"),
    ],
)
def test_paths_that_are_not_there(snapshot: Snapshot, method: str, path: str, status: int, words: str) -> None:
    found, told = ask(snapshot, path, method=method)
    assert found == status and words in told["error"]


def test_a_body_may_be_packed(snapshot: Snapshot) -> None:
    body = gzip.compress(b'{"instances": [5]}')
    assert ask(snapshot, "/v1/models/recommend:predict", body, headers={"content-encoding": "gzip"})[0] == 200


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["user_id", "k", "b64", "features", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.fixed_dictionaries({}, optional={"instances": ANY, "inputs": ANY, "signature_name": ANY}).map(json.dumps).map(str.encode)
    | st.binary(max_size=60),
    path=st.sampled_from([RANKER, RECOMMEND]),
)
def test_no_body_makes_the_api_fail(snapshot: Snapshot, body: bytes, path: str) -> None:
    status, told = ask(snapshot, path, body, "POST")
    assert status == 200 or (status == 400 and told["error"])
