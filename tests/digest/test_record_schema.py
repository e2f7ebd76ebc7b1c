"""The JSON Schema beside a digest says what its lines hold."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from recsys_batch.digest.record_schema import json_schema_path
from tests.digest.conftest import House

KINDS = {"BIGINT": "integer", "STRING": "string"}


def read_schema(house: House, name: str = "out.jsonl") -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(json_schema_path(house.folder / name).read_text(encoding="utf-8"))
    return schema


def test_the_schema_tells_ids_that_are_text_from_ids_that_are_numbers(house: House) -> None:
    house.digest()
    properties = read_schema(house)["properties"]
    slot = properties["slots"]["items"]["properties"]
    assert properties["user_id"]["type"] == KINDS[house.ids.user]
    assert slot["item_id"]["type"] == KINDS[house.ids.item]
    assert slot["because_item_id"]["type"] == [KINDS[house.ids.item], "null"]


def test_every_line_is_as_the_schema_says_and_an_id_of_the_other_type_is_not(house: House) -> None:
    house.digest()
    validator = jsonschema.Draft202012Validator(read_schema(house))
    validator.check_schema(validator.schema)
    records = [json.loads(line) for line in (house.folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(records) == 9 and all(validator.is_valid(record) for record in records)
    other = "1" if house.ids.user == "BIGINT" else 1
    assert not validator.is_valid(records[0] | {"user_id": other})
    assert not validator.is_valid(records[0] | {"extra": 1})


def test_the_schema_is_there_before_the_file(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[tuple[bool, bool]] = []
    from recsys_batch.digest import output

    def publish(draft: Path, path: Path) -> None:
        there.append((json_schema_path(path).exists(), path.exists()))
        draft.replace(path)

    monkeypatch.setattr(output, "publish", publish)
    house.digest()
    assert there == [(True, False)]


def test_parquet_and_a_dry_run_have_no_schema_beside_them(house: House) -> None:
    house.digest(out=house.folder / "out.parquet", form="parquet", dry_run=True)
    house.digest(out=house.folder / "out.parquet", form="parquet")
    house.digest(dry_run=True)
    assert not list(house.folder.glob("*.schema.json"))
