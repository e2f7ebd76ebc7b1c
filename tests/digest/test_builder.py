"""Digests: whole or not there, nothing twice, and the same again for the same call."""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from recsys_batch.digest import builder as module
from recsys_batch.errors import Busy, InputMissing, UsageError
from recsys_batch.read import read_table
from tests.digest.conftest import LISTS, NIGHT, House

DAY = dt.timedelta(days=1)


def records(house: House, name: str = "out.jsonl") -> dict[Any, dict[str, Any]]:
    lines = (house.folder / name).read_text(encoding="utf-8").splitlines()
    return {record["user_id"]: record for record in map(json.loads, lines)}


def items(record: dict[str, Any], house: House) -> list[int]:
    return [house.number(slot["item_id"]) for slot in record["slots"]]


def logged(house: House) -> list[tuple[str, Any, int, int]]:
    rows = read_table(house.warehouse, "sent_log").to_pylist()
    return sorted((row["digest_id"], row["user_id"], row["slot"], house.number(row["item_id"])) for row in rows)


def test_every_user_gets_the_top_of_the_list(house: House) -> None:
    result = house.digest()
    found = records(house)
    assert {user: items(record, house) for user, record in found.items()} == {user: of[:5] for user, of in house.lists.items()}
    assert (result.n_users, result.n_slots, result.n_popular, result.n_short) == (9, 45, 0, 0)
    first = found[house.user(1)]
    assert (first["run_id"], first["model_version"]) == ("2026-03-01-r1", "7")
    assert [slot["slot"] for slot in first["slots"]] == [1, 2, 3, 4, 5]
    assert first["slots"][0]["title"] == "Title 1"
    assert found[house.user(9)]["slots"][3]["title"] is None  # item 0 has none


def test_the_reason_is_the_nearest_item_of_the_history(house: House) -> None:
    house.digest()
    slots = records(house)[house.user(1)]["slots"]  # items 1, 6, 11, 16, 21; liked 5, 20, 8
    assert [house.number(slot["because_item_id"]) for slot in slots] == [5, 5, 8, 20, 20]
    assert slots[4]["reason"] == f"because you liked {house.item(20)}"  # which has no title
    assert slots[0]["reason"] == "because you liked Title 5"
    nobody = records(house)[house.user(9)]["slots"][0]
    assert (nobody["reason"], nobody["because_item_id"]) == ("picked for you", None)


def test_nothing_comes_twice_within_the_days(house: House) -> None:
    house.digest(digest_id="monday", slots=3)
    house.publish(NIGHT.date() + DAY, LISTS)
    house.digest(run_date=NIGHT.date() + DAY, digest_id="tuesday", slots=3)
    assert {user: items(record, house) for user, record in records(house).items()} == {user: of[3:6] for user, of in house.lists.items()}
    house.publish(NIGHT.date() + 40 * DAY, LISTS)
    house.digest(run_date=NIGHT.date() + 40 * DAY, digest_id="april", slots=3)
    assert items(records(house)[house.user(1)], house) == house.lists[house.user(1)][:3]


def test_short_lists_are_filled_from_the_segment_and_marked(house: House) -> None:
    """User 1 is of the north, whose list is 26, 27, 28; everybody's is 31 to 36; 31 is liked by nobody, 30 by user 3."""
    result = house.digest(slots=16)
    found = records(house)
    assert items(found[house.user(1)], house)[11:] == [26, 27, 28, 31, 32]
    marked = [(slot["source"], slot["reason"]) for slot in found[house.user(1)]["slots"][11:]]
    assert marked == [("popular", "popular in north")] * 3 + [("popular", "popular now")] * 2
    assert items(found[house.user(9)], house)[12:] == [31, 32, 33, 34]
    assert result.n_popular == sum(16 - len(of) for of in LISTS.values())


