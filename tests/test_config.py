"""A config is checked whole when it is read, and its errors say what to type instead."""

from pathlib import Path

import pytest

from recsys_batch.config import Config, load_config
from recsys_batch.errors import ConfigError


def test_an_empty_file_is_a_valid_config(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("")
    assert load_config(path) == Config()


def test_file_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[scoring]\ntop_k = 7\n[retrieval]\nmode = 'exact'\n")
    config = load_config(path, ["scoring.top_k=9", "paths.warehouse=/elsewhere", "spark.conf.spark.ui.enabled=false"])
    assert (config.scoring.top_k, config.retrieval.mode, config.paths.warehouse) == (9, "exact", "/elsewhere")
    assert config.spark.conf == {"spark.ui.enabled": "false"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("scoring.topk=5", ["unknown key scoring.topk", "scoring.top_k"]),
        ("scorin.top_k=5", ["unknown key scorin", "scoring"]),
        ("retrieval.n_candidate=5", ["did you mean retrieval.n_candidates"]),
        ("scoring.top_k=0", ["scoring.top_k", "greater than or equal to 1", "found 0"]),
        ("retrieval.mode=fastest", ["retrieval.mode", "fastest"]),
        ("scoring.top_k=5000", ["top_k = 5000", "n_candidates"]),
        ("nonsense", ["section.key=value"]),
        ("paths.warehouse.x=1", ["paths.warehouse"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_cure(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    for word in words:
        assert word in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist"):
        load_config(tmp_path / "nowhere.toml")


def test_broken_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[scoring\n")
    with pytest.raises(ConfigError, match="not readable TOML"):
        load_config(path)


def test_the_hash_follows_settings_that_change_rows_and_no_others() -> None:
    base = load_config(None).config_hash()
    assert load_config(None, ["paths.warehouse=/x", "spark.master=local[1]"]).config_hash() == base
    assert load_config(None, ["scoring.top_k=3"]).config_hash() != base


def test_the_hash_is_that_of_earlier_releases_until_seen_items_may_come_again() -> None:
    assert load_config(None).config_hash() == load_config(None, ["retrieval.seen=exclude"]).config_hash() == "c153807d54b5"
    others = ["retrieval.seen=allow", "retrieval.seen={after_days = 7}", "retrieval.seen={after_days = 8}", "retrieval.seen.x=allow"]
    assert len({load_config(None, [other]).config_hash() for other in others} | {"c153807d54b5"}) == 5


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ("allow", "allow"),
        ("{after_days = 0}", {"after_days": 0}),
        (
            '{all = "exclude", grocery = "allow", music = {after_days = 7}}',
            {"all": "exclude", "grocery": "allow", "music": {"after_days": 7}},
        ),
    ],
)
def test_seen_items_have_one_rule_or_one_by_segment(value: str, seen: object) -> None:
    assert load_config(None, [f"retrieval.seen={value}"]).retrieval.seen == seen


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("never", ["retrieval.seen", "it is 'never'", '"exclude", "allow" or {after_days = N}']),
        ("14", ["it is 14", "{after_days = N}"]),
        ("{}", ["names no segment"]),
        ("{after_days = -1}", ["after_days = -1", "0 to 36,500 days"]),
        ("{after_days = 1.5}", ["{'after_days': 1.5}", "whole number of days"]),
        ("{after_days = true}", ["whole number of days"]),
        ('{after_days = "allow"}', ["whole number of days"]),
        ('{after_days = 7, music = "allow"}', ["after_days stands beside segments", "all = {after_days = N}"]),
        ('{music = "alow"}', ["the rule for music is 'alow'"]),
        ("{music = {days = 7}}", ["the rule for music is {'days': 7}"]),
        ("{music = {after_days = -2}}", ["the rule for music has after_days = -2"]),
        ('{music = {after_days = 1, books = "allow"}}', ["the rule for music is"]),
    ],
)
def test_a_rule_for_seen_items_that_is_none_is_named_with_what_is_expected(value: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"retrieval.seen={value}"])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["retrieval.mode=sharded", "retrieval.storage=int8"], ["shards are float32"]),
        (["scoring.candidates=all", "retrieval.mode=ivf"], ["scoring.candidates = all", "retrieval.mode = exact", "found ivf"]),
    ],
)
def test_settings_that_exclude_each_other_are_refused(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    for word in words:
        assert word in str(caught.value)


def test_where_every_item_is_scored_the_top_k_may_be_longer_than_n_candidates() -> None:
    assert load_config(None, ["scoring.candidates=all", "scoring.top_k=500"]).scoring.top_k == 500


def test_rules_are_set_by_segment() -> None:
    rules = load_config(None, ["retrieval.eligibility.kids=array_contains(categories, 'x')"]).retrieval.eligibility
    assert rules == {"kids": "array_contains(categories, 'x')"}
