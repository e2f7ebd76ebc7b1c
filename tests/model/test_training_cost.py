"""What a training is said to take: no less than the arrays that it certainly holds, and what the settings change."""

from dataclasses import replace
from pathlib import Path

import pytest

from recsys_batch.config import Config, load_config
from recsys_batch.model import tower_training, training_cost, warm_start
from recsys_batch.model.tower_training import list_widths
from recsys_batch.model.training_cost import TrainingSize, estimate_cost, read_machine_bytes

CONFIG = load_config(None)
LARGE = TrainingSize(20_000_000, 5_000_000, 250_000, 800_000, 1_000_000)
GIB = 2**30


def stated(size: TrainingSize, config: Config = CONFIG) -> float:
    return estimate_cost(size, config, 0).n_bytes


def test_the_weights_their_moments_and_the_events_fit_into_what_is_stated() -> None:
    """Two towers with two moments each, and user, item and time of each event."""
    assert stated(LARGE) > 6 * 4 * 64 * LARGE.n_items + 24 * LARGE.n_events
    assert stated(LARGE) < 8 * GIB


@pytest.mark.parametrize("change", [{"n_events": 10_000_000}, {"n_items": 1_000_000}, {"n_catalogue": 5_000_000}])
def test_more_of_anything_takes_more(change: dict[str, int]) -> None:
    assert stated(replace(LARGE, **change)) > stated(LARGE) + 0.2 * GIB


def test_the_jvm_is_counted_and_a_wider_model_takes_more() -> None:
    assert estimate_cost(LARGE, CONFIG, 3 * GIB).n_bytes == stated(LARGE) + 3 * GIB
    assert stated(LARGE, load_config(None, ["model.embedding_dim=256"])) > 2 * stated(LARGE)


@pytest.mark.parametrize("n_items", [1_000, 100_000, 400_000, 1_000_000])
def test_the_width_is_the_widest_that_training_tries(n_items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size, widest = replace(LARGE, n_items=n_items), list_widths(n_items, CONFIG)[-1] + 1
    assert stated(size) == stated(size, load_config(None, [f"model.embedding_dim={widest}"]))
    monkeypatch.setattr(tower_training, "EMBEDDING_DIMS", (8, 16))
    assert stated(size) == stated(size, load_config(None, ["model.embedding_dim=16"]))


@pytest.mark.parametrize(
    ("limit", "lower", "n_items"), [("MAX_CELLS", 1_000_000, 100_000), ("MAX_RANK", 100, 10_000), ("RIDGE_MAX_ITEMS", 1_000, 6_000)]
)
def test_the_start_is_stated_within_its_own_limits(limit: str, lower: int, n_items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stated(replace(LARGE, n_items=n_items))
    monkeypatch.setattr(warm_start, limit, lower)
    assert stated(replace(LARGE, n_items=n_items)) < before


def test_minutes_are_the_budget_and_more_where_the_start_alone_takes_longer() -> None:
    seconds = [estimate_cost(LARGE, load_config(None, [f"training.max_seconds={budget}"]), 0).seconds for budget in (1, 10, 3_600)]
    assert seconds[0] == seconds[1] > 300 and 3_600 < seconds[2] < 4_200


def test_a_containers_limit_counts_where_it_is_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(training_cost, "_CGROUP_LIMITS", (str(tmp_path / "absent"), str(limit)))
    machine = read_machine_bytes()
    found = []
    for text in (f"{GIB // 2}\n", "max\n", f"{2**60}\n"):
        limit.write_text(text)
        found.append(read_machine_bytes())
    assert found == [GIB // 2, machine, machine] and machine > GIB // 2
