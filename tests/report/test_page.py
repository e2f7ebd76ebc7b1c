"""The page: of one file, safe with any title, and the same for the same run."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_batch.cli import run
from recsys_batch.config import Config
from recsys_batch.evaluation.drift import RunComparison
from recsys_batch.read import published_run
from recsys_batch.report.cards import CardItem, UserCard
from recsys_batch.report.facts import Churn, Mover, RunFacts, collect_facts
from recsys_batch.report.page import format_figure, render_report

GATES = {"popular_share": {"value": 0.1, "limit": 0.5, "passed": True}, "overlap": {"value": 0.2, "limit": 0.3, "passed": False}}


@pytest.fixture
def facts(published: Config) -> RunFacts:
    return collect_facts(published.paths.warehouse, published_run(published.paths.warehouse), 0.0)


class Page(HTMLParser):
    """Tags, the addresses they name, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data") and value]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_fetches_nothing_and_runs_nothing(facts: RunFacts) -> None:
    text = render_report(facts, GATES, seen=True)
    page = Page(text)
    assert all(address.startswith("#") for address in page.addresses)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)


def test_every_picture_has_its_title_and_its_sentence(facts: RunFacts) -> None:
    page = Page(render_report(facts, GATES, seen=True))
    assert page.tags.count("figure") == page.tags.count("figcaption") >= 5
    assert page.tags.count("svg") == page.tags.count("figure")


def test_what_pictures_refer_to_is_there_once(facts: RunFacts) -> None:
    page = Page(render_report(facts, GATES, seen=True))
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses} <= set(page.ids)


def test_colours_follow_the_page(facts: RunFacts) -> None:
    text = render_report(facts, GATES, seen=True)
    assert "var(--first)" in text and "#0101" not in text


def test_titles_are_text_whatever_is_in_them(facts: RunFacts) -> None:
    evil = "<script>alert('x')</script>"
    compared = RunComparison(np.array([0.5, 1.0]), np.array([1.0]), np.array([1.0]))
    card = UserCard(evil, "popular", (evil,), (CardItem(1, evil, evil, 1.0, None),))
    text = render_report(replace(facts, cards=(card,), churn=Churn(evil, compared, (Mover(evil, 0.2, 0.1),))), GATES, seen=False)
    assert "<script" not in text
    assert "".join(Page(text).words).count(evil) >= 5


def test_a_refused_run_says_by_what(facts: RunFacts) -> None:
    words = " ".join("".join(Page(render_report(facts, GATES, seen=False)).words).split())
    assert "Refused by overlap; readers never saw it." in words
    assert "1 of 2gates passed" in words


def test_the_same_run_gives_the_same_page(facts: RunFacts) -> None:
    assert render_report(facts, GATES, seen=True) == render_report(facts, GATES, seen=True)


@pytest.mark.parametrize(("value", "text"), [(1234567.0, "1,234,567"), (0.01234, "0.01234"), (float("nan"), "unknown"), (None, "unknown")])
def test_figures(value: float | None, text: str) -> None:
    assert format_figure(value) == text


def test_the_command_writes_the_page_and_gives_it_to_mlflow(
    fresh_published: Config, options: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert run(["report", *options(fresh_published), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"run_id": "2026-03-01-r1", "out": str(out), "bytes": out.stat().st_size, "in_mlflow": True}
    assert "<title>Run 2026-03-01-r1</title>" in out.read_text()
    assert list(tmp_path.glob(".page.html*")) == []


def test_a_run_that_is_not_there_is_exit_code_4(fresh_published: Config, options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", *options(fresh_published), "--run-id", "2030-01-01-r1"]) == 4
    assert "there is no run 2030-01-01-r1" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_exit_code_2(
    fresh_published: Config, options: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", *options(fresh_published), "--no-log", "--out", str(tmp_path / "nowhere" / "page.html")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
