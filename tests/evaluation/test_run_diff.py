"""What changed between two nights, and why."""

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from recsys_batch.config import SeenSetting
from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.evaluation.run_diff import ItemChange, diff_item, diff_user
from recsys_batch.read import published_before, published_run
from recsys_batch.schemas import IdTypes
from recsys_batch.tables.delta_log import commit
from tests.digest.conftest import NIGHT, House

TOMORROW = NIGHT.date() + dt.timedelta(days=1)


def retrieved(house: House, run_id: str, candidates: Mapping[int, Sequence[int]]) -> None:
    """Candidates of a run, in their order."""
    where = house._slice("candidates", {"run_id": run_id})
    rows = [
        {"user_id": house.user(user), "items": [{"item_id": house.item(item), "score": 1.0} for item in items]}
        for user, items in sorted(candidates.items())
    ]
    commit(where, list(where.write([pa.RecordBatch.from_pylist(rows, where.schema)], 0)), {})


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Two nights of user 1: in between the user takes item 1, item 2 sells out, item 3 is no longer retrieved, item 9 comes back."""
    found = House(tmp_path, IdTypes("BIGINT", "STRING"))
    found.inputs({1: [20]}, {1: "north"}, unavailable=[9])
    retrieved(found, found.publish(NIGHT.date(), {1: [1, 2, 3, 4, 5, 6, 7], 2: [1, 2, 3]}), {1: [1, 2, 3, 4, 5, 6, 7, 8], 2: [1, 2, 3]})
    found.inputs({1: [20, 1]}, {1: "north"}, unavailable=[2])
    retrieved(found, found.publish(TOMORROW, {1: [9, 10, 8, 7, 5, 6, 4], 2: [1, 3, 4]}), {1: [4, 5, 6, 7, 8, 9, 10, 11], 2: [1, 3, 4]})
    return found


def of_user(house: House, user: str = "1", n: int = 5, seen: SeenSetting = "exclude") -> dict[str, str]:
    now = published_run(house.warehouse)
    found = diff_user(house.warehouse, user, published_before(house.warehouse, now), now, n, seen)
    return {change.item_id: change.why for change in (*found.came, *found.went)}


def test_each_item_that_came_or_went_has_its_cause(house: House) -> None:
    assert of_user(house) == {
        "i009": "available again",
        "i010": "retrieved now, as number 7 (1 new interactions of the user)",
        "i008": "ranked into the list (1 new interactions of the user)",
        "i007": "rose from rank 7 (1 new interactions of the user)",
        "i001": "the user has taken it since",
        "i002": "no longer available",
        "i003": "no longer retrieved (it was number 3)",
        "i004": "fell to rank 7",
    }


def test_a_repeated_item_is_not_said_to_be_gone_for_being_taken(house: House) -> None:
    for setting in ("allow", {"north": "allow"}, {"after_days": 1}):  # user 1 took item 1 three months ago
        assert of_user(house, seen=setting)["i001"] == "no longer retrieved (it was number 1)"
    assert of_user(house, seen={"all": "allow", "north": "exclude"})["i001"] == "the user has taken it since"


def test_an_item_that_may_come_again_is_said_to_be_back_for_that(house: House) -> None:
    house.inputs({1: [20, 1, 7]}, {1: "north"}, unavailable=[2])  # items 20, 1, 7: 90, 89, 88 days before March 1 at 01:00
    later = [TOMORROW + dt.timedelta(days=n) for n in (1, 2)]
    retrieved(house, house.publish(later[0], {1: [8, 9, 10]}), {1: [8, 9, 10]})
    retrieved(house, house.publish(later[1], {1: [7, 8, 9]}), {1: [7, 8, 9]})
    assert of_user(house, seen={"after_days": 91})["i007"] == "the user had it long enough ago"
    assert of_user(house, seen={"after_days": 90})["i007"] == "retrieved now, as number 1"


def test_ranks_titles_and_what_stayed_are_told(house: House) -> None:
    now = published_run(house.warehouse)
    found = diff_user(house.warehouse, 1, published_before(house.warehouse, now), now, 5, "exclude")
    assert (found.n_new_events, found.n_kept, found.models) == (1, 1, ("7", "7"))
    assert found.went[3] == ItemChange("i004", "Title 4", 4, 7, "fell to rank 7")


def test_an_item_is_followed_through_all_lists(house: House) -> None:
    now = published_run(house.warehouse)
    found = diff_item(house.warehouse, "i002", published_before(house.warehouse, now), now)
    assert (found.n_lists, found.median_rank, found.available) == ((2, 0), (2.0, None), (True, False))
    with pytest.raises(InputMissing, match="there is no item 'i999'"):
        diff_item(house.warehouse, "i999", now, now)


def test_what_cannot_be_compared_is_told(house: House) -> None:
    with pytest.raises(InputMissing, match="user 77 has no list in run 2026-03-01-r1"):
        of_user(house, "77")
    with pytest.raises(UsageError, match="user id 'anna' is not of type int64"):
        of_user(house, "anna")
    first = published_run(house.warehouse, "2026-03-01-r1")
    with pytest.raises(InputMissing, match="no other run was published before 2026-03-01-r1"):
        published_before(house.warehouse, first)