def test_filling_leaves_out_what_was_seen_or_sent(house: House) -> None:
    house.inputs({1: [26, 31]}, {1: "north"})
    house.publish(NIGHT.date() + DAY, LISTS)
    house.digest(run_date=NIGHT.date() + DAY, slots=14, digest_id="one")
    assert items(records(house)[house.user(1)], house)[11:] == [27, 28, 32]
    house.publish(NIGHT.date() + 2 * DAY, LISTS)
    result = house.digest(run_date=NIGHT.date() + 2 * DAY, slots=14, digest_id="two")
    assert items(records(house)[house.user(1)], house) == [33, 34, 35, 36]
    assert result.n_short == 9


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ("exclude", [4, 28, 32]),
        ("allow", [4, 26, 27]),
        ({"all": "exclude", "north": "allow"}, [4, 26, 27]),
        ({"all": "allow", "north": "exclude"}, [4, 28, 32]),
        ({"after_days": 90}, [4, 26, 28]),
    ],
)
def test_filling_takes_what_may_come_again(house: House, seen: Any, expected: list[int]) -> None:
    # Items 26, 27, 31: 90, 89, 88 days before the night, whose date ends 23 hours later.
    house.inputs({1: [26, 27, 31]}, {1: "north"})
    house.publish(NIGHT.date(), {1: [4]}, run="r3")
    house.digest(slots=3, seen=seen)
    assert items(records(house)[house.user(1)], house) == expected


def test_an_item_that_the_user_had_is_not_explained_by_itself(house: House) -> None:
    house.inputs({1: [4, 20]}, {1: "north"})
    house.publish(NIGHT.date(), {1: [4, 9]}, run="r3")
    house.digest(slots=2, seen="allow")
    assert records(house)[house.user(1)]["slots"][0]["reason"] == "you liked it before"


def test_a_user_with_nothing_left_is_counted_and_not_in_the_file(house: House) -> None:
    house.digest(slots=30, digest_id="all of it")
    house.publish(NIGHT.date() + DAY, LISTS)
    result = house.digest(run_date=NIGHT.date() + DAY, digest_id="nothing left")
    assert (result.n_users, result.n_without) == (0, 9)
    assert records(house) == {}
    assert house.digest(run_date=NIGHT.date() + DAY, digest_id="nothing left").logged_before


def test_what_is_no_longer_available_is_not_sent(house: House) -> None:
    house.inputs({1: [5]}, {1: "north"}, unavailable=[1, 11])
    house.digest()
    assert items(records(house)[house.user(1)], house) == [6, 16, 21, 2, 7]


@pytest.mark.parametrize("n", [2, 3, 7])
def test_shards_are_disjoint_and_together_everybody(house: House, n: int) -> None:
    seen: list[Any] = []
    for number in range(1, n + 1):
        house.digest(shard=(number, n), digest_id=f"{number} of {n}")
        seen += list(records(house))
    assert sorted(seen) == sorted(house.lists)


def test_a_segment_is_its_users_alone(house: House) -> None:
    house.digest(segment="north")
    assert set(records(house)) == {house.user(1), house.user(2)}
    with pytest.raises(UsageError, match="there is no segment 'west'; there are: north, south"):
        house.digest(segment="west", digest_id="other")


def test_parquet_has_the_same_records(house: House) -> None:
    house.digest()
    house.digest(out=house.folder / "out.parquet", form="parquet")
    found = {record["user_id"]: record for record in pq.read_table(house.folder / "out.parquet").to_pylist()}
    expected = records(house)
    assert list(found) == list(expected)
    for user, record in found.items():
        assert [slot["item_id"] for slot in record["slots"]] == [slot["item_id"] for slot in expected[user]["slots"]]
        assert [slot["reason"] for slot in record["slots"]] == [slot["reason"] for slot in expected[user]["slots"]]


def test_the_same_call_again_gives_the_same_bytes_and_logs_nothing(house: House) -> None:
    house.digest(slots=14)
    before, rows, version = (house.folder / "out.jsonl").read_bytes(), logged(house), DeltaTable(f"{house.warehouse}/sent_log").version()
    (house.folder / "out.jsonl").unlink()
    assert house.digest(slots=14).logged_before
    assert (house.folder / "out.jsonl").read_bytes() == before
    assert logged(house) == rows and DeltaTable(f"{house.warehouse}/sent_log").version() == version


def test_a_retry_gives_what_was_logged_also_when_the_date_was_computed_again(house: House) -> None:
    """Of the newer run a user would get other items, and so some items in two e-mails."""
    house.digest()
    before = (house.folder / "out.jsonl").read_bytes()
    house.publish(NIGHT.date(), {user: of[::-1] for user, of in LISTS.items()}, run="r2")
    house.inputs({1: [5, 20, 8], 2: [12], 3: [30]}, {1: "north", 2: "north", 3: "south"}, unavailable=[1])
    assert house.digest().run_id == "2026-03-01-r1"
    assert (house.folder / "out.jsonl").read_bytes() == before


def test_a_dry_run_leaves_nothing(house: House) -> None:
    result = house.digest(dry_run=True)
    assert result.n_users == 9
    assert not (house.folder / "out.jsonl").exists()
    assert not Path(f"{house.warehouse}/sent_log").exists()


