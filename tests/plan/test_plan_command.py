"""`plan` from the command line: what it prints, writes and refuses."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys_batch.cli import run
from recsys_batch.plan import cost_book
from recsys_batch.plan.cost_book import load_trial, save_trial
from recsys_batch.plan.unit_costs import UnitCosts

SURFACES = """
[surface.feed]
users = 1_000_000
active_share = 0.2
requests_per_second = 100
items = 50_000
staleness_hours = 0.1
context = "session"
p99_ms = 80
network_ms = 30
events_per_second = 50

[surface.search]
users = 1_000_000
active_share = 0.2
requests_per_second = 50
items = 5_000_000
staleness_hours = 24
context = "query"
p99_ms = 200
"""


@pytest.fixture
def plan(tmp_path: Path, units: UnitCosts, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs plan in an installation where only a trial was run; (exit code, output, errors)."""
    (tmp_path / "surfaces.toml").write_text(SURFACES)
    save_trial(tmp_path / "state", units)

    def call(*words: str) -> tuple[int, str, str]:
        where = [f"paths.warehouse={tmp_path / 'warehouse'}", f"paths.state={tmp_path / 'state'}"]
        sets = [word for setting in where for word in ("--set", setting)]
        code = run(["plan", "--surfaces", str(tmp_path / "surfaces.toml"), *sets, *words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def test_each_surface_has_a_mode_the_number_that_flips_it_and_reasons_within_80_columns(plan: Any) -> None:
    code, output, errors = plan()
    assert code == 0 and errors == ""
    assert max(len(line) for line in output.splitlines()) <= 80
    assert re.search(r"^feed: two-stage, [\d.,]+ USD a day", output, re.MULTILINE)
    assert "search: no mode does this; each says why below." in output
    flat = " ".join(output.split())
    assert re.search(r"Two-stage unless .+ (rises above|falls below) [\d.,%]+ \(now [\d.,%]+\): then ", flat)
    assert "batch + cache: no, an answer depends on the session, which no night knows" in flat
    assert '"batch saves 99 %": ' in flat and "as of 2026-11" in flat


def test_machines_get_one_object_of_all_figures(plan: Any) -> None:
    code, output, _ = plan("--json")
    told = json.loads(output, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert code == 0 and told["surfaces"]["feed"]["mode"] == "two_stage" and told["surfaces"]["search"]["mode"] is None
    two_stage = told["surfaces"]["feed"]["plans"]["two_stage"]
    assert two_stage["cost_per_day"] == pytest.approx(sum(two_stage["costs"].values()))
    assert told["unit_costs"]["sources"]["rank"] == "made up"


def test_a_price_across_the_printed_number_changes_the_recommendation(plan: Any) -> None:
    told = json.loads(plan("--json")[1])
    flips = [flip for flip in told["surfaces"]["feed"]["flips"] if flip["name"] in told["prices"]]
    for flip in flips:
        beyond = flip["value"] * (1.02 if flip["above"] else 0.98)
        changed = json.loads(plan("--json", "--set", f"prices.{flip['name']}={beyond}")[1])
        assert changed["surfaces"]["feed"]["mode"] == flip["mode"]


def test_the_page_holds_a_picture_of_each_surface_and_nothing_from_elsewhere(plan: Any, tmp_path: Path) -> None:
    assert plan("--out", str(tmp_path / "plan.html"))[0] == 0
    page = (tmp_path / "plan.html").read_text()
    assert page.count("<svg") == 2 * 2 + 1 and "feed: two-stage" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert re.search(r'(src|href)="(?!#)', page) is None


def test_a_night_and_its_servers_are_planned(plan: Any) -> None:
    code, output, _ = plan("--night", "--users", "5000000", "--items", "100000", "--rate", "2000", "--p99-ms", "20")
    assert code == 0 and "A night of 5,000,000 users x 100,000 items x 64" in output and "bottleneck: search" in output
    assert re.search(r"2,000 ranked requests/s at a p99 of 20 ms: \d+ workers", output)
    assert max(len(line) for line in output.splitlines()) <= 80


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--night",), "--night needs --users N and --items M"),
        (("--users", "5"), "are of --night"),
        (("--surfaces", "nowhere.toml"), "nowhere.toml does not exist"),
        (("--metrics", "here"), "pass an address"),
        (("--out", "/nowhere/plan.html"), "cannot be written"),
    ],
)
def test_what_is_asked_for_wrongly_is_said(plan: Any, words: tuple[str, ...], said: str) -> None:
    code, _, errors = plan(*words)
    assert code == 2 and said in errors


def test_where_nothing_was_measured_it_says_what_to_run(plan: Any, tmp_path: Path) -> None:
    (trial,) = (tmp_path / "state").iterdir()
    trial.write_text("{")
    assert plan()[0] == 4
    trial.unlink()
    code, _, errors = plan()
    assert code == 4 and "recsys-batch plan --measure" in errors


def test_another_machines_costs_are_said_to_be_its(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_book, "this_machine", lambda: "another, 96 cores, x86_64")
    code, _, errors = plan()
    assert code == 0 and "unit costs are of another machine" in errors


def test_a_surface_beyond_all_measure_is_planned_within_80_columns(plan: Any, tmp_path: Path) -> None:
    asked = (
        "users = 900_000_000\nactive_share = 0.5\nrequests_per_second = 1_000_000\nitems = 1_000_000\nstaleness_hours = 24\np99_ms = 8000\n"
    )
    (tmp_path / "surfaces.toml").write_text(f"[surface.all]\n{asked}")
    code, output, _ = plan()
    assert code == 0 and max(len(line) for line in output.splitlines()) <= 80
    assert re.search(r"online, full catalogue +[\d.,]+ +[\d.,]+ +[\d.]+M +[\d.]+k", output)


@pytest.mark.slow
def test_a_machine_where_nothing_ever_ran_is_measured(plan: Any, tmp_path: Path) -> None:
    (trial,) = (tmp_path / "state").iterdir()
    trial.unlink()
    code, output, errors = plan("--measure")
    assert code == 0 and "timing requests" in errors and "feed: " in output
    costs = load_trial(tmp_path / "state").costs
    assert 1e-6 < costs.search_user < 0.1 and 1e-5 < costs.lookup < costs.rank < 0.1 and costs.rank < costs.rank_p99 < 1
    assert 1e-8 < costs.pair < 1e-4 and 100 < costs.record_bytes < 1e5 and set(costs.sources) >= {"rank", "search_user", "night_fixed"}
