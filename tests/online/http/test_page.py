"""The explorer page as the server hands it out, and the endpoints that it reads."""

import json
import re
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import pytest

from recsys_batch.online.api.messages import Bounds
from recsys_batch.online.serving.inspection import describe_sample, describe_user
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.online.snapshot.user_key import user_id_from_key, user_key
from recsys_batch.online.snapshot.user_record import decode_record

PAGE = files("recsys_batch.online.http").joinpath("page")
HTML = PAGE.joinpath("index.html").read_text(encoding="utf-8")
SCRIPTS = {entry.name: entry.read_text(encoding="utf-8") for entry in PAGE.iterdir() if entry.name.endswith(".js")}


@pytest.fixture(scope="module")
def one(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("shared_server")


def test_the_page_and_all_that_it_loads_come_with_their_types_and_a_strict_policy(one: Any) -> None:
    loaded = re.findall(r'(?:src|href)="(page/[^"]+)"', HTML) + [f"page/{name}" for name in SCRIPTS]
    kinds = {"css": "text/css", "js": "text/javascript", "/": "text/html"}
    for path in ("/", *(f"/{name}" for name in loaded)):
        status, body, headers = one.call("GET", path)
        assert status == 200 and body and headers["content-type"].startswith(kinds[path.rpartition(".")[2]]), path
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-cache"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy


def test_who_has_the_page_already_is_told_so_and_head_is_answered_without_a_body(one: Any) -> None:
    _, body, headers = one.call("GET", "/")
    for known in (headers["etag"], f'"other", W/{headers["etag"]}', "*"):
        status, nothing, again = one.call("GET", "/", None, {"if-none-match": known})
        assert (status, nothing, again["etag"]) == (304, b"", headers["etag"])
    assert one.call("GET", "/", None, {"if-none-match": '"other"'})[0] == 200
    status, nothing, head = one.call("HEAD", "/")
    assert (status, nothing, head["content-length"]) == (200, b"", str(len(body)))
    assert head["content-type"] == headers["content-type"]


def test_nothing_else_of_the_disk_can_be_named_and_nothing_is_taken(one: Any) -> None:
    above = ("/page/../about.py", "/page/%2e%2e/about.py", "/page/..%2fabout.py", "/page//etc/passwd")
    for path in ("/page", "/page/", "/page/nothing.js", *above):
        assert one.call("GET", path)[0] == 404, path
    status, _, headers = one.call("POST", "/", b"{}")
    assert status == 405 and headers["allow"] == "GET, HEAD"


def test_the_page_has_no_script_style_or_handler_in_line_and_names_no_other_host() -> None:
    assert not re.search(r"<script(?![^>]*\bsrc=)", HTML) and not re.search(r"<style|\sstyle=|\son\w+=", HTML)
    for name, text in {"index.html": HTML, "explorer.css": PAGE.joinpath("explorer.css").read_text(encoding="utf-8"), **SCRIPTS}.items():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text), name


def test_every_id_that_the_scripts_use_is_in_the_page_once_and_every_field_has_a_label() -> None:
    declared = re.findall(r'\bid="([^"]+)"', HTML)
    assert len(declared) == len(set(declared))
    used = set(re.findall(r'\bat\("([^"]+)"\)', SCRIPTS["explorer.js"]))
    used |= set(re.findall(r'"([^"]+)"', re.search(r"const controls = \[(.*)\]", SCRIPTS["explorer.js"])[1]))  # type: ignore[index]
    assert len(used) > 15 and used <= set(declared)
    labelled = set(re.findall(r'<label for="([^"]+)"', HTML)) | set(re.findall(r'<label[^>]*><input id="([^"]+)"', HTML))
    assert set(re.findall(r'<(?:input|select)\b[^>]*\bid="([^"]+)"', HTML)) == labelled


def test_the_page_has_words_for_every_source_and_reason() -> None:
    from recsys_batch.online.ranking.rank_result import ANSWER_SOURCES, REASONS

    for code in (*ANSWER_SOURCES, *REASONS):
        assert f"  {code}: " in SCRIPTS["words.js"], code


def test_some_users_are_those_whose_history_the_snapshot_keeps(one: Any) -> None:
    status, told, _ = one.call("GET", "/v1/users?limit=7")
    assert status == 200 and len(told["user_ids"]) == 7 and told["snapshot_id"] == "first" and told["n_users"] == 300
    assert told["categories"][0] == "category 0" and "tv" in told["devices"] and told["max_k"] == 200
    for user in told["user_ids"]:
        history = one.call("GET", f"/v1/users/{user}")[1]["history"]
        assert [item["item_id"] for item in history] == [(user * 7 + 13 * n) % 500 for n in range(8)]


