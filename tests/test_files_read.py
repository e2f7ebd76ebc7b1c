"""The documented queries open the files of the run, and of the user, that they ask for, and no others: in every engine."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import re
import runpy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from recsys_batch.config import Config
from recsys_batch.read import published_run, run_slice
from recsys_batch.schemas import TABLES
from recsys_batch.tables.delta_log import append, commit
from recsys_batch.tables.slice_writer import TableSlice
from tests.conftest import IDS, append_live_lists
from tests.test_documents import BLOCKS as CONTRACT_BLOCKS
from tests.test_documents import USER, here

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [*CONTRACT_BLOCKS, *re.findall(r"([^\n]*)\n```(sql|python)\n(.*?)```", README, re.DOTALL)]
QUERIES = [block for block in BLOCKS if re.search(r"warehouse/(topk|topk_live|candidates)\b|latest_topk|current_topk", block[2])]
watch_opened_files: Callable[[Path], contextlib.AbstractContextManager[set[Path]]]
watch_opened_files = runpy.run_path(str(ROOT / "tools" / "opened_files.py"))["watch_opened_files"]

NEWEST, FAILED, BEFORE = "2026-03-01-r1", "2026-02-28-r1", "2026-02-27-r1"
OLDER = {BEFORE: "PUBLISHED", FAILED: "FAILED", "2026-02-26-r1": "PUBLISHED"}
OF_A_RUN = ("topk", "topk_live", "candidates")


@dataclass(frozen=True)
class Nights:
    """A published night with older runs beside it, one of them never published."""

    config: Config

    @property
    def warehouse(self) -> Path:
        return Path(self.config.paths.warehouse)

    def files(self, table: str, run_id: str, user: str | None) -> set[Path]:
        """Files of a run that may hold a user by the log, all of the run's where it is None."""
        rows = pa.table(DeltaTable(str(self.warehouse / table)).get_add_actions(flatten=True)).to_pylist()
        of_run = [row for row in rows if row["partition.run_id"] == run_id]
        fitting = [row for row in of_run if user is None or row["min.user_id"] <= user <= row["max.user_id"]]
        return {self.warehouse / table / row["path"] for row in fitting}

    def add_run(self, run_id: str, status: str) -> None:
        """An older run with the rows of the newest, in two files a table."""
        run, run_date = published_run(str(self.warehouse)), dt.date.fromisoformat(run_id[:10])
        for table in ("topk", "candidates"):
            partition = {name: {"run_id": run_id, "run_date": run_date}[name] for name in TABLES[table].partition_by}
            where = TableSlice(str(self.warehouse / table), TABLES[table], IDS, partition, 2**26)
            rows = run_slice(str(self.warehouse), table, run)
            users = rows["user_id"].to_pylist()
            half = users.index(users[len(rows) // 2])
            parts = [file for task, some in enumerate((rows[:half], rows[half:])) for file in where.write(some.to_batches(), task)]
            commit(where, parts, {})
        assert run.published_at is not None
        published_at = run.published_at - (run.run_date - run_date) if status == "PUBLISHED" else None
        row = {"run_id": run_id, "run_date": run_date, "attempt": 1, "status": status, "published_at": published_at}
        manifest = TableSlice(str(self.warehouse / "runs"), TABLES["runs"], IDS, {}, 2**20)
        append(manifest, pa.Table.from_pylist([row | {"metrics": {"event": 1.0}, "schema_version": 1}], manifest.schema), {})


@pytest.fixture(scope="module")
def nights(published: Config, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    folder = tmp_path_factory.mktemp("nights")
    shutil.copytree(published.paths.warehouse, folder / "warehouse")
    paths = published.paths.model_copy(update={"warehouse": str(folder / "warehouse")})
    nights = Nights(published.model_copy(update={"paths": paths}))
    for run_id, status in OLDER.items():
        nights.add_run(run_id, status)
    warehouse = str(nights.warehouse)
    append_live_lists(warehouse, NEWEST, 4, {USER: [500, 510]})
    append_live_lists(warehouse, NEWEST, 5, {"u140": [520]})
    append_live_lists(warehouse, BEFORE, 9, {USER: [530]})
    return nights


@contextlib.contextmanager
def watch_runs(nights: Nights) -> Iterator[dict[str, set[Path]]]:
    """Collect the opened files of each table that has a slice per run."""
    by_table: dict[str, set[Path]] = {}
    with watch_opened_files(nights.warehouse) as opened:
        yield by_table
    for path in opened:
        table = path.relative_to(nights.warehouse).parts[0]
        if table in OF_A_RUN:
            by_table.setdefault(table, set()).add(path)


def expected_files(nights: Nights, said: str, code: str) -> dict[str, set[Path]]:
    user = USER if "42" in code else None
    tables = [name for name in OF_A_RUN if re.search(rf"/{name}\b", code)]
    tables += ["topk"] * ("latest_topk" in code) + ["topk", "topk_live"] * ("current_topk" in code)
    runs = [NEWEST, BEFORE] if "What changed" in said else [NEWEST]
    return {name: {file for run_id in runs for file in nights.files(name, run_id, user)} for name in tables}


@pytest.mark.parametrize(("said", "language", "code"), QUERIES, ids=[said[:60] for said, *_ in QUERIES])
def test_a_documented_query_opens_the_files_of_its_run_and_user_alone(
    request: pytest.FixtureRequest, duck: duckdb.DuckDBPyConnection, nights: Nights, said: str, language: str, code: str
) -> None:
    query, expected = here(code, nights.config), expected_files(nights, said, code)
    assert all(expected.values())
    with watch_runs(nights) as opened:
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(query, {})
        elif "delta_scan" in query:
            duck.execute(query).fetchall()
        else:
            request.getfixturevalue("spark").sql(query).collect()
    assert opened == expected


def test_the_queries_that_are_looked_at_are_of_every_engine() -> None:
    marks = {"Spark": "delta.`", "DuckDB": "delta_scan", "Polars": "scan_delta", "pandas": "recsys_batch.read"}
    assert {name: sum(mark in code for _, _, code in QUERIES) for name, mark in marks.items()} == {
        "Spark": 2,
        "DuckDB": 5,
        "Polars": 4,
        "pandas": 3,
    }


def test_the_notebook_opens_the_files_of_its_run_and_user_alone(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_WAREHOUSE", str(nights.warehouse))
    cells = json.loads((ROOT / "notebooks" / "02_topk_without_spark.ipynb").read_text(encoding="utf-8"))["cells"]
    variables: dict[str, Any] = {}
    looked_at = 0
    for code in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
        with watch_runs(nights) as opened:
            exec(code, variables)
        if any(word in code for word in ("scan_delta", "delta_scan", "DeltaTable")):
            looked_at += 1
            assert opened == {"topk": nights.files("topk", NEWEST, variables["user"])}, code
    assert looked_at == 3


def test_a_query_for_any_of_some_runs_opens_every_run_in_duckdb(duck: duckdb.DuckDBPyConnection, nights: Nights) -> None:
    """Why docs/data-contract.md names a run by equality. When this fails, DuckDB has learnt it: say so there and in docs/readers.md."""
    topk = nights.warehouse / "topk"
    with watch_runs(nights) as opened:
        duck.execute(f"SELECT * FROM delta_scan('{topk}') WHERE run_id IN ('{NEWEST}', '{BEFORE}')").fetchall()
    assert len(opened["topk"]) == 2 * (1 + len(OLDER))
    with watch_runs(nights) as opened:
        each = (f"SELECT * FROM delta_scan('{topk}') WHERE run_id = '{run_id}'" for run_id in (NEWEST, BEFORE))
        duck.execute(" UNION ALL ".join(each)).fetchall()
    assert opened["topk"] == nights.files("topk", NEWEST, None) | nights.files("topk", BEFORE, None)
