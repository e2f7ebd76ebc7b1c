"""What a request says of its candidates is taken as it is, or refused with a sentence; a batch is decoded request by request."""

import json
from typing import Any

import pytest

from recsys_batch.online.api.decode import decode_rank_batch, decode_rank_request
from recsys_batch.online.api.messages import BadRequest, Bounds
from recsys_batch.online.ranking.rank_query import RankQuery

BOUNDS = Bounds(max_candidates=3)


def decode(**fields: Any) -> RankQuery:
    return decode_rank_request(json.dumps({"user_id": 5, **fields}).encode(), BOUNDS, 0.0)[0]


def test_candidates_and_their_scores_come_as_they_were_sent() -> None:
    query = decode(candidate_item_ids=[7, "7", "x"], candidate_scores=[1, -0.5, 2e29])
    assert (query.candidate_item_ids, query.candidate_scores) == ([7, "7", "x"], [1.0, -0.5, 2e29])
    assert (decode().candidate_item_ids, decode().candidate_scores) == (None, None)
    assert (decode(candidate_item_ids=[]).candidate_item_ids, decode(candidate_item_ids=None).candidate_item_ids) == ([], None)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"candidate_item_ids": [1, 2, 3, 4]}, "candidate_item_ids has 4 ids, at most 3 are allowed"),
        ({"candidate_scores": [1.0]}, "candidate_scores is there without candidate_item_ids: send both, or neither"),
        (
            {"candidate_item_ids": [1, 2], "candidate_scores": [1.0]},
            "candidate_scores has 1 numbers for 2 candidate_item_ids: expected one",
        ),
        ({"candidate_item_ids": [], "candidate_scores": [1.0]}, "candidate_scores has 1 numbers for 0 candidate_item_ids: expected one"),
        ({"candidate_item_ids": [1, 2], "candidate_scores": [0, -1e30]}, r"candidate_scores\[1\] is -1e\+30: expected a number below 1e30"),
        ({"candidate_item_ids": [1], "candidate_scores": [float("nan")]}, "the body is not as expected"),
        ({"candidate_item_ids": [1], "candidate_scores": [None]}, "the body is not as expected"),
        ({"candidate_item_ids": [1.5]}, "the body is not as expected"),
        ({"candidate_item_ids": [True]}, "the body is not as expected"),
    ],
)
def test_what_cannot_be_ranked_is_refused_with_what_was_found(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        decode(**fields)


def test_a_request_of_a_batch_that_does_not_fit_fails_alone() -> None:
    requests = [
        {"user_id": 1, "request_id": "a"},
        {"k": 3},
        "x",
        {"user_id": 1, "candidate_scores": [1]},
        {"user_id": 2, "k": 0},
        {"user_id": 3},
    ]
    decoded = decode_rank_batch(json.dumps({"requests": requests}).encode(), BOUNDS, 0.0)
    assert [isinstance(each, BadRequest) for each in decoded] == [False, True, True, True, True, False]
    assert str(decoded[4]) == "k is 0: expected 1 to 200"
    (first, request_id), (last, none) = decoded[0], decoded[5]  # type: ignore[misc]
    assert (first.user_id, request_id, last.user_id, none) == (1, "a", 3, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"requests":{}}',
        b'{"requests":[{"user_id":1}],"k":3}',
        b'{"requests":[{"user_id":1]}',
        rb'{"requests":[{"user_id":"\ud800"}]}',
    ],
)
def test_a_batch_of_another_form_is_refused_as_a_whole(body: bytes) -> None:
    with pytest.raises(BadRequest, match="the body is not as expected"):
        decode_rank_batch(body, BOUNDS, 0.0)
