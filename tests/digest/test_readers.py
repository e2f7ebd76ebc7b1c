"""Ids that look like UUIDs, dates or numbers come out of a digest as they went in, by the readers that docs/digest.md shows."""

import re
from pathlib import Path
from typing import Any

import duckdb
import pytest

from recsys_batch.schemas import IdTypes
from tests.digest.conftest import LISTS, NIGHT, House

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "digest.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^(DuckDB|Polars|pandas)(, JSON lines)?[^\n]*:\n```(?:sql|python)\n(.*?)```", DOCUMENT, re.DOTALL | re.MULTILINE)
KINDS = ("uuid", "date", "time", "zeros", "hashed", "exponent")


class OddHouse(House):
    """A house whose text ids are all of a kind that readers take for something else."""

    kind = "uuid"

    def user(self, number: int) -> Any:
        return number + 2**62 if self.ids.user == "BIGINT" else odd_id(self.kind, number)

    def item(self, number: int) -> Any:
        return number + 2**62 if self.ids.item == "BIGINT" else odd_id(self.kind, number)


def odd_id(kind: str, number: int) -> str:
    return {
        "uuid": f"0B5A6C1E-7F3D-4E2A-9C11-2D3E4F5A6B{number:02X}",
        "date": f"2026-01-{number + 1:02d}" if number < 31 else f"2026-03-{number - 30:02d}",
        "time": f"12:30:{number:02d}",
        "zeros": f"{number:05d}",
        "hashed": str(2**63 + number * 7919),
        "exponent": f"{number:02d}e5",
    }[kind]


def run_example(reader: str, form: str, file: Path, ids: IdTypes) -> dict[Any, list[Any]]:
    """The ids of each user's slots, by the example of the documentation."""
    (code,) = [code for name, is_json, code in BLOCKS if name == reader and bool(is_json) == (form == "jsonl")]
    code, replaced = re.subn(r"digests/[\w.-]+\.(?:jsonl|parquet)", str(file), code)
    assert replaced == 1
    if form == "jsonl":
        code = _with_id_types(code, ids)
    if reader == "DuckDB":
        rows = duckdb.sql(code).fetchall()
        return {user: [row[1] for row in rows if row[0] == user] for user, *_ in rows}
    variables: dict[str, Any] = {}
    exec(code, variables)
    digest = variables["digest"]
    users, lists = (digest[name].to_list() for name in ("user_id", "slots"))
    return {user: [slot["item_id"] for slot in slots] for user, slots in zip(users, lists, strict=True)}


def _with_id_types(code: str, ids: IdTypes) -> str:
    """The example says strings, and how integers are said."""
    for pattern, kind in ((r"(\"?user_id\"?: )", ids.user), (r"(\"?item_id\"?:? )", ids.item), (r"(\"?because_item_id\"?:? )", ids.item)):
        if kind == "BIGINT":
            code = re.sub(pattern + r"('?)VARCHAR", r"\1\2BIGINT", re.sub(pattern + r"pl\.String", r"\1pl.Int64", code))
    return code


@pytest.fixture(
    scope="module", params=[(kind, "STRING", "STRING") for kind in KINDS] + [("uuid", "STRING", "BIGINT"), ("date", "BIGINT", "STRING")]
)
def odd_house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OddHouse:
    kind, user, item = request.param
    house = OddHouse(tmp_path_factory.mktemp("odd"), IdTypes(user, item))
    house.kind = kind
    house.inputs({1: [5, 20, 8]}, {1: "north"})
    house.publish(NIGHT.date(), LISTS)
    for form in ("jsonl", "parquet"):
        house.digest(out=house.folder / f"out.{form}", form=form)
    return house


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
@pytest.mark.parametrize("reader", ["DuckDB", "Polars", "pandas"])
def test_ids_come_out_of_a_digest_as_they_went_in(odd_house: OddHouse, reader: str, form: str) -> None:
    seen = {1: [5, 20, 8]}
    expected = {
        odd_house.user(user): [odd_house.item(item) for item in items if item not in seen.get(user, [])][:5]
        for user, items in LISTS.items()
    }
    assert run_example(reader, form, odd_house.folder / f"out.{form}", odd_house.ids) == expected


def test_every_example_of_reading_is_run() -> None:
    assert sorted((name, bool(is_json)) for name, is_json, _ in BLOCKS) == sorted(
        (name, is_json) for name in ("DuckDB", "Polars", "pandas") for is_json in (False, True)
    )
    assert len(re.findall(r"^```(?:sql|python)", DOCUMENT, re.MULTILINE)) == len(BLOCKS)


@pytest.mark.parametrize("kind", ["uuid", "date", "time"])
def test_without_the_schema_duckdb_guesses_wrong(tmp_path: Path, kind: str) -> None:
    """When this fails, DuckDB has changed, and docs/digest.md warns of nothing."""
    house = OddHouse(tmp_path, IdTypes("STRING", "STRING"))
    house.kind = kind
    house.inputs({1: [5, 20, 8]}, {1: "north"})
    house.publish(NIGHT.date(), LISTS)
    house.digest()
    ids = [row[0] for row in duckdb.sql(f"SELECT user_id FROM read_json('{house.folder}/out.jsonl')").fetchall()]
    assert len(ids) == 9 and not any(isinstance(value, str) for value in ids)
