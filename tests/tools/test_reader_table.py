"""docs/readers.md says what readers do: each is run again on the samples, and compared with its column."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from deltalake import DeltaTable

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).parent.parent.parent
AGAIN = "run: python tools/reader_table.py --write"


def load_tool() -> SimpleNamespace:
    """The tool, which imports its neighbours as a script does."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "reader_table.py")))
    finally:
        sys.path.remove(str(ROOT / "tools"))


tool = load_tool()
PAGE = tool.parse((ROOT / "docs" / "readers.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    tool.make_samples(folder)
    return folder


@pytest.mark.parametrize("name", ["duckdb", "polars", "pandas", "arrow", "querybuilder"])
def test_a_reader_does_what_its_column_says(samples: Path, name: str) -> None:
    """With the release that is installed, which may be newer than the one that the page was written with."""
    seen = tool.run_reader(name, samples, sys.executable)
    assert dict(seen.cells) == PAGE[name].cells, AGAIN
    assert seen.versions.split()[::2] == PAGE[name].versions.split()[::2], "other packages"


def test_spark_does_what_its_column_says(samples: Path, spark: SparkSession) -> None:
    seen = tool.run_spark(samples, spark)
    assert dict(seen.cells) == PAGE["spark"].cells, AGAIN
    assert spark.conf.get("spark.sql.session.timeZone") == "UTC"


@pytest.mark.slow
def test_polars_1_does_what_its_column_says(samples: Path, tmp_path: Path) -> None:
    assert tool.run_reader("polars", samples, tool.make_polars_1(tmp_path / "environment")) == PAGE["polars1"], AGAIN


def test_every_row_has_a_cell_of_every_reader_and_the_page_reads_back() -> None:
    labels = [label for rows in tool.SECTIONS.values() for label in rows]
    assert len(set(labels)) == len(labels)
    assert list(PAGE) == list(tool.TITLES) and all(list(column.cells) == labels for column in PAGE.values())
    document = tool.put_into(f"{tool.BEGIN}\n{tool.END}", tool.render(PAGE), tool.BEGIN, tool.END)
    assert tool.parse(document) == PAGE


def test_pandas_keeps_whole_numbers_beside_nulls_by_arrow_types(samples: Path) -> None:
    """As the page advises; plain ``to_pandas`` makes 9007199254740992.0 of it."""
    frame: Any = DeltaTable(str(samples / "runs")).to_pandas(types_mapper=pd.ArrowDtype)
    assert sorted(frame["n_users"].dropna()) == [2**53 + 1] * 2 and frame["n_users"].isna().sum() == 1


def test_unknown_arguments_are_bad_usage() -> None:
    assert tool.main(["--wirte"]) == 2