def test_a_user_comes_with_candidates_in_retrievals_order_and_the_nights_ranks(one: Any) -> None:
    status, told, _ = one.call("GET", "/v1/users/5")
    published = one.call("GET", "/v1/users/5/topk?k=60")[1]["items"]
    assert status == 200 and told["user_id"] == "5" and told["modelled"] and told["history"] is None
    scores = [item["score"] for item in told["candidates"]]
    assert len(scores) == 60 and scores == sorted(scores, reverse=True)
    ranked = sorted((item for item in told["candidates"] if item["batch_rank"]), key=lambda item: item["batch_rank"])
    assert [item["item_id"] for item in ranked] == [item["item_id"] for item in published]
    first = ranked[0]
    assert first["title"] == f"Item {first['item_id']}" and first["categories"] == [f"category {first['item_id'] % 20}"]


def test_an_item_is_named_and_what_there_is_not_is_not_found(one: Any) -> None:
    assert one.call("GET", "/v1/items/7")[1] == {"item_id": 7, "title": "Item 7", "categories": ["category 7"], "snapshot_id": "first"}
    for path, words in (("/v1/items/99999", "has no item"), ("/v1/items/x", "has no item"), ("/v1/users/99999", "has no list")):
        status, told, _ = one.call("GET", path)
        assert status == 404 and words in told["error"]


@pytest.mark.parametrize(
    "path",
    [
        *(f"/v1/users?{query}" for query in ("limit=0", "limit=1001", "limit=-1", "limit=x", "limit=", "k=3", "limit=" + "9" * 30)),
        "/v1/users/5?k=3",
        "/v1/items/5?k=3",
        *(f"/v1/{path}" for path in ("user", "user?k=3", "user?user_id=5&user_id=6", "user/topk?k=3", "item", "item?user_id=5")),
    ],
)
def test_what_is_malformed_is_told_so(one: Any, path: str) -> None:
    status, told, _ = one.call("GET", path)
    assert status == 400 and told["error"]


@pytest.mark.parametrize("name", ["", "%ff", "%00", "../5", "é", "1" * 5000, "%F0%9F%A6%8A", "-0", " 5", "5%2F6", "null", "{}"])
def test_no_name_makes_the_server_fail(one: Any, name: str) -> None:
    for kind in ("users", "items"):
        assert one.call("GET", f"/v1/{kind}/{quote(name, safe='%/')}")[0] in (200, 400, 404, 414)


def test_the_document_describes_what_the_page_reads(one: Any) -> None:
    paths = one.call("GET", "/openapi.json")[1]["paths"]
    assert {"/v1/users", "/v1/user", "/v1/item"} <= set(paths)


def test_the_page_can_be_switched_off_and_users_data_needs_the_clients_token(make: Any, serve: Any, current: Any) -> None:
    folder = make()
    current(folder, "first")
    server = serve(folder, "--set", "online.page=false", RECSYS_BATCH_CLIENT_TOKEN="theirs")
    assert server.call("GET", "/")[0] == 404 and server.call("GET", "/page/explorer.js")[0] == 404
    for path in ("/v1/users", "/v1/user?user_id=5", "/v1/item?item_id=5"):
        assert server.call("GET", path)[0] == 401, path
        assert server.call("GET", path, None, {"authorization": "Bearer theirs"})[0] == 200, path


def test_an_older_snapshot_without_samples_shows_users_of_its_store(snapshot: Snapshot) -> None:
    assert snapshot.store is not None
    older = Snapshot(
        snapshot.manifest, snapshot.items, snapshot.popular, snapshot.ranker, snapshot.store, snapshot.item_lists, snapshot.folder
    )
    told = describe_sample(older, 4, Bounds())
    assert told.user_ids == [0, 50, 100, 150]
    record = snapshot.store.get(user_key(50, "BIGINT") or b"")
    assert record is not None and describe_user(older, 50, decode_record(record)).history is None


@pytest.mark.parametrize(("user", "kind"), [(0, "BIGINT"), (-(2**63), "BIGINT"), (2**63 - 1, "BIGINT"), ("", "STRING"), ("ö 7", "STRING")])
def test_a_key_reads_back_as_its_user(user: int | str, kind: Any) -> None:
    key = user_key(user, kind)
    assert key is not None and user_id_from_key(key, kind) == user
    assert user_id_from_key(user_key("x" * 600, "STRING") or b"", "STRING") is None


def test_samples_are_read_back_with_ids_of_their_own_kind(tmp_path: Any) -> None:
    from recsys_batch.online.snapshot.reader import read_samples
    from recsys_batch.online.snapshot.writer import write_samples

    for samples in ({1: [3, 2], -5: []}, {"1": [3], "ö": []}):
        write_samples(tmp_path / "samples.json", samples)  # type: ignore[arg-type]
        assert dict(read_samples(tmp_path / "samples.json")) == samples
        json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))
