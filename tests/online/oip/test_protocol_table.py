"""docs/online-protocol.md says of our server what it does, cell by cell; tools/protocol_table.py wrote it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import protocol_table
import pytest
from protocol_cases import BEGIN, COLUMNS, DOCUMENT, END, GROUPS, OURS, Case, put_into, read_cells, render
from protocol_requests import D, Target, call, is_ready_by_grpc

from recsys_batch.online.export.synthetic_snapshot import make_snapshot
from recsys_batch.online.snapshot.repository import set_current
from tools.model_servers import RECIPES, NotInstalled, find

PAGE = DOCUMENT.read_text(encoding="utf-8")
ROWS = [pytest.param(group, case, id=f"{group}: {case.request}") for group, cases in GROUPS.items() for case in cases]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, ranker: bytes, servers: Any, find_port: Any) -> Iterator[Target]:
    folder, port = tmp_path_factory.mktemp("table"), find_port()
    make_snapshot(folder / "snapshots", snapshot_id="first", users=300, items=500, dim=D, candidates=60, ranker=ranker)
    set_current(folder / "snapshots", "first")
    started = servers(folder)
    found = Target(started(folder / "snapshots", "--grpc-port", str(port)).port, port, "recommend")
    until = time.monotonic() + 60
    while is_ready_by_grpc(found) != "false" and time.monotonic() < until:
        time.sleep(0.05)
    yield found
    started.end()


@pytest.mark.parametrize(("group", "case"), ROWS)
def test_our_server_answers_as_the_page_says(target: Target, group: str, case: Case) -> None:
    assert case.ask(target) == read_cells(PAGE)[OURS][group, case.request], "run: python tools/protocol_table.py --write recsys_batch"


def test_the_page_holds_every_row_of_every_server_and_nothing_else() -> None:
    cells = read_cells(PAGE)
    rows = [(group, case.request) for group, cases in GROUPS.items() for case in cases]
    assert len(set(rows)) == len(rows) and all(list(cells[name]) == rows for name in COLUMNS)
    assert put_into(PAGE, render(cells)) == PAGE and "not asked" not in PAGE


def test_columns_name_the_versions_that_are_installed() -> None:
    assert f"mlserver=={COLUMNS['mlserver'].split()[1]}" in RECIPES["mlserver"].packages
    assert "nvidia-pytriton==0.7.0" in RECIPES["triton"].packages and "nvidia-pytriton 0.7.0" in PAGE  # whose server is 2.51.0


def test_a_server_that_is_not_asked_keeps_its_column_and_the_text_around_the_tables_stays() -> None:
    group, cases = next(iter(GROUPS.items()))
    cells = read_cells(PAGE)
    cells["triton"][group, cases[0].request] = "another"
    changed = put_into(PAGE, render(cells))
    assert read_cells(changed) == cells and changed != PAGE
    assert changed.partition(BEGIN)[0] == PAGE.partition(BEGIN)[0] and changed.partition(END)[2] == PAGE.partition(END)[2]
    with pytest.raises(ValueError, match="lacks the markers"):
        put_into("no markers here", "new\n")


def test_unknown_arguments_are_bad_usage() -> None:
    assert protocol_table.main(["--wirte"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["triton", "mlserver"])
def test_other_servers_answer_as_the_page_says(name: str, tmp_path: Path) -> None:
    try:
        find(name)
    except NotInstalled as error:
        pytest.skip(str(error))
    with protocol_table.peer(name, tmp_path) as target:
        assert COLUMNS[name].endswith(f" {call(target, 'GET', '/v2').json['version']}")
        assert protocol_table.ask_all(target) == read_cells(PAGE)[name]