def test_only_a_published_run_of_that_date_is_sent(house: House) -> None:
    with pytest.raises(InputMissing, match=r"no run of 2026-03-02 is published \(the newest that is published is of 2026-03-01\)"):
        house.digest(run_date=NIGHT.date() + DAY)
    house.publish(NIGHT.date() + DAY, LISTS, status="FAILED")
    with pytest.raises(InputMissing, match="no run of 2026-03-02 is published"):
        house.digest(run_date=NIGHT.date() + DAY)
    house.event("2026-03-01-r1", NIGHT.date(), "ROLLED_BACK", NIGHT, number=2.0)
    with pytest.raises(InputMissing, match="no night is published yet"):
        house.digest()


def test_an_old_run_is_refused(house: House) -> None:
    with pytest.raises(InputMissing, match=r"began 2026-03-01 01:00 UTC, 37 hours ago; digest\.max_age_hours = 36"):
        house.digest(now=NIGHT + dt.timedelta(hours=37))
    assert not (house.folder / "out.jsonl").exists()
    house.digest(now=NIGHT + dt.timedelta(hours=35.9))


def test_a_run_whose_rows_were_removed_is_refused(house: House) -> None:
    DeltaTable(f"{house.warehouse}/topk").delete()
    with pytest.raises(InputMissing, match="has no rows in topk any more"):
        house.digest()


def test_two_processes_cannot_log_the_same_digest(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one began before the first was done."""
    real = module.SentLog.append

    def late(log: Any, *arguments: Any) -> None:
        monkeypatch.setattr(module.SentLog, "append", real)
        house.digest(out=house.folder / "first.jsonl")
        real(log, *arguments)

    monkeypatch.setattr(module.SentLog, "append", late)
    with pytest.raises(Busy, match="digest digest was logged by another process meanwhile"):
        house.digest()
    assert not (house.folder / "out.jsonl").exists()
    assert len(logged(house)) == 45


CHILD = """
import os, signal, sys
from pathlib import Path
from recsys_batch.digest import builder, sent_log
from recsys_batch.schemas import IdTypes
from tests.digest.conftest import House
point = sys.argv[4]
def dying(real, after):
    def function(*arguments, **named):
        found = real(*arguments, **named) if after else None
        os.kill(os.getpid(), signal.SIGKILL)
    return function
holder, name = {"log": (sent_log.SentLog, "append"), "file": (builder, "publish_output")}[point.split()[1]]
setattr(holder, name, dying(getattr(holder, name), point.startswith("after")))
House(Path(sys.argv[1]), IdTypes(sys.argv[2], sys.argv[3])).digest(slots=14)
"""


@pytest.mark.parametrize("point", ["before log", "after log", "before file", "after file"])
def test_killed_anywhere_the_same_call_ends_with_the_same_file(house: House, point: str, tmp_path: Path) -> None:
    whole = House(tmp_path / "whole", house.ids)
    whole.inputs({1: [5, 20, 8], 2: [12], 3: [30]}, {1: "north", 2: "north", 3: "south"})
    whole.publish(NIGHT.date(), LISTS)
    whole.digest(slots=14)
    words = [sys.executable, "-c", textwrap.dedent(CHILD), str(house.folder), house.ids.user, house.ids.item, point]
    root = Path(__file__).parent.parent.parent
    child = subprocess.run(words, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False, capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert (house.folder / "out.jsonl").exists() == (point == "after file")
    house.digest(slots=14)
    assert (house.folder / "out.jsonl").read_bytes() == (whole.folder / "out.jsonl").read_bytes()
    assert logged(house) == logged(whole)
    assert not list(house.folder.glob(".out*"))


def test_many_users_in_many_files_are_those_of_one_file(house: House) -> None:
    rng = np.random.default_rng(3)
    lists = {user: rng.permutation(24)[:10].tolist() for user in range(1, 200)}
    house.inputs({user: rng.permutation(40)[:6].tolist() for user in range(1, 200, 2)}, {user: "north" for user in range(1, 200, 3)})
    found = []
    for number, files in enumerate((1, 7)):
        house.publish(NIGHT.date(), lists, run=f"r{number + 2}", files=files)
        house.digest(slots=12, digest_id=f"of {files} files", repeat_days=0)
        found.append([{**record, "run_id": ""} for record in records(house).values()])
    assert found[0] == found[1] and len(found[0]) == 199
