"""Snapshots as versions of models, by the official clients against a real server; both protocols reach them and the canary's."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from recsys_batch.online.oip.model_api import InvalidRequest, ModelUnknown
from recsys_batch.online.oip.snapshot_repository import SnapshotRepository
from recsys_batch.online.serving.snapshot_manager import SnapshotManager

ADMIN = {"authorization": "Bearer for tests only"}


@pytest.fixture
def server(find_port: Any, make: Any, serve: Any, current: Any, wait_for: Any) -> Any:
    """Has the snapshots first, in use, and second, without a ranker."""
    make("first", seed=1)
    folder = make("second", seed=2, with_ranker=False)
    current(folder, "first")
    port = find_port()
    found = serve(folder, "--grpc-port", str(port))
    found.url, found.grpc_url = f"127.0.0.1:{found.port}", f"127.0.0.1:{port}"

    def is_ready() -> bool:
        with tritonclient.grpc.InferenceServerClient(found.grpc_url) as client:
            try:
                return bool(client.is_server_ready())
            except InferenceServerException:
                return False

    wait_for(is_ready)
    return found


def states(client: Any) -> dict[tuple[str, str], str]:
    """(model, version) -> state."""
    if isinstance(client, tritonclient.http.InferenceServerClient):
        rows = client.get_model_repository_index(headers=ADMIN)
    else:
        rows = client.get_model_repository_index(headers=ADMIN, as_json=True)["models"]
    return {(row["name"], row["version"]): row["state"] for row in rows}


@pytest.mark.parametrize("kind", [tritonclient.http, tritonclient.grpc])
def test_the_official_client_lists_loads_and_unloads(server: Any, kind: Any) -> None:
    with kind.InferenceServerClient(server.url if kind is tritonclient.http else server.grpc_url) as client:
        first, second = ("recommend", "first"), ("recommend", "second")
        assert states(client) == {("ranker", "first"): "READY", first: "READY", second: "UNAVAILABLE"}
        client.load_model("recommend", headers=ADMIN)  # the newest
        assert client.is_model_ready("recommend", "second") and not client.is_model_ready("ranker")
        assert states(client) == {("ranker", "first"): "UNAVAILABLE", first: "UNAVAILABLE", second: "READY"}
        client.load_model("ranker", headers=ADMIN, config='{"snapshot_id": "first"}')
        assert client.is_model_ready("ranker") and server.rank(5)["snapshot_id"] == "first"
        with pytest.raises(InferenceServerException, match="no canary to unload"):
            client.unload_model("ranker", headers=ADMIN)
        assert server.admin("PUT", "/v1/routes", {"canary": "second", "weight": 0.1})[0] == 200
        client.unload_model("recommend", headers=ADMIN)
        assert server.admin("GET", "/v1/snapshots")[1]["workers"][0]["canary"] is None
        for refused, words in (("x", "no model 'x'"), ("ranker", "there is no snapshot third")):
            with pytest.raises(InferenceServerException, match=words):
                client.load_model(refused, headers=ADMIN, config='{"snapshot_id": "third"}')
        for headers in ({}, {"authorization": "Bearer another's"}):
            with pytest.raises(InferenceServerException, match="the admin's token"):
                client.load_model("ranker", headers=headers)


def test_the_canary_is_a_version_of_its_own_for_tensorflows_clients_and_tritons(server: Any) -> None:
    def ask(path: str, body: Any = None) -> Any:
        status, told, _ = server.call("GET" if body is None else "POST", f"/v1/models/recommend{path}", body)
        return status, told

    assert ask("/labels/canary") == (400, {"error": "Unrecognized servable version label: canary"})
    (stable,) = ask("")[1]["model_version_status"]
    assert server.admin("PUT", "/v1/routes", {"canary": "second", "weight": 0.0})[0] == 200
    newest, oldest = ask("")[1]["model_version_status"]
    assert oldest == stable and ask("/versions/second") == (200, {"model_version_status": [newest]}) == ask("/labels/canary")
    asked = {"instances": [5]}
    by_label, by_number = ask("/labels/canary:predict", asked), ask(f"/versions/{newest['version']}:predict", asked)
    assert by_label[0] == 200 and by_label == by_number != ask(":predict", asked) == ask("/labels/stable:predict", asked)
    with tritonclient.http.InferenceServerClient(server.url) as client:
        user = tritonclient.http.InferInput("user_id", [1], "INT64")
        user.set_data_from_numpy(np.array([5]))
        found = client.infer("recommend", [user], model_version="second").as_numpy("item_id")
    assert [one.decode() for one in found[0]] == by_label[1]["predictions"][0]["item_id"]


def test_who_was_given_no_admin_token_can_load_nothing(make: Any, current: Any, serve: Any) -> None:
    folder = make()
    current(folder, "first")
    server = serve(folder, RECSYS_BATCH_ADMIN_TOKEN="", RECSYS_BATCH_CLIENT_TOKEN="theirs")
    assert server.call("POST", "/v2/repository/index", None, {"authorization": "Bearer theirs"})[0] == 403
    assert server.call("GET", "/v1/models/ranker")[0] == 401
    assert server.call("GET", "/v1/models/ranker", None, {"authorization": "Bearer theirs"})[0] == 200


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"config": 7}, "config is 7"),
        ({"config": "[]"}, "config is"),
        ({"file:1/model.onnx": "b"}, "takes no 'file:1/model.onnx'"),
        ({"snapshot_id": 7}, "snapshot_id is 7"),
    ],
)
def test_parameters_that_name_no_snapshot_are_refused(make: Any, tmp_path: Path, parameters: dict[str, Any], words: str) -> None:
    manager = SnapshotManager(make(), lambda _: None, tmp_path / "turns")  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidRequest, match=words):
        asyncio.run(SnapshotRepository(manager, tmp_path).load("ranker", parameters))


def test_a_folder_without_snapshots_has_none_to_load_and_a_damaged_one_says_why(make: Any, tmp_path: Path) -> None:
    empty = SnapshotRepository(SnapshotManager(tmp_path / "none", lambda _: None, tmp_path / "turns"), tmp_path)  # type: ignore[arg-type, return-value]
    with pytest.raises(ModelUnknown, match="no snapshot to load"):
        asyncio.run(empty.load("ranker", {}))
    folder = make()
    (folder / "first" / "manifest.json").write_text("{}")
    rows = SnapshotRepository(SnapshotManager(folder, lambda _: None, tmp_path / "turns"), tmp_path).index(False)  # type: ignore[arg-type, return-value]
    assert {row["state"] for row in rows} == {"UNAVAILABLE"} and "not the manifest" in rows[0]["reason"]
