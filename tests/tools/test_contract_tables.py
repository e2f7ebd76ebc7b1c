"""docs/data-contract.md says what recsys_batch/schemas.py says."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from recsys_batch.schemas import TABLES

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = (ROOT / "docs" / "data-contract.md").read_text(encoding="utf-8")
tool = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "contract_tables.py")))


def test_the_document_holds_what_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([]) == 0
    printed = capsys.readouterr().out
    assert f"{tool.BEGIN}\n\n{printed}\n{tool.END}" in DOCUMENT, "run: python tools/contract_tables.py --write"


@pytest.mark.parametrize("name", TABLES)
def test_the_document_says_who_writes_each_table(name: str) -> None:
    assert re.search(rf"^\| {name} \|", DOCUMENT.partition(tool.BEGIN)[0], re.MULTILINE)


def test_id_columns_are_of_the_sources_type_also_inside_structs() -> None:
    assert "| user_id | `ID` | never |" in tool.tables()
    assert "`ARRAY<STRUCT<item_id:ID,score:FLOAT>>`" in tool.tables()


def test_writing_replaces_what_stands_between_the_markers_and_nothing_else() -> None:
    before = f"above\n{tool.BEGIN}\nold\n{tool.END}\nbelow\n"
    after = tool.put_into(before, "new\n")
    assert after == f"above\n{tool.BEGIN}\n\nnew\n\n{tool.END}\nbelow\n"
    assert tool.put_into(after, "new\n") == after


def test_a_document_without_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="lacks the markers"):
        tool.put_into("no markers here", "new\n")


def test_unknown_arguments_are_bad_usage() -> None:
    assert tool.main(["--wirte"]) == 2
