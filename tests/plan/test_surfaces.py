"""Surfaces are read with what they lack or contradict said in a sentence."""

from pathlib import Path
from typing import Any

import pytest

from recsys_batch.errors import ConfigError
from recsys_batch.plan.surfaces import load_surfaces, parse_surfaces

ROOT = Path(__file__).parents[2]
GOOD: dict[str, Any] = {
    "users": 1000,
    "active_share": 0.5,
    "requests_per_second": 1.0,
    "items": 100,
    "staleness_hours": 24,
    "p99_ms": 50,
}


def parse(**changes: Any) -> Any:
    table = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    return parse_surfaces({"surface": {"home": table}}, "mine.toml")["home"]


def test_the_textbook_cases_are_surfaces() -> None:
    surfaces = load_surfaces(ROOT / "conf" / "surfaces.toml")
    assert {"email_digest", "homepage_widget", "for_you_feed", "product_search", "autocomplete"} <= surfaces.keys()


def test_what_is_not_said_has_a_default() -> None:
    surface = parse()
    assert (surface.context, surface.shown, surface.peak_rate, surface.budget_seconds) == ("none", 10, 3.0, 0.05)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"users": None}, "users is missing"),
        ({"user": 5}, "user is no key of a surface: users, active_share"),
        ({"active_share": 1.5}, "active_share = 1.5"),
        ({"context": "weather"}, "context = 'weather'"),
        ({"p99_ms": 5, "network_ms": 30}, "p99 5 ms with 30 ms of network leaves no time to answer"),
        ({"shown": 200}, "200 items are shown of a catalogue of 100"),
        ({"users": 1_000_000}, "500,000 users come on a day, but 1 requests per second are 86,400 a day"),
        ({"staleness_hours": 0.1}, "say how many events_per_second there are"),
        ({"users": "many"}, "users = 'many'"),
    ],
)
def test_what_is_wrong_is_said_with_the_file_and_the_surface(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(**changes)
    assert str(refused.value).startswith("mine.toml, surface home: ") and words in str(refused.value)


@pytest.mark.parametrize(("content", "words"), [(None, "does not exist"), ("[surface", "not readable TOML"), ("", "names no surface")])
def test_a_file_that_is_none_is_said(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "surfaces.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        load_surfaces(path)
