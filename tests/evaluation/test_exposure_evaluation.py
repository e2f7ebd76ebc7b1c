"""evaluate --exposures: exposures joined to later interactions of the warehouse, with nothing that is not over yet."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from recsys_batch.cli import run
from recsys_batch.config import Config
from recsys_batch.errors import EXIT_OK, InputMissing
from recsys_batch.evaluation.exposure_evaluation import ExposureEvaluation, evaluate_exposures
from recsys_batch.schemas import TABLES, IdTypes

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
BOTH = [IdTypes("BIGINT", "STRING"), IdTypes("STRING", "BIGINT")]


class Shop:
    """Tables of a warehouse, whose ids are of some type."""

    def __init__(self, folder: Path, ids: IdTypes) -> None:
        self.warehouse, self.ids = str(folder), ids

    def user(self, number: int) -> int | str:
        return number if self.ids.user == "BIGINT" else f"u{number}"

    def item(self, number: int) -> int | str:
        return number if self.ids.item == "BIGINT" else f"i{number}"

    def write(self, name: str, rows: list[dict[str, Any]], without: tuple[str, ...] = ()) -> None:
        schema = TABLES[name].arrow_schema(self.ids)
        table = pa.Table.from_pylist([{column: row.get(column) for column in schema.names} for row in rows], schema)
        partition = TABLES[name].partition_by
        write_deltalake(f"{self.warehouse}/{name}", table.drop_columns(list(without)), partition_by=list(partition), mode="append")

    def show(self, request: str, user: int, items: list[int], hours: float = 0, **more: Any) -> list[dict[str, Any]]:
        when = NOON + dt.timedelta(hours=hours)
        base = {"request_id": request, "user_id": self.user(user), "shown_at": when, "shown_date": when.date(), "snapshot_id": "s1"}
        base |= {"source": "ranker", "session_item_ids": [], "attributes": []} | more
        return [{**base, "item_id": self.item(item), "position": place} for place, item in enumerate(items, 1)]

    def event(self, user: int, item: int, hours: float, weight: float = 1.0) -> dict[str, Any]:
        when = NOON + dt.timedelta(hours=hours)
        same = {"user_id": self.user(user), "item_id": self.item(item), "event_ts": when, "event_type": "click"}
        return {**same, "weight": weight, "event_date": when.date()}

    def evaluate(self, first: dt.date | None = None, last: dt.date | None = None, within: dt.timedelta = DAY) -> ExposureEvaluation:
        return evaluate_exposures(self.warehouse, first, last, within, 0.0)


@pytest.fixture(params=BOTH, ids=["BIGINT and STRING", "STRING and BIGINT"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    return Shop(tmp_path / "warehouse", request.param)


def fill(shop: Shop) -> None:
    """Four answers: the third is hit at its second place, the second by the event of 30 h; the last is too young."""
    shop.write(
        "exposures",
        [
            *shop.show("r1", 1, [10, 20], source="popular", degraded="unknown_user", lists="night", candidates="retrieved"),
            *shop.show("r1", 2, [10, 20], snapshot_id="s2"),
            *shop.show("r2", 1, [30, 10], 10, lists="live", candidates="request"),
            *shop.show("r3", 2, [40, 20], 71),
        ],
    )
    events = [shop.event(1, 10, 11), shop.event(1, 10, 12), shop.event(1, 20, -1), shop.event(1, 20, 5, weight=-1)]
    shop.write("interactions", [*events, shop.event(2, 20, 25), shop.event(2, 10, 24), shop.event(3, 99, 72), shop.event(2, 99, 3)])


def test_hits_are_later_positive_interactions_and_open_answers_are_left_out(shop: Shop) -> None:
    fill(shop)
    result = shop.evaluate()
    assert (result.overall.n_answers, result.overall.n_users, result.overall.n_shown, result.overall.n_hits) == (3, 2, 6, 2)
    assert result.overall.hit_rate == pytest.approx(2 / 3)
    assert result.overall.ndcg == pytest.approx((1 + 0.63093) / 3, abs=1e-5)
    assert (result.n_open_answers, result.newest_event) == (1, NOON + dt.timedelta(hours=72))
    assert (result.first_date, result.last_date) == (dt.date(2026, 3, 1), dt.date(2026, 3, 4))
    counts = {name: {value: (of.n_answers, of.n_hits) for value, of in by.items()} for name, by in result.by.items()}
    assert counts == {
        "source": {"popular": (1, 0), "ranker": (2, 2)},
        "degraded": {"none": (2, 2), "unknown_user": (1, 0)},
        "lists": {"live": (1, 1), "night": (1, 0), "none": (1, 1)},
        "candidates": {"none": (1, 1), "request": (1, 1), "retrieved": (1, 0)},
        "snapshot": {"s1": (2, 1), "s2": (1, 1)},
    }
    assert [(place.position, place.n_shown, place.n_hits) for place in result.positions] == [(1, 3, 1), (2, 3, 1)]
    assert (result.n_explored, result.policies, result.differences) == (0, {}, {})


def test_a_span_of_days_takes_no_hit_that_belongs_to_a_later_showing(shop: Shop) -> None:
    shop.write("exposures", [*shop.show("r1", 1, [10]), *shop.show("r2", 1, [10], 13)])
    shop.write("interactions", [shop.event(1, 10, 14), shop.event(9, 9, 99)])
    first_day = shop.evaluate(last=NOON.date())
    assert (first_day.overall.n_answers, first_day.overall.n_hits) == (1, 0)
    second_day = shop.evaluate(first=NOON.date() + DAY)
    assert (second_day.overall.n_answers, second_day.overall.n_hits) == (1, 1)


def test_the_same_request_id_at_another_time_is_another_answer(shop: Shop) -> None:
    shop.write("exposures", [*shop.show("r1", 1, [10, 20]), *shop.show("r1", 1, [30], 1)])
    shop.write("interactions", [shop.event(1, 30, 2), shop.event(9, 9, 99)])
    overall = shop.evaluate().overall
    assert (overall.n_answers, overall.hit_rate, overall.ndcg) == (2, 0.5, 0.5)


def test_explored_places_say_what_either_order_is_worth(shop: Shop) -> None:
    rows = [
        *shop.show("r1", 1, [10, 20], lists="night"),
        *shop.show("r2", 2, [10, 20], lists="night"),
        *shop.show("r3", 3, [10, 20]),
    ]
    for row, propensity, ranker, batch in zip(rows, (0.5, 0.25, 0.8, 0.8), (1, 3, 1, 2), (2, 2, None, 9), strict=False):
        row |= {"propensity": propensity, "ranker_position": ranker, "batch_position": batch}
    shop.write("exposures", rows)
    shop.write("interactions", [shop.event(1, 10, 2), shop.event(2, 20, 2), shop.event(3, 20, 2), shop.event(9, 9, 99)])
    result = shop.evaluate()
    assert result.n_explored == 4
    assert result.policies["ranker"].value == pytest.approx((2 + 1.25) / (2 + 1.25 + 1.25))
    assert (result.policies["batch"].value, result.policies["batch"].effective_sample_size) == (0.0, 1.0)
    assert result.differences["batch"].value == pytest.approx(-3.25 / 4.5)


def test_a_table_of_an_older_release_is_evaluated_without_what_it_lacks(shop: Shop) -> None:
    shop.write("exposures", shop.show("r1", 1, [10]), without=("propensity", "ranker_position", "batch_position", "lists", "candidates"))
    shop.write("interactions", [shop.event(1, 10, 2), shop.event(9, 9, 99)])
    result = shop.evaluate()
    assert (result.overall.n_hits, list(result.by["lists"]), result.policies) == (1, ["none"], {})


def test_what_is_missing_is_said(shop: Shop) -> None:
    with pytest.raises(InputMissing, match="ingest --format exposures"):
        shop.evaluate()
    shop.write("exposures", shop.show("r1", 1, [10]))
    with pytest.raises(InputMissing, match="no table interactions"):
        shop.evaluate()
    shop.write("interactions", [shop.event(1, 10, -5)])
    with pytest.raises(InputMissing, match="of 1 answers none is 1 day"):
        shop.evaluate()
    with pytest.raises(InputMissing, match="nothing was shown from 2026-03-02 to today: exposures are of 2026-03-01 to 2026-03-01"):
        shop.evaluate(first=NOON.date() + DAY)
    with pytest.raises(InputMissing, match="nothing was shown from the beginning to 2026-02-28"):
        shop.evaluate(last=NOON.date() - DAY)


def test_by_the_command_line(config: Config, options: Callable[[Config], list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    shop = Shop(Path(config.paths.warehouse), BOTH[0])
    fill(shop)
    command = ["evaluate", "--exposures", "--from", "2026-03-01", "--within", "24", *options(config)]
    assert run([*command, "--json"]) == EXIT_OK
    told = json.loads(capsys.readouterr().out)
    assert (told["overall"]["n_hits"], told["by"]["source"]["ranker"]["n_answers"], told["positions"][1]["n_shown"]) == (2, 2, 3)
    assert run(command) == EXIT_OK
    printed = capsys.readouterr().out
    assert "source ranker" in printed and "1 answers left out" in printed
